//! The kernels' sources, as NVRTC is given them.

use crate::error::CudaError;

/// A kernel file.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Stem of the file, an op's name.
    pub stem: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! sources {
    ($($stem:literal)*) => {
        /// Every kernel file.
        pub const SOURCES: &[Source] = &[$(Source {
            stem: $stem,
            text: include_str!(concat!("../kernels/", $stem, ".cu")),
        }),*];
    };
}

sources!("attention" "attention_backward" "cached_attention" "elementwise" "linear");

macro_rules! headers {
    ($($name:literal)*) => {
        /// What kernel files include, by the name they include it by.
        pub const HEADERS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../kernels/", $name)))),*];
    };
}

headers!("attend.cuh" "heads.cuh" "limits.cuh" "prelude.cuh" "reduce.cuh" "schedule.cuh" "tile.cuh");

/// Files whose arithmetic is part of the contract: no product may be fused with a sum.
const UNFUSED: &[&str] = &["choose_codes"];

/// The file of a kernel.
///
/// # Errors
/// [`CudaError::Unsupported`] where there is no such file: a bug of ours.
pub fn source(stem: &'static str) -> Result<Source, CudaError> {
    let found = SOURCES.iter().find(|source| source.stem == stem);
    found.copied().ok_or_else(|| CudaError::Unsupported {
        op: stem,
        what: "there is no kernel file of this name".to_owned(),
    })
}

/// What NVRTC is told besides the source: architecture, variant, and what makes its log say how many
/// registers a kernel needs.
pub fn options(stem: &str, variant: &str, arch: &str) -> Vec<String> {
    let define = match variant {
        "bf16" => "-DACT_BF16",
        _ => "-DACT_F32",
    };
    let fused = if UNFUSED.contains(&stem) { "--fmad=false" } else { "--fmad=true" };
    let given = ["--std=c++17", "--ptxas-options=-v", "-default-device", fused, define];
    let mut options: Vec<String> = given.into_iter().map(str::to_owned).collect();
    options.push(format!("--gpu-architecture={arch}"));
    options
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let embedded = match path.extension().and_then(|e| e.to_str()) {
                Some("cu") => SOURCES.iter().any(|s| format!("{}.cu", s.stem) == name),
                Some("cuh") => HEADERS.iter().any(|(header, _)| *header == name),
                _ => true,
            };
            assert!(embedded, "{name} is not among the embedded sources");
        }
    }
}
