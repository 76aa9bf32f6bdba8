//! Every kernel compiles for A100 and H100, spills nothing and needs no stack, stays within its recorded
//! budget, and reads nothing as constant that it writes.
//!
//! Needs NVRTC, not a GPU: skipped aloud where it is missing, unless `SAR_REQUIRE_NVRTC=1`.
//! `SAR_RECORD_BUDGET=1` writes what is found as the new budget; a reviewer then sees the change.

#![allow(clippy::unwrap_used)]

mod read_only;

use sar_backend_cuda::kernels::{SOURCES, Source};
use sar_backend_cuda::resources::{Resources, of_log};
use sar_backend_cuda::{CudaError, Nvrtc};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];
const VARIANTS: [&str; 2] = ["f32", "bf16"];

/// Compilers differ by a few registers from version to version; growth beyond this is a change of the
/// kernel's. Occupancy changes in steps of eight registers and more. The version that the budget is by has none.
const REGISTER_SLACK: u32 = 8;

fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::load() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error @ CudaError::Library { .. }) => {
            assert!(std::env::var_os("SAR_REQUIRE_NVRTC").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Resources by `kernel variant arch`; files are compiled side by side.
fn compile_all(nvrtc: &Nvrtc) -> BTreeMap<String, Resources> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let compile = |sources: &[Source]| -> Vec<(String, Resources)> {
        sources.iter().flat_map(|&source| resources(nvrtc, source)).collect()
    };
    std::thread::scope(|scope| {
        let compile = &compile;
        let parts = SOURCES.chunks(SOURCES.len().div_ceil(2 * workers));
        let tasks: Vec<_> = parts.map(|part| scope.spawn(move || compile(part))).collect();
        tasks.into_iter().flat_map(|task| task.join().unwrap()).collect()
    })
}

fn resources(nvrtc: &Nvrtc, source: Source) -> Vec<(String, Resources)> {
    let mut found = Vec::new();
    for variant in VARIANTS {
        for arch in ARCHITECTURES {
            let compiled =
                nvrtc.compile(source, variant, arch).unwrap_or_else(|error| panic!("{error}"));
            let kernels = of_log(&compiled.log);
            assert!(!kernels.is_empty(), "{}: no kernel in {}", source.stem, compiled.log);
            let faults = read_only::faults(&compiled.ptx);
            assert!(faults.is_empty(), "{variant} {arch}: {}", faults.join("\n"));
            let faults = multiplied_otherwise(&compiled.ptx, variant);
            assert!(faults.is_empty(), "{variant} {arch}: {}", faults.join("\n"));
            let name = |kernel: &Resources| format!("{} {variant} {arch}", kernel.name);
            found.extend(kernels.into_iter().map(|kernel| (name(&kernel), kernel)));
        }
    }
    found
}

/// Kernels whose products of bf16 are those of tensor cores, by the beginning of their names.
const ON_TENSOR_CORES: [&str; 3] = ["attention_forward_", "attention_queries_", "attention_keys_"];

/// The kernels of a file that do not multiply as they are to: on tensor cores in bf16, and never in TF32 where numbers
/// are f32.
fn multiplied_otherwise(ptx: &str, variant: &str) -> Vec<String> {
    let kernels =
        ptx.split(".entry ").skip(1).filter_map(|body| Some((body.split_once('(')?.0, body)));
    let fault = |(name, body): (&str, &str)| {
        let narrow = variant == "bf16" && ON_TENSOR_CORES.iter().any(|of| name.starts_with(of));
        match () {
            () if body.contains(".tf32") => Some(format!("{name}: rounds to TF32")),
            () if narrow && !body.contains("mma.sync") => Some(format!("{name}: no tensor cores")),
            () => None,
        }
    };
    kernels.filter_map(fault).collect()
}

#[test]
fn a_kernel_that_multiplies_otherwise_is_found() {
    let faults = |name: &str, body: &str, variant: &str| {
        multiplied_otherwise(&format!(".visible .entry {name}(\n)\n{{ {body} }}"), variant)
    };
    let product = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
    assert!(faults("attention_keys_64", product, "bf16").is_empty());
    assert!(faults("attention_keys_64", "fma.rn.f32", "f32").is_empty());
    assert!(faults("gelu", "fma.rn.f32", "bf16").is_empty());
    assert_eq!(
        faults("attention_keys_64", "fma.rn.f32", "bf16"),
        ["attention_keys_64: no tensor cores"]
    );
    assert_eq!(faults("gelu", "cvt.rna.tf32.f32", "f32"), ["gelu: rounds to TF32"]);
}

fn budget_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels").join("budget.txt")
}

