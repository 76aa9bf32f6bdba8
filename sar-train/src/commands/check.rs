//! `sar check`: every op of a backend against the conformance kit, as a table.
//!
//! A backend is checked in two number types, and both are held to every property of the kit. The table
//! shows values in the type that trains and gradients in the one where differences are sharp: f32 and
//! f64 on the CPU, bf16 and f32 on a GPU. Next to a GPU's errors it shows those of the CPU backend in
//! f32 on the same cases: these are rounding alone, which the GPU's f32 should come close to.

use crate::backend;
use crate::cli::{BackendName, CheckArgs, GlobalArgs};
use anyhow::bail;
use sar_backend_cpu::CpuBackend;
use sar_backend_cuda::bf16;
use sar_math::backend::Backend;
use sar_math::conformance::{Case, Mismatch, OpFn, Report, checks};

/// What was found about one op over all cases.
#[derive(Clone, Debug, PartialEq)]
pub struct OpCheck {
    /// The op, by its method name.
    pub op: &'static str,
    /// Largest error of a forward value in the first number type, and the largest allowed.
    pub value: (f64, f64),
    /// Largest error of a gradient in the second number type, and the largest allowed; `None`
    /// without a backward.
    pub gradient: Option<(f64, f64)>,
    /// The same two errors of the reference, if there is one.
    pub reference: Option<(f64, Option<f64>)>,
    /// The first fault: number type, seed of the case, property.
    pub fault: Option<(&'static str, u64, Mismatch)>,
}

/// A backend in one of its number types.
pub struct Numbers<'b, B: Backend> {
    /// The type's name.
    pub name: &'static str,
    /// The backend.
    pub backend: &'b B,
}

/// The backend whose errors are shown next to a GPU's.
type Reference = CpuBackend<f32>;

/// Runs `cases` cases, from seed `seed` on, of every op whose name contains `only`: values are taken
/// from `trains`, gradients from `sharp`, and both from the reference, where there is one.
pub fn check_ops<T: Backend, S: Backend>(
    trains: &Numbers<'_, T>,
    sharp: &Numbers<'_, S>,
    reference: Option<&Numbers<'_, Reference>>,
    only: &str,
    cases: u32,
    seed: u64,
) -> Vec<OpCheck> {
    checks::<T>()
        .into_iter()
        .zip(checks::<S>())
        .zip(checks::<Reference>())
        .filter(|(((op, _), _), _)| op.contains(only))
        .map(|(((op, values), (_, gradients)), (_, of_reference))| {
            let mut found =
                OpCheck { op, value: (0.0, 0.0), gradient: None, reference: None, fault: None };
            for seed in (0..u64::from(cases)).map(|i| seed.wrapping_add(i)) {
                if let Some(report) = one(trains, values, seed, &mut found.fault) {
                    let worst = found.value.0.max(report.value_error);
                    found.value = (worst, report.tolerance.value);
                }
                let report = one(sharp, gradients, seed, &mut found.fault);
                if let Some((report, error)) = report.and_then(|r| Some((r, r.gradient_error?))) {
                    let worst = found.gradient.map_or(error, |(worst, _)| error.max(worst));
                    found.gradient = Some((worst, report.tolerance.gradient));
                }
                let report =
                    reference.and_then(|cpu| one(cpu, of_reference, seed, &mut found.fault));
                if let Some(report) = report {
                    let (value, gradient) = found.reference.unwrap_or((0.0, None));
                    let steeper = report.gradient_error.map(|e| e.max(gradient.unwrap_or(0.0)));
                    found.reference = Some((value.max(report.value_error), steeper));
                }
            }
            found
        })
        .collect()
}

/// Runs one case of one op; keeps the first fault.
fn one<B: Backend>(
    numbers: &Numbers<'_, B>,
    check: OpFn<B, Report>,
    seed: u64,
    fault: &mut Option<(&'static str, u64, Mismatch)>,
) -> Option<Report> {
    match check(numbers.backend, Case::new(seed)) {
        Ok(report) => Some(report),
        Err(mismatch) => {
            fault.get_or_insert((numbers.name, seed, mismatch));
            None
        }
    }
}

/// Formats the findings as a table with one line per op, and the faults below it.
pub fn table(found: &[OpCheck]) -> String {
    let width = found.iter().map(|f| f.op.len()).max().unwrap_or(0).max("op".len());
    let compared = found.iter().any(|f| f.reference.is_some());
    let mut rows = vec![
        ["value", "allowed", "CPU f32", "gradient", "allowed", "CPU f32"]
            .map(String::from)
            .to_vec(),
    ];
    let number = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.1e}"));
    rows.extend(found.iter().map(|OpCheck { value, gradient, reference, .. }| {
        let (error, most) = gradient.unzip();
        let cpu = reference.map(|(value, _)| value);
        let cpu_gradient = reference.and_then(|(_, gradient)| gradient);
        [Some(value.0), Some(value.1), cpu, error, most, cpu_gradient].map(number).to_vec()
    }));
    let ops = std::iter::once("op").chain(found.iter().map(|f| f.op));
    let results = found.iter().map(|f| if f.fault.is_none() { "ok" } else { "FAILED" });
    let mut text = String::new();
    for ((op, cells), result) in ops.zip(&rows).zip(std::iter::once("result").chain(results)) {
        text += &format!("{op:width$} ");
        for (column, cell) in cells.iter().enumerate().filter(|(c, _)| compared || c % 3 != 2) {
            let gap = if column % 3 == 0 { "  " } else { " " };
            text += &format!("{gap}{cell:>9}");
        }
        text += &format!("  {result}\n");
    }
    for (number, seed, mismatch) in found.iter().filter_map(|f| f.fault.as_ref()) {
        text += &format!("{number}, seed {seed}: {mismatch}\n");
    }
    text
}

