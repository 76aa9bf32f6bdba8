// The softmax of a row of logits as one thread comes by its elements, and what both cross-entropies
// share.
#pragma once

// sum = Σ exp(x - largest) of what was added so far; a NaN is passed over in `largest` and stays in
// `sum`.
struct Softmax {
    float largest, sum;
};

// What is subtracted: before anything above -infinity has come, nothing.
DEV float base_of(float largest) { return largest == -INFINITY ? 0.f : largest; }

template <int N> DEV void add(Softmax& row, const float (&x)[N]) {
    float largest = row.largest;
#pragma unroll
    for (int i = 0; i < N; i++) largest = fmaxf(largest, x[i]);
    if (largest > row.largest) {
        row.sum *= expf(row.largest - largest);
        row.largest = largest;
    }
    const float base = base_of(row.largest);
#pragma unroll
    for (int i = 0; i < N; i++) row.sum += expf(x[i] - base);
}

// The sum as a part of that of a row whose largest logit is `largest`.
DEV float rescaled(const Softmax& part, float largest) {
    return part.sum * expf(part.largest - base_of(largest));
}

// The row of the target (or teacher) of logits row `row`: `TargetRows::of`.
DEV u64 target_row(u32 row, int tokens, int target_tokens, int shift) {
    return (u64)(row / tokens) * target_tokens + row % tokens + shift;
}

DEV void zero_row(act* x, int vocab) {
    const int N = Lanes<act>::n;
    if (vocab % N == 0) {
        const float zero[N] = {};
        for (int i = threadIdx.x * N; i < vocab; i += blockDim.x * N) store16(x + i, zero);
    } else {
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) x[i] = from_float<act>(0.f);
    }
}
