// The norm of all gradients, in two stages; all sums in f64, as squares of large gradients overflow
// f32 and 3e8 small ones are lost in it.
#include "prelude.cuh"
#include "block.cuh"

// partials[blocks]: the squares of `chunk` gradients of grads[len], summed. `chunk` is a multiple of
// 4. Memory: 4 bytes a gradient.
KERNEL void __launch_bounds__(256)
sum_squares(double* __restrict__ partials, const float* __restrict__ grads, u64 len, u64 chunk) {
    SMEM(double, shared, 32);
    const u64 first = blockIdx.x * chunk;
    const u64 end = first + chunk < len ? first + chunk : len, whole = end / 4 * 4;
    double sum = 0.0;
    for (u64 i = first + threadIdx.x * 4; i < whole; i += blockDim.x * 4) {
        float g[4];
        load16(grads + i, g);
        sum += ((double)g[0] * g[0] + (double)g[1] * g[1]) +
               ((double)g[2] * g[2] + (double)g[3] * g[3]);
    }
    // What is left of the last chunk, at most three.
    if (whole + threadIdx.x < end) {
        const double g = grads[whole + threadIdx.x];
        sum += g * g;
    }
    sum = block_total(sum, shared);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
REGISTER_KERNEL(sum_squares)

// norm[0] = the root of the sum of partials[chunks]: one block.
KERNEL void __launch_bounds__(1024)
norm_of_partials(float* __restrict__ norm, const double* __restrict__ partials, u64 chunks) {
    SMEM(double, shared, 32);
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < chunks; i += blockDim.x) sum += partials[i];
    sum = block_total(sum, shared);
    if (threadIdx.x == 0) norm[0] = (float)sqrt(sum);
}
REGISTER_KERNEL(norm_of_partials)
