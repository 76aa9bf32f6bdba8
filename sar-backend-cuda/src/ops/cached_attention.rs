//! Attention of one scale on all before it, whose keys and values are kept.
//!
//! The cache is `[2, b, h, capacity, d]`: keys, then values, normalised and biased as attention takes
//! them, and laid out so that those of a head are read in one stretch. One kernel appends those of the
//! new tokens (and normalises q in place); a second is the forward of attention without a mask.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::attention::{HeadParams, HeadSize, ROWS, THREADS};
use crate::storage::Storage;
use sar_math::backend::CachedAttentionDims;

const OP: &str = "cached_attention";
const APPEND: [&str; 3] =
    ["cached_attention_append_32", "cached_attention_append_64", "cached_attention_append_128"];
const ATTEND: [&str; 3] =
    ["cached_attention_forward_32", "cached_attention_forward_64", "cached_attention_forward_128"];

/// See `RolloutOps::cached_attention`.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: CachedAttentionDims,
    qkv: Address<S>,
    params: HeadParams,
    cache: Address<S>,
    out: Address<S>,
) -> Result<(), CudaError> {
    let CachedAttentionDims { batch, heads, head_dim, past, tokens, capacity } = dims;
    if batch * tokens * heads * head_dim == 0 {
        return Ok(());
    }
    let size = HeadSize::of(OP, head_dim)?;
    let HeadParams { q_bias, v_bias, scale_mul } = params;
    let [b, l, past, capacity, h, d] =
        [batch, tokens, past, capacity, heads, head_dim].map(|n| n as i32);
    let grid = size.vector_grid::<S>(batch * tokens, 3 * heads);
    // SAFETY: parameters as declared; a block works on a row of qkv, of which there are
    // batch · tokens, and past + tokens ≤ capacity was checked on entry.
    unsafe {
        let args: [&dyn crate::KernelArg; 11] =
            [&qkv, &cache, &q_bias, &v_bias, &scale_mul, &b, &l, &past, &capacity, &h, &d];
        gpu.launch(size.pick(OP, APPEND), grid, THREADS, 0, &args)?;
    }
    let grid = [batch * heads * tokens.div_ceil(ROWS), 1, 1];
    // SAFETY: parameters as declared; a block writes only rows of a head and sample that exist, and
    // reads the past + tokens rows of the cache that have been written.
    unsafe {
        let args: [&dyn crate::KernelArg; 9] =
            [&out, &qkv, &cache, &b, &l, &past, &capacity, &h, &d];
        gpu.launch(size.pick(OP, ATTEND), grid, THREADS, size.shared::<S>(1), &args)
    }
}
