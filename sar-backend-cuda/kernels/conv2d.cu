// Convolutions as matrix products: columns of patches, the way back, and the sums of a bias gradient.
#include "prelude.cuh"
#include "reduce.cuh"
#include "pack.cuh"

// Of a part of y, `positions` of each plane[area]: y = sum + bias[outputs]. Sums are in f32, so that y is rounded
// once: `sums`[planes, positions], or in f32 what y holds. `step` is PACK where that divides both and where the part
// begins, else 1.
KERNEL void __launch_bounds__(256) conv_bias(act* y, const float* __restrict__ sums, const float* __restrict__ bias,
                                             u64 steps, u32 outputs, u32 positions, u32 area, int step) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= steps) return;
  u64 at = i * step, plane = at / positions;
  float value = bias[(u32)(plane % outputs)];
  act* to = y + plane * area + (at - plane * positions);
#ifdef ACT_BF16
  const float* from = sums + at;
#else
  const float* from = to;
#endif
  if (step == 1) {
    *to = from_float<act>(*from + value);
    return;
  }
  float values[PACK];
#pragma unroll
  for (int j = 0; j < PACK; j += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + j);
    values[j] = four.x + value, values[j + 1] = four.y + value;
    values[j + 2] = four.z + value, values[j + 3] = four.w + value;
  }
  store_floats(to, values);
}
REGISTER_KERNEL(conv_bias)

// Patches of x[images, inputs, height, width] as columns: row (channel, ky, kx), column the position
// in the band of `positions` outputs that starts with output row `first_row`. Rows are `row_stride`
// apart and images `image_stride`, so that images lie one after the other or side by side.
// A thread owns one position of one plane and all its taps: it divides once, neighbours write
// neighbours, and the kernel*kernel reads of an element hit the cache.
KERNEL void __launch_bounds__(256) im2col(act* __restrict__ columns, const act* __restrict__ x, u32 threads,
                                          u32 inputs, int height, int width, int kernel, int stride, int pad,
                                          u32 out_width, int first_row, u32 positions, u64 row_stride,
                                          u64 image_stride) {
  u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= threads) return;
  u32 plane = thread / positions, position = thread - plane * positions;
  u32 image = plane / inputs, channel = plane - image * inputs;
  u32 out_row = position / out_width;
  int top = (first_row + (int)out_row) * stride - pad;
  int left = (int)(position - out_row * out_width) * stride - pad;
  const act* from = x + (u64)plane * height * width;
  act* to = columns + image * image_stride + (u64)channel * (kernel * kernel) * row_stride + position;
  const act zero = from_float<act>(0.f);
  for (int row = top; row < top + kernel; row++) {
    bool inside = row >= 0 && row < height;
    for (int column = left; column < left + kernel; column++, to += row_stride) {
      *to = inside && column >= 0 && column < width ? from[(u64)row * width + column] : zero;
    }
  }
}
REGISTER_KERNEL(im2col)

// As im2col, for a kernel of 3, stride 1 and a border of 1, width a multiple of PACK: most of the
// tokenizer. A thread owns PACK positions of a row: three rows of PACK + 2 elements in, nine packs out.
// Writes 9 elements for each that it reads.
KERNEL void __launch_bounds__(256) im2col_3x3(act* __restrict__ columns, const act* __restrict__ x, u32 threads,
                                              u32 inputs, int height, int width, int first_row,
                                              u32 positions, u64 row_stride, u64 image_stride) {
  u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= threads) return;
  u32 packs = positions / PACK;
  u32 plane = thread / packs, position = (thread - plane * packs) * PACK;
  u32 image = plane / inputs, channel = plane - image * inputs;
  u32 band_row = position / (u32)width;
  int column = (int)(position - band_row * (u32)width);
  const act* from = x + (u64)plane * height * width;
  act* to = columns + image * image_stride + (u64)channel * 9 * row_stride + position;
  const act zero = from_float<act>(0.f);
#pragma unroll
  for (int ky = 0; ky < 3; ky++) {
    int row = first_row + (int)band_row + ky - 1;
    act window[PACK + 2];
#pragma unroll
    for (int j = 0; j < PACK + 2; j++) window[j] = zero;
    if (row >= 0 && row < height) {
      const act* at = from + (u64)row * width + column;
      act middle[PACK];
      load_acts(middle, at);
#pragma unroll
      for (int j = 0; j < PACK; j++) window[j + 1] = middle[j];
      if (column > 0) window[0] = at[-1];
      if (column + PACK < width) window[PACK + 1] = at[PACK];
    }
#pragma unroll
    for (int kx = 0; kx < 3; kx++, to += row_stride) {
      act shifted[PACK];
#pragma unroll
      for (int j = 0; j < PACK; j++) shifted[j] = window[j + kx];
      store_acts(to, shifted);
    }
  }
}
REGISTER_KERNEL(im2col_3x3)

