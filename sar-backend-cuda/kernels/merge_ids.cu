// Some scales of one set of ids, the others of another.
#include "prelude.cuh"
#include "schedule.cuh"

// ids[batch, tokens] = other where bit `scale` of `from_other` is set.
KERNEL void __launch_bounds__(256)
merge_ids(u32* __restrict__ ids, const u32* __restrict__ other, ScaleTable table, u64 len,
          u32 from_other) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    const int token = i % table.first[table.scales];
    if (from_other >> scale_of(table, token) & 1u) ids[i] = other[i];
}
REGISTER_KERNEL(merge_ids)
