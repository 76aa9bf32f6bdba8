// Quantisation to the nearest code, forward and backward. Ids must not depend on how a product is
// contracted: compiled without contraction, and where a fused product is meant it is written fmaf.
#include "prelude.cuh"
#include "reduce.cuh"

// Under the root of an L2 norm: NORMALIZE_EPS of sar-math.
#define LEAST_NORM 1e-12f
// Positions and codes of a tile of the search, and channels of both that it holds at a time.
#define TILE 64
#define DEPTH 16

// units[channels, positions] of z[b, channels, area], normalised over channels, and norms[positions].
// Channel by channel, so that neighbouring threads read and write neighbours.
KERNEL void __launch_bounds__(256) quantize_units(float* __restrict__ units, float* __restrict__ norms,
                                                  const act* __restrict__ z, u32 positions, u32 channels,
                                                  u32 area) {
  u32 position = blockIdx.x * blockDim.x + threadIdx.x;
  if (position >= positions) return;
  u32 sample = position / area;
  const act* from = z + (u64)sample * channels * area + (position - sample * area);
  float sum = 0.f;
  for (u32 c = 0; c < channels; c++) {
    float v = to_float(from[(u64)c * area]);
    sum += v * v;
  }
  float norm = sqrtf(sum);
  if (norm < LEAST_NORM) norm = LEAST_NORM;
  for (u32 c = 0; c < channels; c++) units[(u64)c * positions + position] = to_float(from[(u64)c * area]) / norm;
  norms[position] = norm;
}
REGISTER_KERNEL(quantize_units)

// units[channels, vocab] of codebook[vocab, channels], norms[vocab], and halves[vocab]: half the squared
// length of a unit code, which is not quite a half.
KERNEL void __launch_bounds__(256) quantize_codes(float* __restrict__ units, float* __restrict__ norms,
                                                  float* __restrict__ halves, const float* __restrict__ codebook,
                                                  u32 vocab, u32 channels) {
  u32 code = blockIdx.x * blockDim.x + threadIdx.x;
  if (code >= vocab) return;
  const float* from = codebook + (u64)code * channels;
  float sum = 0.f;
  for (u32 c = 0; c < channels; c++) sum += from[c] * from[c];
  float norm = sqrtf(sum);
  if (norm < LEAST_NORM) norm = LEAST_NORM;
  sum = 0.f;
  for (u32 c = 0; c < channels; c++) {
    float unit = from[c] / norm;
    units[(u64)c * vocab + code] = unit;
    sum += unit * unit;
  }
  norms[code] = norm;
  halves[code] = 0.5f * sum;
}
REGISTER_KERNEL(quantize_codes)

