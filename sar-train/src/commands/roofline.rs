//! Where a step's time goes: every kernel compared with the ceilings that this machine reaches.

use crate::backend::Compute;
use sar_backend_cuda::Tally;
use sar_math::Real as _;
use sar_math::backend::{Linear, LinearDims, Slot, Write};
use sar_math::philox::{Purpose, Stream};
use serde::Serialize;
use std::time::Instant;

/// Elements of the buffers copied: far more than any cache holds.
const COPIED: usize = 1 << 27;
/// Rows, columns and terms of the product timed.
const SIDE: usize = 8192;
/// Number of distinct noise values; divides all lengths here.
const NOISE: usize = 1 << 20;
/// Repetitions that are timed together, after one that is not timed.
const REPEATS: u32 = 10;

/// What the machine reaches, measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Bytes read and written per second by a copy of activations.
    pub bytes_per_s: f64,
    /// FLOPs per second of a large square product: the better of a layer's forward and its weights' gradient.
    pub flops_per_s: f64,
    /// The same for a layer's forward alone, whose algorithm must serve any number of rows.
    pub forward_flops_per_s: f64,
}

/// Times a copy and a product on the backend.
///
/// # Errors
/// Out of memory; a device fault.
pub fn ceilings<B: Compute>(backend: &B, storage: usize) -> anyhow::Result<Ceilings> {
    let noise = noise::<B>();
    let (from, mut to) = (filled(backend, COPIED, &noise)?, backend.activation(COPIED)?);
    let copy = timed(backend, || Ok(backend.copy(&from, 0, &mut to, 0, COPIED)?))?;
    drop((from, to));
    let matrix = SIDE * SIDE;
    let (x, mut y) = (filled(backend, matrix, &noise)?, backend.activation(matrix)?);
    let mut params = backend.params(matrix)?;
    for at in (0..matrix).step_by(NOISE) {
        backend.upload_params(&noise, &mut params, at)?;
    }
    let layer = Linear { weight: Slot { offset: 0, len: matrix }, bias: None };
    let dims = LinearDims { rows: SIDE, inputs: SIDE, outputs: SIDE };
    let forward = timed(backend, || Ok(backend.linear(dims, &x, &params, layer, &mut y)?))?;
    let mut grads = backend.accum(matrix)?;
    let gradient = timed(backend, || {
        Ok(backend.linear_backward_weight(dims, &y, &x, layer, Write::Overwrite, &mut grads)?)
    })?;
    let flops = (2 * SIDE * matrix) as f64;
    Ok(Ceilings {
        bytes_per_s: (2 * COPIED * storage) as f64 / copy,
        flops_per_s: flops / forward.min(gradient),
        forward_flops_per_s: flops / forward,
    })
}

/// Values like those of a model: with zeros a GPU draws less power, so its clock is higher than in training.
fn noise<B: Compute>() -> Vec<B::Host> {
    let mut stream = Stream::new(0, Purpose::Init, 0);
    (0..NOISE).map(|_| B::Host::of(stream.uniform() - 0.5)).collect()
}

/// Returns a buffer of `len` numbers, a multiple of the noise's length.
fn filled<B: Compute>(backend: &B, len: usize, noise: &[B::Host]) -> anyhow::Result<B::Activation> {
    let mut buffer = backend.activation(len)?;
    for at in (0..len).step_by(NOISE) {
        backend.upload(noise, &mut buffer, at)?;
    }
    Ok(buffer)
}

/// Returns the seconds that one repetition takes.
fn timed<B: Compute>(
    backend: &B,
    mut work: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    work()?;
    backend.synchronize()?;
    let start = Instant::now();
    for _ in 0..REPEATS {
        work()?;
    }
    backend.synchronize()?;
    Ok(start.elapsed().as_secs_f64() / f64::from(REPEATS))
}

/// Formats the table, from most time to least: for each kernel its calls and time per step, what it
/// moves and computes per second, and the fraction it reaches of the ceiling that binds it.
pub fn table(tallies: &[Tally], steps: usize, ceilings: Ceilings) -> String {
    let all: f64 = tallies.iter().map(|tally| tally.seconds).sum();
    let mut text = format!(
        "{:<36}{:>7}{:>10}{:>7}{:>9}{:>10}{:>9}\n",
        "kernel", "calls", "ms", "share", "GB/s", "TFLOP/s", "ceiling"
    );
    for tally in tallies {
        let (bytes, flops) = (tally.work.bytes as f64, tally.work.flops as f64);
        let known = |amount: f64, unit: f64| match amount > 0.0 && tally.seconds > 0.0 {
            true => format!("{:.1}", amount / tally.seconds / unit),
            false => "–".to_owned(),
        };
        let floor = (bytes / ceilings.bytes_per_s).max(flops / ceilings.flops_per_s);
        let reached = match floor > 0.0 && tally.seconds > 0.0 {
            true => format!("{:.0} %", 100.0 * floor / tally.seconds),
            false => "–".to_owned(),
        };
        text += &format!(
            "{:<36}{:>7}{:>10.3}{:>6.1}%{:>9}{:>10}{:>9}\n",
            tally.name,
            tally.calls / steps as u64,
            1e3 * tally.seconds / steps as f64,
            100.0 * tally.seconds / all,
            known(bytes, 1e9),
            known(flops, 1e12),
            reached
        );
    }
    let flops: u64 = tallies.iter().map(|tally| tally.work.flops).sum();
    text + &format!(
        "ceilings: copy {:.0} GB/s, product {:.1} TFLOP/s ({:.1} as a layer's forward); \
         all kernels together {:.1} TFLOP/s, {:.0} % of the product\n",
        ceilings.bytes_per_s / 1e9,
        ceilings.flops_per_s / 1e12,
        ceilings.forward_flops_per_s / 1e12,
        flops as f64 / all / 1e12,
        100.0 * flops as f64 / all / ceilings.flops_per_s
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sar_backend_cuda::Work;

    #[test]
    fn a_kernel_is_held_against_the_ceiling_that_binds_it() {
        let ceilings = Ceilings { bytes_per_s: 2e12, flops_per_s: 8e14, forward_flops_per_s: 7e14 };
        let tally = |name: &str, seconds, bytes, flops| Tally {
            name: name.into(),
            calls: 20,
            seconds,
            work: Work { bytes, flops },
        };
        let tallies = [
            // A floor of 1 ms by FLOPs in 2 ms; a floor of 0.5 ms by bytes in 1 ms; unknown work.
            tally("product", 2e-3, 1_000_000, 800_000_000_000),
            tally("norm", 1e-3, 1_000_000_000, 0),
            tally("rest", 1e-3, 0, 0),
        ];
        let text = table(&tallies, 10, ceilings);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or("");
        assert!(line("product").ends_with("50 %") && line("product").contains("50.0%"), "{text}");
        assert!(line("norm").ends_with("50 %") && line("norm").contains("1000.0"), "{text}");
        assert!(line("rest").ends_with('–'), "{text}");
        assert!(line("norm").contains("  2 "), "calls a step: {text}");
    }
}
