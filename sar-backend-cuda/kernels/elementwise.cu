// Addition of activations, for gradients that meet.
#include "prelude.cuh"

KERNEL void __launch_bounds__(256) add(act* __restrict__ to, const act* __restrict__ from, u64 len) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < len) to[i] = from_float<act>(to_float(to[i]) + to_float(from[i]));
}
REGISTER_KERNEL(add)
