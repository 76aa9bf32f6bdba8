// GELU, tanh form, and its backward: ½x(1+tanh u) is x·σ(2u), u = √(2/π)(x+0.044715x³).
// Two activations moved an element forward, three backward, four of both at once; some 15 instructions,
// so that memory is what it waits for. A tail that fills no vector goes through the same arithmetic.
#include "prelude.cuh"
#include "sigmoid.cuh"
#include "vector.cuh"

// σ(2u) = 1/(1+2^t), t = x·(A + B·x²): A = −2√(2/π)·log₂e, B = 0.044715·A.
#define A (-2.3022081942f)
#define B (-0.1029432397f)
// 2u' = SLOPE·(1 + CUBIC·x²): 2√(2/π) and 3·0.044715.
#define SLOPE 1.5957691216f
#define CUBIC 0.134145f

DEV float gate(float x) { return sigmoid_exp2(x * fmaf(B, x * x, A)); }

// gelu'(x), of the gate s.
DEV float slope(float x, float s) {
    return fmaf(x * s * (1.f - s), SLOPE * fmaf(CUBIC, x * x, 1.f), s);
}

// y[len] = gelu(x[len]); a vector a thread.
KERNEL void __launch_bounds__(256) gelu(act* __restrict__ y, const act* __restrict__ x, u64 len) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= len) return;
    float v[VECTOR];
    load_upto(v, x, i, len);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) v[j] *= gate(v[j]);
    store_upto(y, v, i, len);
}
REGISTER_KERNEL(gelu)

// dy[len] becomes dy·(s + x·s·(1−s)·2u'), s = σ(2u).
KERNEL void __launch_bounds__(256) gelu_backward(act* dy, const act* __restrict__ x, u64 len) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= len) return;
    float v[VECTOR], d[VECTOR];
    load_upto(v, x, i, len);
    load_upto(d, dy, i, len);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) d[j] *= slope(v[j], gate(v[j]));
    store_upto(dy, d, i, len);
}
REGISTER_KERNEL(gelu_backward)

// x[len] becomes y and dy[len] becomes dx: what the two above give.
KERNEL void __launch_bounds__(256) regelu_backward(act* x, act* dy, u64 len) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i >= len) return;
    float v[VECTOR], d[VECTOR];
    load_upto(v, x, i, len);
    load_upto(d, dy, i, len);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) {
        const float s = gate(v[j]);
        d[j] *= slope(v[j], s);
        v[j] *= s;
    }
    store_upto(x, v, i, len);
    store_upto(dy, d, i, len);
}
REGISTER_KERNEL(regelu_backward)