/// Checks the ops and prints the table.
///
/// # Errors
/// An op fails, or no op's name contains the given one.
pub fn run(args: &CheckArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    match global.backend {
        BackendName::Cpu => {
            let (single, double) = (backend::cpu(global)?, CpuBackend::<f64>::new());
            let trains = Numbers { name: "f32", backend: &single };
            print_checks(args, &trains, &Numbers { name: "f64", backend: &double }, None)
        }
        BackendName::Cuda => {
            let single = backend::cuda::<f32>(global)?;
            let narrow = backend::cuda::<bf16>(global)?;
            let trains = Numbers { name: "bf16", backend: &narrow };
            let cpu = Reference::new();
            let cpu = Numbers { name: "f32 of the CPU", backend: &cpu };
            print_checks(args, &trains, &Numbers { name: "f32", backend: &single }, Some(&cpu))
        }
    }
}

fn print_checks<T: Backend, S: Backend>(
    args: &CheckArgs,
    trains: &Numbers<'_, T>,
    sharp: &Numbers<'_, S>,
    reference: Option<&Numbers<'_, Reference>>,
) -> anyhow::Result<()> {
    let only = args.only.as_deref().unwrap_or("");
    let known: Vec<&str> = checks::<T>().into_iter().map(|(op, _)| op).collect();
    if !known.iter().any(|op| op.contains(only)) {
        bail!("no op has `{only}` in its name; there are {}", known.join(", "));
    }
    if args.cases == 0 {
        bail!("--cases is 0: nothing would be checked; give at least 1");
    }
    let found = check_ops(trains, sharp, reference, only, args.cases, args.seed);
    print!("{}", table(&found));
    let failed: Vec<&str> = found.iter().filter(|f| f.fault.is_some()).map(|f| f.op).collect();
    if !failed.is_empty() {
        bail!("{} of {} ops failed: {}", failed.len(), found.len(), failed.join(", "));
    }
    println!(
        "{} ops, {} cases each: values ({}) against plain formulas in f64, gradients ({}) against \
         central differences; errors are relative to a tensor's largest element",
        found.len(),
        args.cases,
        trains.name,
        sharp.name
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_per_op_and_names_what_fails() {
        let (single, double) = (CpuBackend::<f32>::new(), CpuBackend::<f64>::new());
        let trains = Numbers { name: "f32", backend: &single };
        let sharp = Numbers { name: "f64", backend: &double };
        let mut found = check_ops(&trains, &sharp, None, "silu", 2, 7);
        assert_eq!(found.len(), 1);
        assert!(found[0].fault.is_none() && found[0].value.0 > 0.0);
        let (error, allowed) = found[0].gradient.unwrap();
        assert!(error < allowed);
        let text = table(&found);
        assert!(text.lines().count() == 2 && text.contains("silu") && text.ends_with("ok\n"));

        let fault = sar_math::conformance::Fault::Outcome {
            expected: "success".into(),
            found: "an error".into(),
        };
        let mismatch = Mismatch { op: "silu", property: "runs".into(), fault };
        found[0].fault = Some(("f64", 8, mismatch));
        let text = table(&found);
        assert!(text.contains("FAILED") && !text.contains("CPU"));
        let last = "f64, seed 8: silu: runs: expected success, found an error";
        assert_eq!(text.lines().last(), Some(last));
    }

    /// With the checked backend itself as the reference, the errors are the same.
    #[test]
    fn errors_stand_beside_those_of_the_cpu() {
        let (single, double) = (CpuBackend::<f32>::new(), CpuBackend::<f64>::new());
        let trains = Numbers { name: "f32", backend: &single };
        let sharp = Numbers { name: "f64", backend: &double };
        let found = check_ops(&trains, &sharp, Some(&trains), "gelu", 3, 1);
        assert_eq!(found.len(), 1);
        let (value, gradient) = found[0].reference.unwrap();
        assert_eq!(value, found[0].value.0);
        assert!(gradient.unwrap() > found[0].gradient.unwrap().0, "f32 beside f64");
        let text = table(&found);
        let columns = |line: usize| text.lines().nth(line).unwrap().split_whitespace().count();
        assert_eq!((columns(0), columns(1)), (10, 8), "{text}");
    }

    #[test]
    fn a_name_that_no_op_has_is_an_error() {
        let args = CheckArgs { only: Some("convolve".into()), cases: 1, seed: 0 };
        let error = run(&args, &GlobalArgs::default()).unwrap_err().to_string();
        assert!(error.contains("`convolve`") && error.contains("conv2d"), "{error}");
    }
}
