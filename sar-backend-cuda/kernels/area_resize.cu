// Adaptive average pooling: output o of m averages inputs floor(o*n/m) .. ceil((o+1)*n/m) - 1 of n.
#include "prelude.cuh"

// Bounds of the bin of output `o`; with the two lengths exchanged, of the outputs whose bins hold an
// input: bins overlap by the same rule either way.
DEV u32 bin_start(u32 n, u32 m, u32 o) { return (u32)((u64)o * n / m); }
DEV u32 bin_end(u32 n, u32 m, u32 o) { return (u32)(((u64)(o + 1) * n + m - 1) / m); }

// y[planes, to_height, to_width] of x[planes, height, width]; a thread an output.
KERNEL void __launch_bounds__(256) area_resize_forward(act* __restrict__ y, const act* __restrict__ x, u64 len,
                                                       u32 height, u32 width, u32 to_height, u32 to_width) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= len) return;
  u64 plane = i / ((u64)to_height * to_width);
  u32 within = (u32)(i - plane * to_height * to_width), row = within / to_width, column = within - row * to_width;
  u32 top = bin_start(height, to_height, row), bottom = bin_end(height, to_height, row);
  u32 left = bin_start(width, to_width, column), right = bin_end(width, to_width, column);
  const act* from = x + plane * height * width;
  float sum = 0.f;
  for (u32 r = top; r < bottom; r++) {
    for (u32 c = left; c < right; c++) sum += to_float(from[(u64)r * width + c]);
  }
  y[i] = from_float<act>(sum / (float)((bottom - top) * (right - left)));
}
REGISTER_KERNEL(area_resize_forward)

// dx[planes, height, width] of dy[planes, to_height, to_width]: an input gathers the shares of the
// outputs that average it, in their order.
KERNEL void __launch_bounds__(256) area_resize_backward(act* __restrict__ dx, const act* __restrict__ dy,
                                                        u64 len, u32 height, u32 width, u32 to_height,
                                                        u32 to_width) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= len) return;
  u64 plane = i / ((u64)height * width);
  u32 within = (u32)(i - plane * height * width), row = within / width, column = within - row * width;
  u32 top = bin_start(to_height, height, row), bottom = bin_end(to_height, height, row);
  u32 left = bin_start(to_width, width, column), right = bin_end(to_width, width, column);
  const act* from = dy + plane * to_height * to_width;
  float sum = 0.f;
  for (u32 r = top; r < bottom; r++) {
    u32 tall = bin_end(height, to_height, r) - bin_start(height, to_height, r);
    for (u32 c = left; c < right; c++) {
      u32 wide = bin_end(width, to_width, c) - bin_start(width, to_width, c);
      sum += to_float(from[(u64)r * to_width + c]) / (float)(tall * wide);
    }
  }
  dx[i] = from_float<act>(sum);
}
REGISTER_KERNEL(area_resize_backward)
