//! `sar doctor`: what this machine offers, and whether it is enough.

use crate::cli::{DoctorArgs, GlobalArgs};
use crate::run::memory;
use anyhow::Context as _;
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
    line("backends", "cpu: yes; cuda: not built into this program".to_owned());
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

fn memory_text() -> String {
    match (memory::total(), memory::available()) {
        (Some(total), Some(available)) => {
            format!("{}, {} available", memory::text(total), memory::text(available))
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
