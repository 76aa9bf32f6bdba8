// GELU, tanh form, and its backward: ½x(1+tanh u) is x·σ(2u), u = √(2/π)(x+0.044715x³).
// Two activations moved an element forward, three backward, four of both at once; some 15 instructions,
// so that memory is what it waits for. A tail that fills no vector goes through the same arithmetic.
// The backward sums the columns of what it writes besides.
#include "prelude.cuh"
#include "columns.cuh"
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

// Rows of a warp that are on their way together: what is stored keeps the next loads back.
#define TOGETHER 2

#define BACKWARD_SIZES u64 rows, int columns, int chunk_rows

// dy[rows, columns] becomes dy·(s + x·s·(1−s)·2u'), s = σ(2u), and y, where AGAIN, gelu(x): x may be y.
// partials[chunks, columns], or NULL: dy's column sums over each chunk of `chunk_rows` rows, before it is
// rounded, which saves unpacking it and is nearer to the sum. A block 32·STEP columns of a chunk; those of
// one chunk follow one another, so that rows are read in one piece.
template <bool AGAIN, int STEP>
DEV void backward_columns(const act* x, act* y, act* dy, float* __restrict__ partials, BACKWARD_SIZES) {
    SMEM(float, shared, GROUPS* STEP * 33);
    const u32 across = ((u32)columns + 32 * STEP - 1) / (32 * STEP);
    const u64 chunk = blockIdx.x / across, end = min((chunk + 1) * chunk_rows, rows);
    const int begin = (int)(blockIdx.x % across) * 32 * STEP;
    const int c = begin + (int)(threadIdx.x & 31) * STEP;
    float sum[STEP] = {};
    for (u64 row = chunk * chunk_rows + (threadIdx.x >> 5); row < end && c < columns;
         row += GROUPS * TOGETHER) {
        float v[TOGETHER][STEP], d[TOGETHER][STEP];
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            if (row + r * GROUPS >= end) continue;
            load(v[r], x + (row + r * GROUPS) * columns + c);
            load(d[r], dy + (row + r * GROUPS) * columns + c);
        }
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            if (row + r * GROUPS >= end) continue;
#pragma unroll
            for (int j = 0; j < STEP; j++) {
                const float s = gate(v[r][j]);
                d[r][j] *= slope(v[r][j], s);
                v[r][j] *= s;
                sum[j] += d[r][j];
            }
            if (AGAIN) store(y + (row + r * GROUPS) * columns + c, v[r]);
            store(dy + (row + r * GROUPS) * columns + c, d[r]);
        }
    }
    if (partials) sum_groups(partials + chunk * columns + begin, columns - begin, sum, shared);
}

#define BACKWARD(name, step)                                                                       \
    KERNEL void __launch_bounds__(256)                                                             \
        gelu_##name(const act* __restrict__ x, act* dy, float* __restrict__ partials,              \
                    BACKWARD_SIZES) {                                                              \
        backward_columns<false, step>(x, nullptr, dy, partials, rows, columns, chunk_rows);        \
    }                                                                                              \
    REGISTER_KERNEL(gelu_##name)                                                                   \
    KERNEL void __launch_bounds__(256)                                                             \
        regelu_##name(act* x, act* dy, float* __restrict__ partials, BACKWARD_SIZES) {             \
        backward_columns<true, step>(x, x, dy, partials, rows, columns, chunk_rows);               \
    }                                                                                              \
    REGISTER_KERNEL(regelu_##name)

BACKWARD(backward, VECTOR)
// Columns that are no whole vectors.
BACKWARD(backward_any, 1)
