// Group norm, forward and backward, with SiLU fused. A group of a sample is contiguous in memory; it is
// summed in segments, one warp each, whose results are combined in an order that the shape fixes.
#include "prelude.cuh"
#include "reduce.cuh"
#include "pack.cuh"

DEV float sigmoid(float v) { return 1.f / (1.f + expf(-v)); }

// partials[groups, segments, 2]: mean, and sum of squared differences from it, of each segment of
// x[groups, len]. Two passes over a segment, which the second finds in the cache.
KERNEL void __launch_bounds__(256) group_norm_segments(float* __restrict__ partials, const act* __restrict__ x,
                                                       u64 warps, u32 segments, u32 len, u32 segment,
                                                       int step) {
  u64 warp = (u64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (warp >= warps) return;
  u32 lane = threadIdx.x & 31;
  u64 group = warp / segments;
  u32 first = (u32)(warp - group * segments) * segment;
  u32 count = min(segment, len - first);
  const act* from = x + group * len + first;
  float mean = 0.f, squares = 0.f;
  if (step == 1) {
    for (u32 i = lane; i < count; i += 32) mean += to_float(from[i]);
    mean = warp_sum(mean) / (float)count;
    for (u32 i = lane; i < count; i += 32) {
      float difference = to_float(from[i]) - mean;
      squares += difference * difference;
    }
  } else {
    float values[PACK];
    for (u32 i = lane * PACK; i < count; i += 32 * PACK) {
      load_floats(values, from + i);
#pragma unroll
      for (int j = 0; j < PACK; j++) mean += values[j];
    }
    mean = warp_sum(mean) / (float)count;
    for (u32 i = lane * PACK; i < count; i += 32 * PACK) {
      load_floats(values, from + i);
#pragma unroll
      for (int j = 0; j < PACK; j++) {
        float difference = values[j] - mean;
        squares += difference * difference;
      }
    }
  }
  squares = warp_sum(squares);
  if (lane == 0) {
    partials[2 * warp] = mean;
    partials[2 * warp + 1] = squares;
  }
}
REGISTER_KERNEL(group_norm_segments)

// stats[groups, 2]: mean and 1/sigma. Means are added as differences from the first segment's, so that
// a mean far from zero costs no digits of the variance.
KERNEL void __launch_bounds__(256) group_norm_combine(float* __restrict__ stats, const float* __restrict__ partials,
                                                      u32 groups, u32 segments, u32 len, u32 segment, float eps) {
  u32 group = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (group >= groups) return;
  u32 lane = threadIdx.x & 31;
  const float* of_group = partials + (u64)group * segments * 2;
  float base = of_group[0], shift = 0.f, squares = 0.f;
  for (u32 i = lane; i < segments; i += 32) {
    shift += (float)min(segment, len - i * segment) * (of_group[2 * i] - base);
  }
  float mean = base + warp_sum(shift) / (float)len;
  for (u32 i = lane; i < segments; i += 32) {
    float difference = of_group[2 * i] - mean;
    squares += of_group[2 * i + 1] + (float)min(segment, len - i * segment) * difference * difference;
  }
  squares = warp_sum(squares);
  if (lane == 0) {
    stats[2 * group] = mean;
    stats[2 * group + 1] = 1.f / sqrtf(squares / (float)len + eps);
  }
}
REGISTER_KERNEL(group_norm_combine)

DEV float normed(float x, float mean, float scale, float shift, int silu) {
  float v = (x - mean) * scale + shift;
  return silu ? v * sigmoid(v) : v;
}

// y[b, c, area] of x and the statistics of its groups of `width` channels. Reads x, writes y.
KERNEL void __launch_bounds__(256) group_norm_apply(act* __restrict__ y, const act* __restrict__ x,
                                                    const float* __restrict__ stats, const float* __restrict__ weight,
                                                    const float* __restrict__ bias, u64 steps, u32 channels,
                                                    u32 width, u32 area, int silu, int step) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= steps) return;
  u64 at = i * step, plane = at / area, group = plane / width;
  u32 channel = (u32)(plane % channels);
  float mean = stats[2 * group], scale = weight[channel] * stats[2 * group + 1], shift = bias[channel];
  if (step == 1) {
    y[at] = from_float<act>(normed(to_float(x[at]), mean, scale, shift, silu));
    return;
  }
  float values[PACK];
  load_floats(values, x + at);
#pragma unroll
  for (int j = 0; j < PACK; j++) values[j] = normed(values[j], mean, scale, shift, silu);
  store_floats(y + at, values);
}
REGISTER_KERNEL(group_norm_apply)

// The gradient of the affine output, given that after the SiLU.
DEV float before_silu(float dy, float x, float mean, float scale, float shift, int silu) {
  if (!silu) return dy;
  float v = (x - mean) * scale + shift, s = sigmoid(v);
  return dy * s * (1.f + v * (1.f - s));
}

