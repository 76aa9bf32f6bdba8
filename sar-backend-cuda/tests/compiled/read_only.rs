//! No kernel reads by the read-only path what it writes.
//!
//! The compiler serves reads that it takes for constant by `ld.global.nc`, which sees no store of the
//! same launch and may go ahead of one. Through a pointer that may be a read-only parameter or one that is
//! written, it has been seen to take both for constant. Kernels executed on the CPU cannot show this.

use std::collections::HashMap;

/// Parameters of a kernel, a bit each.
type Parameters = u64;

/// What is wrong with the kernels of a file's PTX, a line a fault.
pub fn faults(ptx: &str) -> Vec<String> {
    ptx.split(".entry ").skip(1).filter_map(fault).collect()
}

fn fault(entry: &str) -> Option<String> {
    let (name, rest) = entry.split_once('(')?;
    let (_, rest) = rest.split_once("\n{")?;
    let (body, _) = rest.split_once("\n}")?;
    let instructions: Vec<(&str, &str)> = body.split(';').filter_map(instruction).collect();
    let from = origins(&instructions);
    let (mut constant, mut written) = (0, 0);
    for (operation, operands) in &instructions {
        let Some(address) = operands.split_once('[').and_then(|(_, inner)| register(inner)) else {
            continue;
        };
        let parameters = from.get(address).copied().unwrap_or(0);
        if operation.starts_with("ld.global.nc") {
            constant |= parameters;
        } else if ["st.", "atom.", "red."].iter().any(|kind| operation.starts_with(kind)) {
            written |= parameters;
        }
    }
    let both = constant & written;
    let numbers: Vec<u32> = (0..u64::BITS).filter(|i| both >> i & 1 == 1).collect();
    (both != 0).then(|| format!("{name}: parameters {numbers:?} are read as constant and written"))
}

/// Operation and operands, without labels and predicate.
fn instruction(text: &str) -> Option<(&str, &str)> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let line = match line.strip_prefix('@') {
        Some(predicated) => predicated.split_once(char::is_whitespace)?.1.trim(),
        None => line,
    };
    line.split_once(char::is_whitespace)
}

/// The first 64-bit register of some text.
fn register(text: &str) -> Option<&str> {
    let start = text.find("%rd")?;
    let digits = text[start + 3..].bytes().take_while(u8::is_ascii_digit).count();
    Some(&text[start..start + 3 + digits])
}

/// The parameters that each register's address may come from, in whatever order the code runs.
fn origins<'t>(instructions: &[(&'t str, &'t str)]) -> HashMap<&'t str, Parameters> {
    let mut from: HashMap<&str, Parameters> = HashMap::new();
    loop {
        let mut grown = false;
        for (operation, operands) in instructions {
            let Some(to) = register(operands) else { continue };
            let found = match operation.split('.').next() {
                Some("ld") if operation.starts_with("ld.param") => parameter(operands),
                Some("mov" | "add" | "sub" | "cvta" | "selp" | "mad") => {
                    let sources = operands.split(',').skip(1).filter_map(register);
                    sources.filter_map(|source| from.get(source)).fold(0, |all, one| all | one)
                }
                _ => 0,
            };
            let known = from.entry(to).or_default();
            grown |= found & !*known != 0;
            *known |= found;
        }
        if !grown {
            return from;
        }
    }
}

/// `…[kernel_param_3+8]` as a bit.
fn parameter(operands: &str) -> Parameters {
    let digits = operands.split("_param_").nth(1).unwrap_or_default();
    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u32>().ok().and_then(|number| 1u64.checked_shl(number)).unwrap_or(0)
}
