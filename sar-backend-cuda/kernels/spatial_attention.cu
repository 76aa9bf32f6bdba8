// The softmax of one-head attention over a map and its gradient; the products are matrix products.
#include "prelude.cuh"
#include "reduce.cuh"

// probabilities[rows, columns] = softmax(scale*scores[rows, columns]), scale > 0; one warp a row, which
// it reads three times, from the cache but for the first.
KERNEL void __launch_bounds__(256) spatial_softmax(act* __restrict__ probabilities,
                                                   const float* __restrict__ scores, u64 rows, u32 columns,
                                                   float scale) {
  u64 row = (u64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (row >= rows) return;
  u32 lane = threadIdx.x & 31;
  const float* from = scores + row * columns;
  float largest = -INFINITY, sum = 0.f;
  for (u32 i = lane; i < columns; i += 32) largest = fmaxf(largest, from[i]);
  largest = warp_max(largest);
  for (u32 i = lane; i < columns; i += 32) sum += expf((from[i] - largest) * scale);
  float inverse = 1.f / warp_sum(sum);
  for (u32 i = lane; i < columns; i += 32) {
    probabilities[row * columns + i] = from_float<act>(expf((from[i] - largest) * scale) * inverse);
  }
}
REGISTER_KERNEL(spatial_softmax)

// dscores = scale*p*(dp - sum(p*dp)) of p[rows, columns] and dp[rows, columns]; one warp a row.
KERNEL void __launch_bounds__(256) spatial_softmax_backward(act* __restrict__ dscores,
                                                            const act* __restrict__ probabilities,
                                                            const float* __restrict__ dp, u64 rows, u32 columns,
                                                            float scale) {
  u64 row = (u64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (row >= rows) return;
  u32 lane = threadIdx.x & 31;
  const act* p = probabilities + row * columns;
  dp += row * columns, dscores += row * columns;
  float dot = 0.f;
  for (u32 i = lane; i < columns; i += 32) dot += to_float(p[i]) * dp[i];
  dot = warp_sum(dot);
  for (u32 i = lane; i < columns; i += 32) {
    dscores[i] = from_float<act>(scale * to_float(p[i]) * (dp[i] - dot));
  }
}
REGISTER_KERNEL(spatial_softmax_backward)
