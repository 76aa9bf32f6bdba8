//! One AdamW step over flat buffers.
//!
//! Neighbouring slots of a kind are joined into runs, and runs go to the kernel by value, some dozens per
//! launch: a transformer's thousand tensors are some hundred runs. Floor: 28 bytes per parameter, 30
//! with a copy in bf16.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, KernelArg};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::{AdamW, ShapeError, Slot};

const ADAMW: Kernel = Kernel { file: "adamw", name: "adamw" };

/// Threads of a block.
const THREADS: usize = 256;
/// Parameters that a block updates: for each thread, four in each of the kernel's `QUADS` rounds.
const PER_BLOCK: usize = 4 * 4 * THREADS;
/// Runs of one launch: `MAX_RUNS` of the kernel.
const MAX_RUNS: usize = 64;

/// The flat buffers of a step.
pub(crate) struct State<S> {
    pub(crate) grads: Address<f32>,
    pub(crate) first: Address<f32>,
    pub(crate) second: Address<f32>,
    pub(crate) params: Address<f32>,
    /// The narrow copy, where there is one.
    pub(crate) narrow: Option<Address<S>>,
}

/// Neighbouring parameters that decay alike.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    from: usize,
    to: usize,
    decays: bool,
}

impl Run {
    /// Blocks that a run takes: it is cut at multiples of four parameters.
    fn blocks(&self) -> usize {
        (self.to - self.from / 4 * 4).div_ceil(PER_BLOCK)
    }
}

/// The runs of one launch: `struct AdamRuns` of the kernel.
#[repr(C)]
struct AdamRuns {
    from: [u64; MAX_RUNS],
    to: [u64; MAX_RUNS],
    decays: u64,
    first_block: [u32; MAX_RUNS],
    runs: i32,
    unused: i32,
}

/// The hyperparameters in the form that an element needs: `struct AdamFactors` of the kernel.
#[repr(C)]
struct AdamFactors {
    clip: f64,
    keep1: f32,
    beta2: f32,
    keep2: f32,
    eps: f32,
    step_size: f32,
    decay: f32,
}

const _: () = assert!(size_of::<AdamRuns>() == 20 * MAX_RUNS + 16 && MAX_RUNS <= 64);
const _: () = assert!(size_of::<AdamFactors>() == 32);

// SAFETY: `repr(C)` without padding; the kernel asserts the same size.
unsafe impl KernelArg for AdamRuns {}
// SAFETY: as above.
unsafe impl KernelArg for AdamFactors {}

impl AdamRuns {
    /// The table of at most [`MAX_RUNS`] runs, and the number of blocks that they take.
    fn new(runs: &[Run]) -> (Self, usize) {
        let mut table = Self {
            from: [0; MAX_RUNS],
            to: [0; MAX_RUNS],
            decays: 0,
            first_block: [0; MAX_RUNS],
            runs: runs.len() as i32,
            unused: 0,
        };
        let mut blocks = 0;
        for (i, run) in runs.iter().enumerate() {
            (table.from[i], table.to[i]) = (run.from as u64, run.to as u64);
            table.decays |= u64::from(run.decays) << i;
            table.first_block[i] = blocks as u32;
            blocks += run.blocks();
        }
        (table, blocks)
    }
}

impl AdamFactors {
    fn new(hyper: &AdamW) -> Self {
        let step = hyper.step.max(1) as f64;
        let correction1 = 1.0 - hyper.beta1.powf(step);
        let correction2 = 1.0 - hyper.beta2.powf(step);
        Self {
            clip: hyper.clip,
            keep1: (1.0 - hyper.beta1) as f32,
            beta2: hyper.beta2 as f32,
            keep2: (1.0 - hyper.beta2) as f32,
            eps: (hyper.eps * correction2.sqrt()) as f32,
            step_size: (hyper.lr * correction2.sqrt() / correction1) as f32,
            decay: (hyper.lr * hyper.weight_decay) as f32,
        }
    }
}

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    hyper: &AdamW,
    decayed: &[Slot],
    plain: &[Slot],
    norm: Address<f32>,
    state: State<S>,
) -> Result<(), CudaError> {
    let State { grads, first, second, params, narrow } = state;
    let narrow = narrow.unwrap_or(Address::NULL);
    let factors = AdamFactors::new(hyper);
    for runs in runs(decayed, plain)?.chunks(MAX_RUNS) {
        let (table, blocks) = AdamRuns::new(runs);
        let args: [&dyn KernelArg; 8] =
            [&params, &narrow, &grads, &first, &second, &norm, &table, &factors];
        let parameters: usize = runs.iter().map(|run| run.to - run.from).sum();
        // The weight and both moments are read and written, the gradient is read, the copy written.
        let copied = if S::NARROW { parameters } else { 0 };
        gpu.expect(copied, 7 * parameters * size_of::<f32>(), 0);
        // SAFETY: parameters as declared; the buffers were checked on entry to the end of the last
        // run, and no two runs share a parameter.
        unsafe { gpu.launch(ADAMW, [blocks, 1, 1], THREADS, 0, &args)? };
    }
    Ok(())
}

/// The slots in order of memory, neighbours of a kind joined.
fn runs(decayed: &[Slot], plain: &[Slot]) -> Result<Vec<Run>, ShapeError> {
    let run = |decays| {
        move |slot: &Slot| Run {
            from: slot.offset,
            to: slot.offset.saturating_add(slot.len),
            decays,
        }
    };
    let all = decayed.iter().map(run(true)).chain(plain.iter().map(run(false)));
    let mut sorted: Vec<Run> = all.filter(|run| run.to > run.from).collect();
    sorted.sort_unstable_by_key(|run| run.from);
    let mut joined: Vec<Run> = Vec::with_capacity(sorted.len());
    for run in sorted {
        match joined.last_mut() {
            Some(last) if run.from < last.to => {
                ShapeError::at_least("adamw", "slot offset (slots overlap)", last.to, run.from)?;
            }
            Some(last) if run.from == last.to && run.decays == last.decays => last.to = run.to,
            _ => joined.push(run),
        }
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(offset: usize, len: usize) -> Slot {
        Slot { offset, len }
    }

    #[test]
    fn neighbours_of_a_kind_are_joined_in_any_order() {
        let found = runs(&[slot(5, 5), slot(0, 5), slot(3, 0)], &[slot(12, 1), slot(10, 2)]);
        let run = |from, to, decays| Run { from, to, decays };
        assert_eq!(found.unwrap(), [run(0, 10, true), run(10, 13, false)]);
        assert!(runs(&[slot(0, 2)], &[slot(1, 2)]).is_err());
    }

    #[test]
    fn blocks_cover_a_run_from_the_multiple_of_four_before_it() {
        let run = |from, to| Run { from, to, decays: true };
        assert_eq!([run(3, 4).blocks(), run(0, PER_BLOCK).blocks()], [1, 1]);
        assert_eq!([run(1, PER_BLOCK).blocks(), run(3, PER_BLOCK + 1).blocks()], [1, 2]);
        let (table, blocks) = AdamRuns::new(&[run(0, 5), run(7, PER_BLOCK + 9), run(9000, 9001)]);
        assert_eq!((&table.first_block[..3], blocks), (&[0, 1, 3][..], 4));
    }
}
