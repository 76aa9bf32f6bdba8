//! `sar kernels build`: the CUDA backend's kernels compiled ahead, on a machine without a GPU.

use crate::cli::{GlobalArgs, KernelsBuildArgs};
use anyhow::ensure;
use sar_backend_cuda::kernels::SOURCES;
use sar_backend_cuda::resources::of_log;
use sar_backend_cuda::{Cache, Nvrtc};

/// Variants of every kernel, by how activations are stored.
const VARIANTS: [&str; 2] = ["bf16", "f32"];

/// Compiles every kernel for every architecture asked for, and prints what each needs.
///
/// # Errors
/// There is no compiler, it does not know an architecture, or a folder cannot be written.
pub fn run(args: &KernelsBuildArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    for arch in &args.arch {
        let number = arch.strip_prefix("sm_").unwrap_or("");
        ensure!(
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "`{arch}` is no architecture; write it as in sm_80 (A100) or sm_90 (H100, H200)"
        );
    }
    let nvrtc = Nvrtc::load()?;
    let cache = match &args.out {
        Some(folder) => Cache::at(folder),
        None => Cache::of_user()?,
    };
    let mut kernels = 0;
    let line = |words: [&str; 6]| {
        let [name, rest @ ..] = words;
        if !global.quiet {
            println!("{name:<34}{}", rest.map(|word| format!("{word:>11}")).concat());
        }
    };
    line(["kernel", "variant", "arch", "registers", "shared", "spilled"]);
    for arch in &args.arch {
        for variant in VARIANTS {
            for &source in SOURCES {
                let compiled = cache.build(&nvrtc, source, variant, arch)?;
                for found in of_log(&compiled.log) {
                    let spilled = found.spill_stores + found.spill_loads;
                    let numbers = [found.registers, found.shared, spilled].map(|n| n.to_string());
                    let [registers, shared, spilled] = &numbers;
                    line([&found.name, variant, arch, registers, shared, spilled]);
                    kernels += 1;
                }
            }
        }
    }
    println!(
        "{} kernels in {}, by NVRTC {}.{}",
        kernels,
        cache.folder().display(),
        nvrtc.version.0,
        nvrtc.version.1
    );
    Ok(())
}