// dx[images, inputs, height, width], rows first_row .. first_row + rows of it, each element the sum of
// its taps in the columns of outputs first_out .. first_out + out_rows, in the order of the taps: no
// element is written twice, so nothing depends on the order of threads. Reads kernel² elements, writes
// one; neighbours read neighbours.
KERNEL void __launch_bounds__(256) col2im(act* __restrict__ dx, const act* __restrict__ columns, u32 threads,
                                          u32 inputs, int height, u32 width, int kernel, int stride, int pad,
                                          int out_width, int first_row, u32 rows, int first_out, int out_rows,
                                          u64 row_stride, u64 image_stride) {
  u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= threads) return;
  u32 line = thread / width, column = thread - line * width;
  u32 plane = line / rows, row = (u32)first_row + line - plane * rows;
  u32 image = plane / inputs, channel = plane - image * inputs;
  const act* from = columns + image * image_stride + (u64)channel * (kernel * kernel) * row_stride;
  int y = (int)row + pad, x = (int)column + pad;
  int last_y = y / stride, last_x = x / stride;
  float sum = 0.f;
  for (int ky = y - last_y * stride, out_y = last_y - first_out; ky < kernel; ky += stride, out_y--) {
    if (out_y < 0) break;
    if (out_y >= out_rows) continue;
    for (int kx = x - last_x * stride, out_x = last_x; kx < kernel; kx += stride, out_x--) {
      if (out_x < 0) break;
      if (out_x >= out_width) continue;
      sum += to_float(from[(u64)(ky * kernel + kx) * row_stride + (u64)out_y * out_width + out_x]);
    }
  }
  dx[((u64)plane * height + row) * width + column] = from_float<act>(sum);
}
REGISTER_KERNEL(col2im)

// [images, channels, area] as [channels, images, area]: the batch among the terms of a product.
KERNEL void __launch_bounds__(256) conv_channels_first(act* __restrict__ to, const act* __restrict__ from,
                                                       u64 steps, u32 images, u32 channels, u32 area, int step) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= steps) return;
  u64 at = i * step, plane = at / area;
  u32 within = (u32)(at - plane * area), image = (u32)(plane / channels), channel = (u32)(plane % channels);
  u64 target = ((u64)channel * images + image) * area + within;
  if (step == 1) {
    to[target] = from[at];
    return;
  }
  act held[PACK];
  load_acts(held, from + at);
  store_acts(to + target, held);
}
REGISTER_KERNEL(conv_channels_first)

// partials[slices, channels]: dy[images, channels, area] summed over `slice` of the images*area
// elements of a channel, one block a slice. Reads dy once.
KERNEL void __launch_bounds__(256) conv_channel_sums(float* __restrict__ partials, const act* __restrict__ dy,
                                                     u64 length, u32 channels, u32 area, int slice, int step) {
  SMEM(float, shared, 32);
  u32 of_slice = blockIdx.x / channels, channel = blockIdx.x - of_slice * channels;
  u64 first = (u64)of_slice * slice;
  u32 count = (u32)min((u64)slice, length - first);
  u64 image = first / area;
  u32 within = (u32)(first - image * area);
  float sum = 0.f;
  for (u32 i = threadIdx.x * step; i < count; i += blockDim.x * step) {
    u32 images = (within + i) / area, at = within + i - images * area;
    const act* from = dy + ((image + images) * channels + channel) * area + at;
    if (step == 1) {
      sum += to_float(*from);
    } else {
      float values[PACK];
      load_floats(values, from);
#pragma unroll
      for (int j = 0; j < PACK; j++) sum += values[j];
    }
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) partials[(u64)of_slice * channels + channel] = sum;
}
REGISTER_KERNEL(conv_channel_sums)

// to[len] += sums[count, len], in the order of the count.
KERNEL void __launch_bounds__(256) conv_add_sums(float* __restrict__ to, const float* __restrict__ sums,
                                                 u32 count, u32 len) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= len) return;
  float sum = 0.f;
  for (u32 j = 0; j < count; j++) sum += sums[(u64)j * len + i];
  to[i] += sum;
}
REGISTER_KERNEL(conv_add_sums)
