//! Guidance, filter and draw: every backend chooses the same ids from the same logits.
//!
//! Each block has one row. Argmax reads it once. A draw keeps the row's order keys in shared memory and
//! finds the k-th largest by counting digits, gathers what remains as 64-bit entries, finds where
//! top-p cuts by bisection, and draws by a scan; see `kernels/choose_codes.cu`. Rows whose keys or
//! entries do not fit in shared memory are read again from the cache. Floor: 2 (bf16) or 4 bytes per
//! logit, twice that with guidance.

use crate::backend::CudaBackend;
use crate::device::{Device, GuidanceRamp, Kernel, KernelArg, ScaleTable};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::MAX_SCALES;
use sar_math::backend::{Choice, ChooseDims, DrawKeys, Filter};

const ARGMAX: Kernel = Kernel { file: "choose_codes", name: "argmax_codes" };
const DRAW: Kernel = Kernel { file: "choose_codes", name: "draw_codes" };

/// Bytes of the bins that are used to find the k-th largest.
const BINS: usize = 4 * 2048;
/// Largest vocabulary whose order keys are held: 64 KiB of them.
const MAX_KEYS: usize = 1 << 14;
/// Most entries held of a row without top-k, of which all entries remain: 152 KiB, or what a block has on smaller GPUs.
/// If there are more, they are made anew.
const MAX_ENTRIES: usize = 19 << 10;
/// Bytes of a block's shared memory that the kernel has for itself, rounded up.
const OWN_SHARED: usize = 1 << 10;
/// Entries held of a row with top-k for each of the k, since ties with the k-th remain too.
const ENTRIES_PER_K: usize = 2;
/// Least number of entries held of a row with top-k, for small k.
const LEAST_ENTRIES: usize = BINS / 8;

/// The rows of logits and how to choose from them: `struct Rows` of the kernel.
#[repr(C)]
struct Rows {
    table: ScaleTable,
    ramp: GuidanceRamp,
    seed: u64,
    first_image: u64,
    unconditional: u64,
    dropped: f64,
    first: i32,
    span: i32,
    vocab: i32,
    top_k: i32,
    keys_held: i32,
    capacity: i32,
}

const _: () = assert!(
    size_of::<Rows>() == size_of::<ScaleTable>() + size_of::<GuidanceRamp>() + 4 * 8 + 6 * 4
);

// SAFETY: `repr(C)` without padding, which the assertion above shows; the kernel asserts the same.
unsafe impl KernelArg for Rows {}

impl Rows {
    fn new(dims: &ChooseDims) -> Self {
        let span = dims.schedule.span(dims.scales.clone());
        let half = dims.batch * span.len() * dims.vocab;
        Self {
            table: ScaleTable::new(&dims.schedule),
            ramp: GuidanceRamp { of_scale: dims.guidance.unwrap_or([0.0; MAX_SCALES]) },
            seed: 0,
            first_image: 0,
            unconditional: if dims.guidance.is_some() { half as u64 } else { 0 },
            dropped: -1.0,
            first: span.start as i32,
            span: span.len() as i32,
            vocab: dims.vocab as i32,
            top_k: 0,
            keys_held: 0,
            capacity: 0,
        }
    }

    /// Fills in what a draw needs of a block's `shared` bytes; returns how many it takes.
    fn draw(&mut self, vocab: usize, filter: Filter, keys: DrawKeys, shared: usize) -> usize {
        let most = MAX_ENTRIES.min(shared.saturating_sub(OWN_SHARED) / 8);
        (self.seed, self.first_image) = (keys.seed, keys.first_image);
        if filter.top_p > 0.0 {
            // A p above 1 drops nothing, as 1 does.
            self.dropped = (1.0 - filter.top_p).max(0.0);
        }
        if filter.top_k == 0 || filter.top_k >= vocab {
            let capacity = if vocab <= most { vocab } else { 0 };
            self.capacity = capacity as i32;
            return 8 * capacity;
        }
        self.top_k = filter.top_k as i32;
        self.keys_held = i32::from(vocab <= MAX_KEYS);
        let keys = if vocab <= MAX_KEYS { 4 * vocab.next_multiple_of(4) } else { 0 };
        // If k is large, as many as fit in addition to the keys.
        let room = most.saturating_sub(keys / 8);
        let capacity = (ENTRIES_PER_K * filter.top_k).max(LEAST_ENTRIES).min(room);
        self.capacity = capacity as i32;
        keys + 8 * capacity
    }
}

/// Threads of a block that draws; powers of two, so that they share the bins evenly.
fn draw_threads(vocab: usize) -> usize {
    match vocab {
        0..1024 => 128,
        1024..4096 => 256,
        _ => 512,
    }
}

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &ChooseDims,
    logits: Address<S>,
    ids: Address<u32>,
) -> Result<(), CudaError> {
    let mut rows = Rows::new(dims);
    let (kernel, threads, shared) = match dims.choice {
        Choice::Argmax => (ARGMAX, 256, 0),
        Choice::Draw(filter, keys) => {
            let first_image = keys.first_image.wrapping_add(dims.first_sample as u64);
            let keys = DrawKeys { first_image, ..keys };
            let shared = rows.draw(dims.vocab, filter, keys, gpu.device().shared_bytes());
            (DRAW, draw_threads(dims.vocab), shared)
        }
    };
    let grid = [dims.batch * rows.span as usize, 1, 1];
    let args: [&dyn KernelArg; 3] = [&ids, &logits, &rows];
    // SAFETY: parameters as declared; one block per row; logits and ids were checked on entry; there is
    // shared memory for the keys, entries and bins that `rows` describes.
    unsafe { gpu.launch(kernel, grid, threads, shared, &args) }
}
