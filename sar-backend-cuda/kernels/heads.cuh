// Vectors of heads: q, k and v of a token, each of d <= D elements, 16 bytes a lane, so that D /
// CHUNK neighbouring lanes hold a vector. After tile.cuh, for CHUNK.
#pragma once

#define NORMALIZE_EPS 1e-12f              // the least that a norm counts as
#define SCALE_MUL_MAX 4.605170249938965f  // ln 100 in f32: the ceiling of scale_mul

// Elements c .. c + CHUNK of a vector, zero from d on.
DEV void load_chunk(float (&x)[CHUNK], const act* vector, int c, int d) {
  if (d % CHUNK == 0) {
    uint4 word = make_uint4(0, 0, 0, 0);
    if (c < d) word = *reinterpret_cast<const uint4*>(vector + c);
    const act* elements = reinterpret_cast<const act*>(&word);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) x[i] = to_float(elements[i]);
  } else {
#pragma unroll
    for (int i = 0; i < CHUNK; i++) x[i] = c + i < d ? to_float(vector[c + i]) : 0.f;
  }
}

DEV void store_chunk(act* vector, const float (&x)[CHUNK], int c, int d) {
  if (d % CHUNK == 0) {
    uint4 word;
    act* elements = reinterpret_cast<act*>(&word);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) elements[i] = from_float<act>(x[i]);
    if (c < d) *reinterpret_cast<uint4*>(vector + c) = word;
  } else {
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
      if (c + i < d) vector[c + i] = from_float<act>(x[i]);
  }
}

// The sum over the lanes of a vector. All lanes of the warp take part.
template <int D> DEV float sum_of_head(float v) {
#pragma unroll
  for (int offset = D / CHUNK / 2; offset > 0; offset >>= 1)
    v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// exp(min(scale_mul, ln 100)), and NaN for NaN.
DEV float head_scale(float scale_mul) {
  return expf(scale_mul > SCALE_MUL_MAX ? SCALE_MUL_MAX : scale_mul);
}

// Parameters of attention: biases [heads * d] and log-scales [heads], in f32.
struct HeadParams {
  const float* q_bias;
  const float* v_bias;
  const float* scale_mul;
};

// What attention makes of q (part 0: scale (q + bias) / |q + bias|), k (1: k / |k|) and v (2: v +
// bias) of a head, in place. Returns 1 / |.|. All lanes of the warp take part.
template <int D>
DEV float normalize(float (&x)[CHUNK], int part, int head, int c, int d, const HeadParams& params) {
  if (part != 1) {
    const float* bias = (part == 0 ? params.q_bias : params.v_bias) + head * d;
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
      if (c + i < d) x[i] += bias[c + i];
  }
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) squares += x[i] * x[i];
  float norm = sqrtf(sum_of_head<D>(squares));
  // Not fmaxf, which would hide a NaN.
  float inverse = 1.f / (norm < NORMALIZE_EPS ? NORMALIZE_EPS : norm);
  float by = part == 0 ? head_scale(params.scale_mul[head]) * inverse : inverse;
  if (part != 2) {
#pragma unroll
    for (int i = 0; i < CHUNK; i++) x[i] *= by;
  }
  return inverse;
}
