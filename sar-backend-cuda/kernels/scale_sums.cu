// Sums of per-token values by scale.
#include "prelude.cuh"
#include "schedule.cuh"
#include "block.cuh"

// sums[scales] of values[batch, tokens] over the batch and the tokens of each scale: one block a
// scale, in f64, in an order that the shape fixes.
KERNEL void __launch_bounds__(1024)
scale_sums(float* __restrict__ sums, const float* __restrict__ values, ScaleTable table, u64 batch) {
    SMEM(double, shared, 32);
    const int scale = blockIdx.x;
    const int first = table.first[scale], len = table.first[scale + 1] - first;
    const int tokens = table.first[table.scales];
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < batch * len; i += blockDim.x) {
        sum += values[i / len * tokens + first + i % len];
    }
    sum = block_total(sum, shared);
    if (threadIdx.x == 0) sums[scale] = (float)sum;
}
REGISTER_KERNEL(scale_sums)
