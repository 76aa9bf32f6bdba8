// Sums and maxima over a warp and over a block, in an order that the shape alone fixes.
#pragma once

DEV float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

DEV float warp_max(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// Over all threads of a block of whole warps; every thread gets the sum. `shared` holds 32 floats and
// may be used again at once.
DEV float block_sum(float v, float* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  v = warp_sum(lane < warps ? shared[lane] : 0.f);
  __syncthreads();  // before anyone writes to `shared` again
  return v;
}

// As block_sum, of the largest.
DEV float block_max(float v, float* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_max(v);
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  v = warp_max(lane < warps ? shared[lane] : -INFINITY);
  __syncthreads();
  return v;
}
