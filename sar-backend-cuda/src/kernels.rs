//! The kernels' sources, and the options that they are compiled with.

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

sources!(
    "adamw"
    "area_resize"
    "area_tokens"
    "attention"
    "attention_backward"
    "cached_attention"
    "choose_codes"
    "class_embedding"
    "code_map"
    "conv2d"
    "cross_entropy"
    "elementwise"
    "ema"
    "gelu"
    "grad_norm"
    "group_norm"
    "guide"
    "keep_codes"
    "linear"
    "merge_ids"
    "nearest_code"
    "positions"
    "residual_norm"
    "rollout_inputs"
    "scale_sums"
    "silu"
    "soft_cross_entropy"
    "spatial_attention"
    "squared_error"
    "token_embedding"
    "upsample_nearest"
    "vector_quantize"
);

macro_rules! headers {
    ($($name:literal)*) => {
        /// The headers that kernel files include, by name.
        pub const HEADERS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../kernels/", $name)))),*];
    };
}

headers!(
    "attend.cuh"
    "bicubic.cuh"
    "block.cuh"
    "columns.cuh"
    "heads.cuh"
    "limits.cuh"
    "pack.cuh"
    "prelude.cuh"
    "reduce.cuh"
    "sampling.cuh"
    "schedule.cuh"
    "sigmoid.cuh"
    "softmax.cuh"
    "tile.cuh"
    "vector.cuh"
);

/// Stems of the files in which no product may be fused with a sum, one per line: the draws, whose
/// arithmetic is part of the contract; group norm's gradient, whose terms cancel in small groups if a
/// product is rounded the same way wherever it occurs; and files that are bound by memory, for which
/// matching the CPU's bits costs nothing.
const UNFUSED: &str = include_str!("../kernels/unfused.txt");

/// The file of a kernel.
///
/// # Errors
/// [`CudaError::Unsupported`] if there is no such file, which is a bug of this crate.
pub fn source(stem: &'static str) -> Result<Source, CudaError> {
    let found = SOURCES.iter().find(|source| source.stem == stem);
    found.copied().ok_or_else(|| CudaError::Unsupported {
        op: stem,
        what: "there is no kernel file of this name".to_owned(),
    })
}

/// Options that NVRTC is given: architecture, variant, fusion of products with sums, and the option that
/// makes its log state how many registers a kernel needs.
pub fn options(stem: &str, variant: &str, arch: &str) -> Vec<String> {
    let define = match variant {
        "bf16" => "-DACT_BF16",
        _ => "-DACT_F32",
    };
    let fused =
        if UNFUSED.lines().any(|line| line == stem) { "--fmad=false" } else { "--fmad=true" };
    let given = ["--std=c++17", "--ptxas-options=-v", "-default-device", fused, define];
    let mut options: Vec<String> = given.into_iter().map(str::to_owned).collect();
    options.push(format!("--gpu-architecture={arch}"));
    options
}

#[cfg(test)]
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

    #[test]
    fn what_is_not_fused_are_files_of_the_folder() {
        for stem in UNFUSED.lines() {
            assert!(SOURCES.iter().any(|source| source.stem == stem), "{stem}");
        }
    }
}