// The nearest code of each position among codes blockIdx.y*share .. +share: distances[slices, positions]
// (halves - z.e, which orders codes as their distance does) and nearest[slices, positions], the lowest
// of equals. z_units[channels, positions], codes[channels, vocab].
// 2*positions*vocab*channels FLOPs; a thread owns 4 positions by 4 codes of a tile of 64 by 64, so each
// two reads of sixteen bytes from shared memory feed 16 products.
KERNEL void __launch_bounds__(256) quantize_search(float* __restrict__ distances, u32* __restrict__ nearest,
                                                   const float* __restrict__ z_units,
                                                   const float* __restrict__ codes,
                                                   const float* __restrict__ halves, u32 positions, u32 vocab,
                                                   u32 channels, u32 share) {
  SMEM(float, z_tile, DEPTH * TILE);
  SMEM(float, code_tile, DEPTH * TILE);
  u32 first = blockIdx.x * TILE;
  u32 begin = blockIdx.y * share, end = min(vocab, begin + share);
  u32 across = threadIdx.x & 15, down = threadIdx.x >> 4;
  u32 load_at = threadIdx.x & (TILE - 1), load_row = threadIdx.x / TILE;
  float least[4];
  u32 best[4];
#pragma unroll
  for (int i = 0; i < 4; i++) least[i] = INFINITY, best[i] = begin;
  for (u32 tile = begin; tile < end; tile += TILE) {
    float sums[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) sums[i][j] = 0.f;
    }
    for (u32 depth = 0; depth < channels; depth += DEPTH) {
      // Zeros beyond the channels leave a sum as it is.
#pragma unroll
      for (u32 pass = 0; pass < DEPTH; pass += 256 / TILE) {
        u32 k = pass + load_row, c = depth + k, position = first + load_at, code = tile + load_at;
        z_tile[k * TILE + load_at] =
            c < channels && position < positions ? z_units[(u64)c * positions + position] : 0.f;
        code_tile[k * TILE + load_at] = c < channels && code < end ? codes[(u64)c * vocab + code] : 0.f;
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < DEPTH; k++) {
        float4 a = *reinterpret_cast<const float4*>(z_tile + k * TILE + down * 4);
        float4 b = *reinterpret_cast<const float4*>(code_tile + k * TILE + across * 4);
        const float z[4] = {a.x, a.y, a.z, a.w}, e[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) sums[i][j] = fmaf(z[i], e[j], sums[i][j]);
        }
      }
      __syncthreads();  // before the tiles are filled again
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 code = tile + across * 4 + j;
      float half = code < end ? halves[code] : INFINITY;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float distance = half - sums[i][j];
        if (distance < least[i]) least[i] = distance, best[i] = code;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    // Sixteen lanes hold the best of their codes: the smallest of them, the lowest where equal.
#pragma unroll
    for (int offset = 8; offset > 0; offset >>= 1) {
      float distance = __shfl_xor_sync(0xffffffffu, least[i], offset);
      u32 code = __shfl_xor_sync(0xffffffffu, best[i], offset);
      if (distance < least[i] || (distance == least[i] && code < best[i])) least[i] = distance, best[i] = code;
    }
    u32 position = first + down * 4 + i;
    if (across == 0 && position < positions) {
      distances[(u64)blockIdx.y * positions + position] = least[i];
      nearest[(u64)blockIdx.y * positions + position] = best[i];
    }
  }
}
REGISTER_KERNEL(quantize_search)

