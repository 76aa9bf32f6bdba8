//! L2-normalised, block-causal attention and its backward.
//!
//! One kernel normalises q and k and adds the bias of v, in place: every element is read and written once.
//! (Since rows of probabilities add up to one, the bias of v could be added to the output instead, and v
//! need not be written. But then, where values are equal, what is left of `dP − inner` is the rounding of
//! two different sums: in f32 the gradient of the log-scale of equal keys was 25 times as far off as the
//! CPU backend's.) The forward then goes through the keys tile by tile and never writes scores; the
//! backward computes them again, once per tile of queries and once per tile of keys, so that no sum depends
//! on the order of blocks. Tiles of keys that no query of a tile sees are skipped. Products in bf16 run on
//! tensor cores, those in f32 on f32 units.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, ScaleTable};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::AttentionDims;

/// Biases and log-scales of the heads, or their gradients.
#[derive(Clone, Copy)]
pub(crate) struct HeadParams {
    /// `[C]`.
    pub(crate) q_bias: Address<f32>,
    /// `[C]`.
    pub(crate) v_bias: Address<f32>,
    /// `[H]`.
    pub(crate) scale_mul: Address<f32>,
}

/// Inputs of the backward: the gradient of the output, and what the forward used and saved.
pub(crate) struct Saved<S> {
    pub(crate) d_out: Address<S>,
    pub(crate) out: Address<S>,
    pub(crate) qkv: Address<S>,
    pub(crate) inverse_norms: Address<f32>,
    pub(crate) lse: Address<f32>,
    pub(crate) params: HeadParams,
}

/// Threads of a block.
pub(crate) const THREADS: usize = 128;
/// Rows of the tile that a block owns.
pub(crate) const ROWS: usize = 64;
/// Threads of a block that adds partial sums, and columns that it adds.
const ADD: (usize, usize) = (512, 32);

/// The head sizes that kernels are compiled for; others are padded with zeros to the next.
#[derive(Clone, Copy)]
pub(crate) enum HeadSize {
    D32,
    D64,
    D128,
}

impl HeadSize {
    pub(crate) fn of(op: &'static str, head_dim: usize) -> Result<Self, CudaError> {
        match head_dim {
            0..=32 => Ok(Self::D32),
            33..=64 => Ok(Self::D64),
            65..=128 => Ok(Self::D128),
            _ => Err(CudaError::Unsupported {
                op,
                what: format!(
                    "heads of {head_dim} elements; this backend has kernels for up to 128"
                ),
            }),
        }
    }

    /// The kernel for this head size, given the names for all three.
    pub(crate) fn pick(self, file: &'static str, names: [&'static str; 3]) -> Kernel {
        Kernel { file, name: names[self as usize] }
    }

    fn padded(self) -> usize {
        [32, 64, 128][self as usize]
    }

    /// Rows of the tiles that a block goes through: `Tile::INNER` of `tile.cuh`.
    fn inner(self) -> usize {
        [64, 64, 32][self as usize]
    }

    /// Threads that hold one vector of a head, 16 bytes each.
    fn lanes<S: Storage>(self) -> usize {
        self.padded() * size_of::<S>() / 16
    }

    /// The grid of a kernel in which [`HeadSize::lanes`] threads hold a vector, and each row has `vectors` of them.
    pub(crate) fn vector_grid<S: Storage>(self, rows: usize, vectors: usize) -> [usize; 3] {
        [rows, (vectors * self.lanes::<S>()).div_ceil(THREADS), 1]
    }

    /// Bytes of shared memory of a block that owns `tiles` tiles and goes through pairs of others,
    /// two pairs at a time. A row is padded by 16 bytes.
    pub(crate) fn shared<S: Storage>(self, tiles: usize) -> usize {
        (tiles * ROWS + 4 * self.inner()) * (self.padded() * size_of::<S>() + 16)
    }
}

const FORWARD: &str = "attention";
const BACKWARD: &str = "attention_backward";

const PREPARE: [&str; 3] =
    ["attention_prepare_32", "attention_prepare_64", "attention_prepare_128"];
const ATTEND: [&str; 3] = ["attention_forward_32", "attention_forward_64", "attention_forward_128"];
const INNER: [&str; 3] = ["attention_inner_32", "attention_inner_64", "attention_inner_128"];
const QUERIES: [&str; 3] =
    ["attention_queries_32", "attention_queries_64", "attention_queries_128"];
const KEYS: [&str; 3] = ["attention_keys_32", "attention_keys_64", "attention_keys_128"];
const ADD_PARTIALS: Kernel = Kernel { file: BACKWARD, name: "attention_add_partials" };

/// Elements of q, and the FLOPs of one product over all pairs of tokens that see each other.
fn sizes(dims: &AttentionDims) -> (usize, usize) {
    let AttentionDims { batch, heads, head_dim, schedule } = *dims;
    let seen = |i: usize| schedule.range(i).len() * schedule.range(i).end;
    let pairs: usize = (0..schedule.len()).map(seen).sum();
    let vectors = batch * heads * head_dim;
    (vectors * schedule.tokens(), 2 * vectors * pairs)
}

