// Mean squared error and its gradient.
#include "prelude.cuh"
#include "reduce.cuh"
#include "pack.cuh"

// dx[len] = factor*(x - target), and partials[blocks]: the sum of squares of each `chunk` elements.
// Reads x and target, writes dx; buffers start at multiples of sixteen bytes, so does a chunk.
KERNEL void __launch_bounds__(256) squared_error_chunks(float* __restrict__ partials, act* __restrict__ dx,
                                                        const act* __restrict__ x, const act* __restrict__ target,
                                                        u64 len, u32 chunk, float factor) {
  SMEM(float, shared, 32);
  u64 first = (u64)blockIdx.x * chunk;
  u32 count = (u32)min((u64)chunk, len - first), whole = count - count % PACK;
  x += first, target += first, dx += first;
  float sum = 0.f;
  for (u32 i = threadIdx.x * PACK; i < whole; i += blockDim.x * PACK) {
    float a[PACK], b[PACK];
    load_floats(a, x + i);
    load_floats(b, target + i);
#pragma unroll
    for (int j = 0; j < PACK; j++) {
      float difference = a[j] - b[j];
      sum += difference * difference;
      a[j] = factor * difference;
    }
    store_floats(dx + i, a);
  }
  for (u32 i = whole + threadIdx.x; i < count; i += blockDim.x) {
    float difference = to_float(x[i]) - to_float(target[i]);
    sum += difference * difference;
    dx[i] = from_float<act>(factor * difference);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
REGISTER_KERNEL(squared_error_chunks)

// loss[0]: the mean of all; one block.
KERNEL void __launch_bounds__(1024) squared_error_mean(float* __restrict__ loss, const float* __restrict__ partials,
                                                       u32 chunks, float len) {
  SMEM(float, shared, 32);
  float sum = 0.f;
  for (u32 i = threadIdx.x; i < chunks; i += blockDim.x) sum += partials[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) loss[0] = sum / len;
}
REGISTER_KERNEL(squared_error_mean)
