// Cross-entropy of rows of logits against hard targets: one block a row, which is read once.
#include "prelude.cuh"
#include "reduce.cuh"
#include "schedule.cuh"
#include "block.cuh"
#include "softmax.cuh"

// What a row is besides its softmax: `below` is the sum of x - base over the row, `beaten` whether
// another logit is the prediction.
struct AgainstTarget {
    float value;  // logit of the target
    float base;   // it, or 0 where it is not finite
    float below;
    int target, beaten;
};

template <int N> DEV void compare(AgainstTarget& row, const float (&x)[N], int first) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        row.below += x[i] - row.base;
        row.beaten |= first + i < row.target ? x[i] >= row.value : x[i] > row.value;
    }
}

// Of each row of logits[rows, vocab], with its target t = targets[target row]:
//   lse   = log sum exp x
//   loss  = lse - peak x_t - even sum x, with peak = 1 - smoothing and even = smoothing / vocab
//   hits  = 1 where x_t is the first of the largest, else 0
// A target outside the vocabulary makes loss and lse NaN, so that the step is skipped.
//
// Memory: 2 (bf16) or 4 bytes a logit, once. Everything is written in differences to a logit of the
// row, so that an offset common to all costs no precision.
KERNEL void __launch_bounds__(256)
cross_entropy_forward(float* __restrict__ loss, float* __restrict__ hits, float* __restrict__ lse,
                      const act* __restrict__ logits, const u32* __restrict__ targets, int vocab,
                      int tokens, int target_tokens, int target_shift, double peak, double even) {
    SMEM(float, shared, 32);
    const u32 row = blockIdx.x;
    const u32 target = targets[target_row(row, tokens, target_tokens, target_shift)];
    if (target >= (u32)vocab) {
        if (threadIdx.x == 0) loss[row] = NAN, lse[row] = NAN, hits[row] = 0.f;
        return;
    }
    const act* x = logits + (u64)row * vocab;
    const int N = Lanes<act>::n;
    AgainstTarget against = {to_float(x[target]), 0.f, 0.f, (int)target, 0};
    // Differences to an infinity would be NaN where the loss is an infinity.
    if (fabsf(against.value) < INFINITY) against.base = against.value;
    Softmax sums = {-INFINITY, 0.f};
    if (vocab % N == 0) {
        for (int i = threadIdx.x * N; i < vocab; i += blockDim.x * N) {
            float v[N];
            load16(x + i, v);
            add(sums, v);
            compare(against, v, i);
        }
    } else {
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
            float v[1] = {to_float(x[i])};
            add(sums, v);
            compare(against, v, i);
        }
    }
    const float largest = block_max(sums.largest, shared);
    const float sum = block_sum(rescaled(sums, largest), shared);
    const float below = block_sum(against.below, shared);
    const float beaten = block_max(against.beaten ? 1.f : 0.f, shared);
    if (threadIdx.x != 0) return;
    const double log_sum = logf(sum);
    const double ahead = (double)largest - against.value;
    double value = log_sum + peak * ahead;
    if (even != 0.0) {
        value -= even * (below + vocab * ((double)against.base - largest));
    }
    loss[row] = (float)value;
    lse[row] = largest + (float)log_sum;
    hits[row] = beaten == 0.f && against.value == largest ? 1.f : 0.f;
}
REGISTER_KERNEL(cross_entropy_forward)

struct TargetGradient {
    float weight, lse, even, peak;
    int target;
};

template <int N> DEV void to_gradient(const TargetGradient& row, float (&x)[N], int first) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float gradient = row.weight * (expf(x[i] - row.lse) - row.even);
        x[i] = first + i == row.target ? gradient - row.weight * row.peak : gradient;
    }
}

// In place: x[rows, vocab] becomes weight (softmax x - target). A row of weight 0 becomes 0 without
// being read, since it may hold NaN; one whose target lies outside the vocabulary becomes NaN.
//
// Memory: every logit read and written once.
KERNEL void __launch_bounds__(256)
cross_entropy_backward(act* __restrict__ logits, const u32* __restrict__ targets,
                       const float* __restrict__ lse, ScaleTable table, ScaleWeights weights,
                       int vocab, int target_tokens, int target_shift, float peak, float even) {
    const u32 row = blockIdx.x;
    const int tokens = table.first[table.scales];
    const float weight = weights.of_scale[scale_of(table, row % tokens)];
    act* x = logits + (u64)row * vocab;
    const int N = Lanes<act>::n;
    if (weight == 0.f) {
        zero_row(x, vocab);
        return;
    }
    const u32 target = targets[target_row(row, tokens, target_tokens, target_shift)];
    const bool known = target < (u32)vocab;
    const TargetGradient of_row = {known ? weight : NAN, lse[row], even, peak, (int)target};
    if (vocab % N == 0) {
        for (int i = threadIdx.x * N; i < vocab; i += blockDim.x * N) {
            float v[N];
            load16(x + i, v);
            to_gradient(of_row, v, i);
            store16(x + i, v);
        }
    } else {
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
            float v[1] = {to_float(x[i])};
            to_gradient(of_row, v, i);
            x[i] = from_float<act>(v[0]);
        }
    }
}
REGISTER_KERNEL(cross_entropy_backward)