/// See `TransformerOps::attention`.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: AttentionDims,
    qkv: Address<S>,
    params: HeadParams,
    inverse_norms: Address<f32>,
    lse: Address<f32>,
    out: Address<S>,
) -> Result<(), CudaError> {
    let AttentionDims { batch, heads, head_dim, schedule } = dims;
    if batch * heads * head_dim == 0 {
        return Ok(());
    }
    let size = HeadSize::of("attention", head_dim)?;
    let tokens = schedule.tokens();
    let table = ScaleTable::new(&schedule);
    let (len, pair_flops) = sizes(&dims);
    let (h, d) = (heads as i32, head_dim as i32);
    let HeadParams { q_bias, v_bias, scale_mul } = params;
    let grid = size.vector_grid::<S>(batch * tokens, 3 * heads);
    // SAFETY: parameters as declared; a block works on a row of qkv and inverse_norms, of which
    // there are batch · tokens.
    unsafe {
        let args: [&dyn crate::KernelArg; 7] =
            [&qkv, &inverse_norms, &q_bias, &v_bias, &scale_mul, &h, &d];
        gpu.expect(6 * len, 0, 0);
        gpu.launch(size.pick(FORWARD, PREPARE), grid, THREADS, 0, &args)?;
    }
    let grid = [batch * heads * tokens.div_ceil(ROWS), 1, 1];
    // SAFETY: parameters as declared; a block writes only rows, of one head and sample, that the
    // schedule has.
    unsafe {
        let args: [&dyn crate::KernelArg; 6] = [&out, &lse, &qkv, &table, &h, &d];
        // Two products over every pair of tokens that see each other: scores, and sums of values.
        gpu.expect(4 * len, 0, 2 * pair_flops);
        gpu.launch(size.pick(FORWARD, ATTEND), grid, THREADS, size.shared::<S>(1), &args)
    }
}

/// See `TransformerOps::attention_backward`.
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: AttentionDims,
    saved: &Saved<S>,
    dqkv: Address<S>,
    gradients: &HeadParams,
) -> Result<(), CudaError> {
    let AttentionDims { batch, heads, head_dim, schedule } = dims;
    if batch * heads * head_dim == 0 {
        return Ok(());
    }
    let size = HeadSize::of("attention_backward", head_dim)?;
    let tokens = schedule.tokens();
    let tiles = tokens.div_ceil(ROWS);
    let sums = 2 * head_dim + 1;
    let inner_len = (batch * heads * tokens).next_multiple_of(64);
    let scratch = gpu.scratch((inner_len + batch * tiles * heads * sums) * 4)?.cast::<f32>();
    let (inner, partials) = (scratch, scratch.at(inner_len));

    let &Saved { d_out, out, qkv, inverse_norms, lse, params } = saved;
    let table = ScaleTable::new(&schedule);
    let (len, pair_flops) = sizes(&dims);
    let (l, h, d) = (tokens as i32, heads as i32, head_dim as i32);
    let grid = size.vector_grid::<S>(batch * tokens, heads);
    // SAFETY: parameters as declared; a block works on a row of out, of which there are
    // batch · tokens, and `inner` has a number for each of their heads.
    unsafe {
        let args: [&dyn crate::KernelArg; 6] = [&inner, &d_out, &out, &l, &h, &d];
        gpu.expect(2 * len, 0, 0);
        gpu.launch(size.pick(BACKWARD, INNER), grid, THREADS, 0, &args)?;
    }
    let grid = [batch * heads * tiles, 1, 1];
    // SAFETY: parameters as declared; a block writes rows of a head and sample of dqkv, and its sums
    // to `partials`, which has room for those of every tile, head and sample.
    unsafe {
        let args: [&dyn crate::KernelArg; 11] = [
            &dqkv,
            &partials,
            &d_out,
            &qkv,
            &inverse_norms,
            &lse,
            &inner,
            &params.scale_mul,
            &table,
            &h,
            &d,
        ];
        gpu.expect(5 * len, 0, 3 * pair_flops);
        gpu.launch(size.pick(BACKWARD, QUERIES), grid, THREADS, size.shared::<S>(2), &args)?;
        let args: [&dyn crate::KernelArg; 10] =
            [&dqkv, &partials, &d_out, &qkv, &inverse_norms, &lse, &inner, &table, &h, &d];
        let statistics = 4 * size.inner() * size_of::<f32>();
        let shared = size.shared::<S>(2) + statistics;
        gpu.expect(6 * len, 0, 4 * pair_flops);
        gpu.launch(size.pick(BACKWARD, KEYS), grid, THREADS, shared, &args)?;
    }
    let HeadParams { q_bias, v_bias, scale_mul } = *gradients;
    let (threads, columns) = ADD;
    let rows = (batch * tiles) as u64;
    // SAFETY: parameters as declared; the gradients were checked on entry for these heads.
    unsafe {
        let args: [&dyn crate::KernelArg; 8] =
            [&q_bias, &v_bias, &scale_mul, &params.scale_mul, &partials, &rows, &h, &d];
        gpu.launch(ADD_PARTIALS, [heads, sums.div_ceil(columns), 1], threads, 0, &args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    /// Like the budgets of registers and static shared memory in `kernels/budget.txt`: what a block takes of the
    /// 163 KiB of an A100 or the 227 KiB of an H100 decides how many blocks run side by side.
    #[test]
    fn shared_memory_of_a_block_is_what_was_recorded() {
        let bytes = |head_dim, tiles| {
            let size = HeadSize::of("attention", head_dim).unwrap();
            [size.shared::<bf16>(tiles), size.shared::<f32>(tiles)]
        };
        // The forward: in bf16, at the head size of the published models, a multiprocessor of an A100 has room
        // for three blocks.
        assert_eq!(
            [32, 64, 128].map(|d| bytes(d, 1)),
            [[25600, 46080], [46080, 87040], [52224, 101376]]
        );
        // The backward.
        assert_eq!(
            [32, 64, 128].map(|d| bytes(d, 2)),
            [[30720, 55296], [55296, 104448], [69632, 135168]]
        );
    }
}