// The best of all slices, ids[positions], its unit code in the map quantized[b, channels, area], and
// partials[blocks]: the sum of (z - e)^2 over the positions of a block.
KERNEL void __launch_bounds__(256) quantize_take(act* __restrict__ quantized, u32* __restrict__ ids,
                                                 float* __restrict__ partials, const float* __restrict__ distances,
                                                 const u32* __restrict__ nearest,
                                                 const float* __restrict__ z_units,
                                                 const float* __restrict__ codes, u32 positions, u32 vocab,
                                                 u32 channels, u32 area, u32 slices) {
  SMEM(float, shared, 32);
  u32 position = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0.f;
  if (position < positions) {
    float least = distances[position];
    u32 best = nearest[position];
    for (u32 slice = 1; slice < slices; slice++) {
      float distance = distances[(u64)slice * positions + position];
      if (distance < least) least = distance, best = nearest[(u64)slice * positions + position];
    }
    ids[position] = best;
    u32 sample = position / area;
    act* to = quantized + (u64)sample * channels * area + (position - sample * area);
    for (u32 c = 0; c < channels; c++) {
      float code = codes[(u64)c * vocab + best];
      float difference = z_units[(u64)c * positions + position] - code;
      sum += difference * difference;
      to[(u64)c * area] = from_float<act>(code);
    }
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
REGISTER_KERNEL(quantize_take)

// distance[0]: the mean over `len` elements; one block.
KERNEL void __launch_bounds__(256) quantize_distance(float* __restrict__ distance,
                                                     const float* __restrict__ partials, u32 blocks, float len) {
  SMEM(float, shared, 32);
  float sum = 0.f;
  for (u32 i = threadIdx.x; i < blocks; i += blockDim.x) sum += partials[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) distance[0] = sum / len;
}
REGISTER_KERNEL(quantize_distance)

// dz[b, channels, area]: d = d_quantized + commitment*(z - e) through z's normalisation, which is
// (d - z(z.d))/norm, and d/norm where the norm is clamped. NaN where an id is no code.
KERNEL void __launch_bounds__(256) quantize_dz(act* __restrict__ dz, const act* __restrict__ d_quantized,
                                               const u32* __restrict__ ids, const float* __restrict__ z_units,
                                               const float* __restrict__ norms, const float* __restrict__ codes,
                                               u32 positions, u32 vocab, u32 channels, u32 area,
                                               float commitment) {
  u32 position = blockIdx.x * blockDim.x + threadIdx.x;
  if (position >= positions) return;
  u32 sample = position / area, id = ids[position];
  u64 offset = (u64)sample * channels * area + (position - sample * area);
  d_quantized += offset, dz += offset;
  if (id >= vocab) {
    for (u32 c = 0; c < channels; c++) dz[(u64)c * area] = from_float<act>(NAN);
    return;
  }
  float norm = norms[position], dot = 0.f;
  if (norm > LEAST_NORM) {
    for (u32 c = 0; c < channels; c++) {
      float unit = z_units[(u64)c * positions + position], code = codes[(u64)c * vocab + id];
      dot += unit * (to_float(d_quantized[(u64)c * area]) + commitment * (unit - code));
    }
  }
  for (u32 c = 0; c < channels; c++) {
    float unit = z_units[(u64)c * positions + position], code = codes[(u64)c * vocab + id];
    float d = to_float(d_quantized[(u64)c * area]) + commitment * (unit - code);
    dz[(u64)c * area] = from_float<act>((d - unit * dot) / norm);
  }
}
REGISTER_KERNEL(quantize_dz)

// sums[segments, vocab, channels]: over the positions of a segment that chose a code, in their order,
// z - e. A warp owns a code, a segment and 32 channels; it looks through the segment's ids, which the
// warps beside it read too, and stops where one is its own.
KERNEL void __launch_bounds__(256) quantize_code_sums(float* __restrict__ sums, const u32* __restrict__ ids,
                                                      const float* __restrict__ z_units,
                                                      const float* __restrict__ codes, u32 warps, u32 positions,
                                                      u32 vocab, u32 channels, u32 segment) {
  u32 warp = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (warp >= warps) return;
  u32 lane = threadIdx.x & 31, of_segment = warp / vocab, code = warp - of_segment * vocab;
  u32 c = blockIdx.y * 32 + lane;
  u32 first = of_segment * segment, end = min(positions, first + segment);
  float unit = c < channels ? codes[(u64)c * vocab + code] : 0.f, sum = 0.f;
  for (u32 base = first; base < end; base += 32) {
    u32 position = base + lane;
    u32 chosen = __ballot_sync(0xffffffffu, position < end && ids[position] == code);
    while (chosen != 0) {
      u32 at = base + (u32)__ffs((int)chosen) - 1;
      chosen &= chosen - 1;
      if (c < channels) sum += z_units[(u64)c * positions + at] - unit;
    }
  }
  if (c < channels) sums[((u64)of_segment * vocab + code) * channels + c] = sum;
}
REGISTER_KERNEL(quantize_code_sums)

// dcodebook[vocab, channels] += d = -moving*(the sums of all segments, in order) through the code's
// normalisation. One warp a code.
KERNEL void __launch_bounds__(256) quantize_dcodes(float* __restrict__ dcodebook, const float* __restrict__ sums,
                                                   const float* __restrict__ codes,
                                                   const float* __restrict__ norms, u32 vocab, u32 channels,
                                                   u32 segments, float moving) {
  u32 code = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (code >= vocab) return;
  u32 lane = threadIdx.x & 31;
  float norm = norms[code], dot = 0.f;
  for (int pass = 0; pass < 2; pass++) {
    for (u32 c = lane; c < channels; c += 32) {
      float sum = 0.f;
      for (u32 i = 0; i < segments; i++) sum += sums[((u64)i * vocab + code) * channels + c];
      float d = -moving * sum, unit = codes[(u64)c * vocab + code];
      if (pass == 0) {
        dot += unit * d;
      } else {
        dcodebook[(u64)code * channels + c] += (d - unit * dot) / norm;
      }
    }
    if (pass == 0) dot = norm > LEAST_NORM ? warp_sum(dot) : 0.f;
  }
}
REGISTER_KERNEL(quantize_dcodes)
