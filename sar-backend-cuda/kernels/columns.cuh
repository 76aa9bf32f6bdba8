// Sums over the rows of a matrix by blocks of warps that take rows in turn, whose lanes take columns.
#pragma once

// Warps of a block.
#define GROUPS 8

// to[columns], at most 32·STEP of them: what the warps have summed of each, in the order of warps. `shared`
// holds GROUPS·STEP·33 floats: one of padding, so that lanes that are neighbours in memory are not all in one
// bank.
template <int STEP> DEV void sum_groups(float* to, int columns, const float (&sum)[STEP], float* shared) {
    const int lane = threadIdx.x & 31, group = threadIdx.x >> 5;
#pragma unroll
    for (int j = 0; j < STEP; j++) shared[(group * STEP + j) * 33 + lane] = sum[j];
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * STEP && i < columns; i += blockDim.x) {
        float total = 0.f;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) total += shared[(g * STEP + i % STEP) * 33 + i / STEP];
        to[i] = total;
    }
}
