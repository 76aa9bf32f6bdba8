//! `sar doctor`: what this machine offers, and whether it is enough.

use crate::cli::{DoctorArgs, GlobalArgs};
use crate::run::memory;
use anyhow::Context as _;
use sar_backend_cuda::CudaError;
use sar_backend_cuda::probe::{Found, Probe, probe, usable};
use std::path::Path;

/// Prints the findings.
///
/// # Errors
/// The temporary folder cannot be written to.
pub fn run(_args: &DoctorArgs, _global: &GlobalArgs) -> anyhow::Result<()> {
    let line = |what: &str, found: String| println!("{what:<12} {found}");
    line("version", format!("sar {}", env!("CARGO_PKG_VERSION")));
    line("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    line("cores", cores.to_string());
    line("threads", rayon::current_num_threads().to_string());
    line("features", cpu_features());
    line("memory", memory_text());
    let found = probe();
    for (what, found) in cuda_lines(&found) {
        line(what, found);
    }
    line("--backend", "cpu: ready".to_owned());
    let cuda = match (&found.driver, &found.nvrtc) {
        (Ok(_), Ok(_)) => usable(0).map(|_| "ready".to_owned()),
        // Compiled kernels may lie in the cache.
        (Ok(_), Err(_)) => usable(0).map(|_| "ready where kernels are built ahead".to_owned()),
        (Err(_), _) => Ok("not usable, for want of the driver above".to_owned()),
    };
    let cuda = cuda.unwrap_or_else(|error| format!("not usable: {error}"));
    line("", format!("cuda: {cuda}"));
    let here = std::env::current_dir().context("the current folder cannot be read")?;
    line("disk here", disk_text(&here));
    let temporary = std::env::temp_dir();
    tempfile::NamedTempFile::new_in(&temporary).with_context(|| {
        format!(
            "the temporary folder {} cannot be written to; set TMPDIR to one that can",
            temporary.display()
        )
    })?;
    line("temporary", format!("{}: writable, {}", temporary.display(), disk_text(&temporary)));
    Ok(())
}

/// Driver, GPUs and libraries: what there is, or what is missing and where to get it.
fn cuda_lines(found: &Probe) -> Vec<(&'static str, String)> {
    let version = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    let or_missing = |found: Result<String, &CudaError>| match found {
        Ok(text) => text,
        Err(error) => error.to_string(),
    };
    let mut lines = Vec::new();
    match &found.driver {
        Err(error) => lines.push(("cuda driver", error.to_string())),
        Ok(driver) => {
            lines.push(("cuda driver", format!("CUDA {}", version(driver.version))));
            for gpu in &driver.gpus {
                let verdict = match usable(gpu.ordinal) {
                    Ok(_) => "usable".to_owned(),
                    Err(error) => format!("not usable: {error}"),
                };
                lines.push(("cuda gpu", format!("{}: {gpu}; {verdict}", gpu.ordinal)));
            }
            if driver.gpus.is_empty() {
                lines.push(("cuda gpu", "none that the driver sees".to_owned()));
            }
        }
    }
    lines.push(("nvrtc", or_missing(found.nvrtc.as_ref().map(|&v| version(v)))));
    lines.push(("cublasLt", or_missing(found.cublaslt.as_ref().map(Found::to_string))));
    let nccl = or_missing(found.nccl.as_ref().map(Found::to_string));
    lines.push(("nccl", format!("{nccl} (not used yet: ranks send gradients over TCP)")));
    lines
}

fn memory_text() -> String {
    match (memory::total(), memory::available()) {
        (Some(total), Some(available)) => {
            let own = match memory::limit() {
                Some(_) => " (the limit of this job or container)",
                None => "",
            };
            format!("{}{own}, {} available", memory::text(total), memory::text(available))
        }
        _ => "unknown on this system".to_owned(),
    }
}

fn disk_text(path: &Path) -> String {
    match fs4::available_space(path) {
        Ok(bytes) => format!("{} free", memory::text(bytes)),
        Err(e) => format!("free space unknown ({e})"),
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> String {
    let known = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    let found: Vec<&str> = known.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    if found.is_empty() { "none of avx2, fma, avx512f".to_owned() } else { found.join(" ") }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> String {
    "chosen at compile time on this architecture".to_owned()
}
