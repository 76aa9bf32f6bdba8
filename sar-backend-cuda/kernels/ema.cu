// Running average of the weights.
#include "prelude.cuh"
#include "block.cuh"

// average[len] = decay average + rest params, in f32. A thread has four neighbours.
// Memory: 12 bytes a parameter.
KERNEL void __launch_bounds__(256)
ema(float* __restrict__ average, const float* __restrict__ params, u64 len, float decay,
    float rest) {
    const u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (first + 4 <= len) {
        float a[4], p[4];
        load16(average + first, a);
        load16(params + first, p);
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = decay * a[i] + rest * p[i];
        store16(average + first, a);
    } else {
        for (u64 i = first; i < len; i++) average[i] = decay * average[i] + rest * params[i];
    }
}
REGISTER_KERNEL(ema)
