// SiLU, x·σ(x), and its backward. Two activations moved an element forward, three backward.
#include "prelude.cuh"
#include "sigmoid.cuh"
#include "vector.cuh"

#define LOG2_E 1.4426950409f

// y[len] = silu(x[len]); a vector a thread.
KERNEL void __launch_bounds__(256) silu(act* __restrict__ y, const act* __restrict__ x, u64 len) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= len) return;
    float v[VECTOR];
    load_upto(v, x, i, len);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) v[j] *= sigmoid_exp2(v[j] * -LOG2_E);
    store_upto(y, v, i, len);
}
REGISTER_KERNEL(silu)

// dy[len] becomes dy·s·(1 + x·(1−s)), s = σ(x).
KERNEL void __launch_bounds__(256) silu_backward(act* dy, const act* __restrict__ x, u64 len) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= len) return;
    float v[VECTOR], d[VECTOR];
    load_upto(v, x, i, len);
    load_upto(d, dy, i, len);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) {
        const float s = sigmoid_exp2(v[j] * -LOG2_E);
        d[j] *= s * fmaf(v[j], 1.f - s, 1.f);
    }
    store_upto(dy, d, i, len);
}
REGISTER_KERNEL(silu_backward)