/// Registers and static shared memory by `kernel variant arch`.
fn budget() -> BTreeMap<String, (u32, u32)> {
    let text = std::fs::read_to_string(budget_path()).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kernel, variant, arch, registers, shared] = words[..] else {
                panic!("budget.txt: five words a line, found \"{line}\"");
            };
            let numbers = (registers.parse().unwrap(), shared.parse().unwrap());
            (format!("{kernel} {variant} {arch}"), numbers)
        })
        .collect()
}

fn record(found: &BTreeMap<String, Resources>, version: (i32, i32)) {
    let mut text = format!(
        "# kernel variant architecture registers static-shared-bytes, by NVRTC {}.{}\n",
        version.0, version.1
    );
    for (key, kernel) in found {
        writeln!(text, "{key} {} {}", kernel.registers, kernel.shared).unwrap();
    }
    std::fs::write(budget_path(), text).unwrap();
}

#[test]
fn every_kernel_compiles_within_its_budget() {
    let Some(nvrtc) = nvrtc() else { return };
    let found = compile_all(&nvrtc);
    if std::env::var_os("SAR_RECORD_BUDGET").is_some() {
        record(&found, nvrtc.version);
    }
    let (budget, by) = (budget(), format!("by NVRTC {}.{}\n", nvrtc.version.0, nvrtc.version.1));
    let recorded = std::fs::read_to_string(budget_path()).unwrap();
    let slack = if recorded.lines().next().is_some_and(|head| head.ends_with(by.trim())) {
        0
    } else {
        REGISTER_SLACK
    };
    let mut faults = Vec::new();
    for (key, kernel) in &found {
        let spilled = kernel.spill_stores + kernel.spill_loads;
        if spilled > 0 {
            faults.push(format!("{key}: spills {spilled} bytes"));
        }
        if kernel.stack > 0 {
            faults.push(format!("{key}: each thread has {} bytes of stack", kernel.stack));
        }
        match budget.get(key) {
            None => faults.push(format!("{key}: not in kernels/budget.txt")),
            Some(&(registers, shared)) => {
                if kernel.registers > registers + slack || kernel.shared > shared {
                    faults.push(format!(
                        "{key}: {} registers and {} bytes shared, budget {registers} and {shared}",
                        kernel.registers, kernel.shared
                    ));
                }
            }
        }
    }
    for key in budget.keys().filter(|key| !found.contains_key(*key)) {
        faults.push(format!("{key}: in kernels/budget.txt, but no such kernel"));
    }
    for of in ON_TENSOR_CORES {
        let named = |key: &&String| key.starts_with(of) && key.contains(" bf16 ");
        if !found.keys().any(|key| named(&key)) {
            faults.push(format!("no kernel is called {of}…"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_kernel_that_does_not_compile_says_where() {
    let Some(nvrtc) = nvrtc() else { return };
    let broken = sar_backend_cuda::kernels::Source { stem: "broken", text: "int x = ;" };
    let error = nvrtc.compile(broken, "f32", "sm_80").unwrap_err().to_string();
    assert!(error.contains("broken") && error.contains("sm_80"), "{error}");
    assert!(error.contains("expected an expression"), "{error}");
}

#[test]
fn a_kernel_that_reads_as_constant_what_it_writes_is_found() {
    let Some(nvrtc) = nvrtc() else { return };
    let faults = |read: &str| {
        let text = format!(
            "extern \"C\" __global__ void planted(float* sum, const float* x, int n) {{
                sum[threadIdx.x] = 2 * __ldg(x + threadIdx.x);
                sum[n] = {read};
            }}"
        );
        let source = sar_backend_cuda::kernels::Source { stem: "planted", text: text.leak() };
        read_only::faults(&nvrtc.compile(source, "f32", "sm_80").unwrap().ptx)
    };
    assert_eq!(faults("sum[2 * n]"), [""; 0]);
    let planted = "planted: parameters [0] are read as constant and written";
    assert_eq!(faults("__ldg(sum + 2 * n)"), [planted]);
    assert_eq!(faults("__ldg((n > 7 ? sum : x) + n)"), [planted]);
}