// partials[planes, segments, 2]: of each segment of a plane, the sums of the affine output's gradient
// and of its product with (x - mean). Reads x and dy.
KERNEL void __launch_bounds__(256) group_norm_plane_sums(
    float* __restrict__ partials, const act* __restrict__ dy, const act* __restrict__ x,
    const float* __restrict__ stats, const float* __restrict__ weight, const float* __restrict__ bias, u64 warps,
    u32 segments, u32 channels, u32 width, u32 area, u32 segment, int silu, int step) {
  u64 warp = (u64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (warp >= warps) return;
  u32 lane = threadIdx.x & 31;
  u64 plane = warp / segments, group = plane / width;
  u32 first = (u32)(warp - plane * segments) * segment, count = min(segment, area - first);
  u32 channel = (u32)(plane % channels);
  float mean = stats[2 * group], scale = weight[channel] * stats[2 * group + 1], shift = bias[channel];
  const act* of_x = x + plane * area + first;
  const act* of_dy = dy + plane * area + first;
  float sum = 0.f, product = 0.f;
  if (step == 1) {
    for (u32 i = lane; i < count; i += 32) {
      float at = to_float(of_x[i]), d = before_silu(to_float(of_dy[i]), at, mean, scale, shift, silu);
      sum += d;
      product += d * (at - mean);
    }
  } else {
    float values[PACK], grads[PACK];
    for (u32 i = lane * PACK; i < count; i += 32 * PACK) {
      load_floats(values, of_x + i);
      load_floats(grads, of_dy + i);
#pragma unroll
      for (int j = 0; j < PACK; j++) {
        float d = before_silu(grads[j], values[j], mean, scale, shift, silu);
        sum += d;
        product += d * (values[j] - mean);
      }
    }
  }
  sum = warp_sum(sum);
  product = warp_sum(product);
  if (lane == 0) {
    partials[2 * warp] = sum;
    partials[2 * warp + 1] = product;
  }
}
REGISTER_KERNEL(group_norm_plane_sums)

// sums[planes, 2]: the sums of all segments of a plane, the second times 1/sigma; means[groups, 2]:
// their means over a group, weighted. One warp a group.
KERNEL void __launch_bounds__(256) group_norm_group_sums(float* __restrict__ sums, float* __restrict__ means,
                                                         const float* __restrict__ partials,
                                                         const float* __restrict__ stats,
                                                         const float* __restrict__ weight, u32 groups,
                                                         u32 segments, u32 channels, u32 width, u32 area) {
  u32 group = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (group >= groups) return;
  u32 lane = threadIdx.x & 31;
  float inverse = stats[2 * (u64)group + 1], mean = 0.f, mean_product = 0.f;
  for (u32 c = 0; c < width; c++) {
    u64 plane = (u64)group * width + c;
    const float* of_plane = partials + plane * segments * 2;
    float sum = 0.f, product = 0.f;
    for (u32 i = lane; i < segments; i += 32) {
      sum += of_plane[2 * i];
      product += of_plane[2 * i + 1];
    }
    sum = warp_sum(sum);
    product = warp_sum(product) * inverse;
    float scale = weight[(u32)(plane % channels)];
    mean += scale * sum;
    mean_product += scale * product;
    if (lane == 0) {
      sums[2 * plane] = sum;
      sums[2 * plane + 1] = product;
    }
  }
  if (lane == 0) {
    float count = (float)width * (float)area;
    means[2 * (u64)group] = mean / count;
    means[2 * (u64)group + 1] = mean_product / count;
  }
}
REGISTER_KERNEL(group_norm_group_sums)

// dweight[channels] and dbias[channels] += the sums of a channel's planes, sample by sample.
KERNEL void __launch_bounds__(256) group_norm_params(float* __restrict__ dweight, float* __restrict__ dbias,
                                                     const float* __restrict__ sums, u32 batch, u32 channels) {
  u32 channel = blockIdx.x * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  float of_weight = 0.f, of_bias = 0.f;
  for (u32 sample = 0; sample < batch; sample++) {
    u64 plane = (u64)sample * channels + channel;
    of_bias += sums[2 * plane];
    of_weight += sums[2 * plane + 1];
  }
  dweight[channel] += of_weight;
  dbias[channel] += of_bias;
}
REGISTER_KERNEL(group_norm_params)

// dx = (weight*d - mean(weight*d) - x^*mean(weight*d*x^))/sigma, with d the affine output's gradient and
// x^ the normalised x; added to what dx holds where asked for. Reads x and dy once more, writes dx.
// Divided by sigma last: where values hardly differ the terms cancel, and 1/sigma is large.
KERNEL void __launch_bounds__(256) group_norm_dx(act* __restrict__ dx, const act* __restrict__ dy,
                                                 const act* __restrict__ x, const float* __restrict__ stats,
                                                 const float* __restrict__ weight, const float* __restrict__ bias,
                                                 const float* __restrict__ means, u64 steps, u32 channels,
                                                 u32 width, u32 area, int silu, int accumulate, int step) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= steps) return;
  u64 at = i * step, plane = at / area, group = plane / width;
  u32 channel = (u32)(plane % channels);
  float mean = stats[2 * group], inverse = stats[2 * group + 1];
  float of_weight = weight[channel], scale = of_weight * inverse, shift = bias[channel];
  float of_mean = means[2 * group], of_product = inverse * means[2 * group + 1];
  if (step == 1) {
    float value = to_float(x[at]), d = before_silu(to_float(dy[at]), value, mean, scale, shift, silu);
    float out = inverse * (of_weight * d - of_mean - (value - mean) * of_product);
    dx[at] = from_float<act>(accumulate ? to_float(dx[at]) + out : out);
    return;
  }
  float values[PACK], grads[PACK], out[PACK];
  load_floats(values, x + at);
  load_floats(grads, dy + at);
#pragma unroll
  for (int j = 0; j < PACK; j++) out[j] = 0.f;
  if (accumulate) load_floats(out, dx + at);
#pragma unroll
  for (int j = 0; j < PACK; j++) {
    float d = before_silu(grads[j], values[j], mean, scale, shift, silu);
    out[j] += inverse * (of_weight * d - of_mean - (values[j] - mean) * of_product);
  }
  store_floats(dx + at, out);
}
REGISTER_KERNEL(group_norm_dx)
