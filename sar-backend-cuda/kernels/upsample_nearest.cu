// Nearest x2 in both directions. A thread owns one element of the small map: it reads or writes two
// neighbours of two rows of the large one, each pair in one access.
#include "prelude.cuh"

#ifdef ACT_BF16
typedef u32 Pair;
DEV Pair pair_of(act v) { return v.bits | (u32)v.bits << 16; }
DEV float pair_sum(Pair p) { return __uint_as_float(p << 16) + __uint_as_float(p & 0xffff0000u); }
#else
typedef float2 Pair;
DEV Pair pair_of(act v) { return make_float2(v, v); }
DEV float pair_sum(Pair p) { return p.x + p.y; }
#endif

// y[rows, 2, width, 2] of x[rows, width], `rows` those of all planes: 1 element in, 4 out.
KERNEL void __launch_bounds__(256) upsample_forward(act* __restrict__ y, const act* __restrict__ x, u64 len,
                                                    u32 width) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= len) return;
  u64 row = i / width, column = i - row * width;
  Pair pair = pair_of(x[i]);
  Pair* to = reinterpret_cast<Pair*>(y) + 2 * row * width + column;
  to[0] = pair;
  to[width] = pair;
}
REGISTER_KERNEL(upsample_forward)

// dx[rows, width]: the sums of the four elements of dy[rows, 2, width, 2].
KERNEL void __launch_bounds__(256) upsample_backward(act* __restrict__ dx, const act* __restrict__ dy, u64 len,
                                                     u32 width) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= len) return;
  u64 row = i / width, column = i - row * width;
  const Pair* from = reinterpret_cast<const Pair*>(dy) + 2 * row * width + column;
  dx[i] = from_float<act>(pair_sum(from[0]) + pair_sum(from[width]));
}
REGISTER_KERNEL(upsample_backward)
