// Codes that are given, in place of those that were chosen.
#include "prelude.cuh"

// ids[batch, tokens] = given where kept is not 0, for `span` tokens of a sample from `first` on.
KERNEL void __launch_bounds__(256)
keep_codes(u32* __restrict__ ids, const u32* __restrict__ kept, const u32* __restrict__ given,
           u64 len, int tokens, int first, int span) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    const u64 at = i / span * tokens + first + i % span;
    if (kept[at]) ids[at] = given[at];
}
REGISTER_KERNEL(keep_codes)
