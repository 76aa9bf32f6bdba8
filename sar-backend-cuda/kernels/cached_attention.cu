// Attention of the tokens of one scale on all tokens so far, whose keys and values are kept in
// cache[2, batch, heads, capacity, d]: first the keys, then the values.
#include "prelude.cuh"
#include "tile.cuh"
#include "heads.cuh"
#include "attend.cuh"

// Normalises the new tokens, qkv[batch, tokens, 3, heads, d]: q in place, k and v into the cache
// from token `past` on. A block a token and 128 / lanes vectors.
template <int D> DEV void append(act* __restrict__ qkv, act* __restrict__ cache,
                                 const HeadParams& params, int batch, int tokens, int past,
                                 int capacity, int heads, int d) {
  constexpr int LANES = D / CHUNK;
  const int row = blockIdx.x, vector = (blockIdx.y * THREADS + threadIdx.x) / LANES;
  const int c = threadIdx.x % LANES * CHUNK;
  // Lanes without a vector still take part in the sums.
  const bool exists = vector < 3 * heads;
  const int part = exists ? vector / heads : 2, head = exists ? vector % heads : 0;
  act* const at = qkv + ((u64)row * 3 * heads + (exists ? vector : 0)) * d;
  float x[CHUNK] = {};
  if (exists) load_chunk(x, at, c, d);  // spare lanes point at vector 0, which its owner may be writing
  normalize<D>(x, part, head, c, d, params);
  if (!exists) return;
  act* to = at;
  if (part > 0) {
    const int sample = row / tokens, token = past + row % tokens;
    const u64 kept = ((u64)(part - 1) * batch + sample) * heads + head;
    to = cache + (kept * capacity + token) * d;
  }
  store_chunk(to, x, c, d);
}

// out[batch, tokens, heads, d]; a block a tile of the new tokens, each of which sees all `past +
// tokens`. Keys are not split over blocks: scales that give few tiles of queries also have few
// keys.
template <int D> DEV void forward(act* __restrict__ out, const act* __restrict__ qkv,
                                  const act* __restrict__ cache, int batch, int tokens, int past,
                                  int capacity, int heads, int d) {
  const int tiles = (tokens + ROWS - 1) / ROWS, tile = blockIdx.x % tiles,
            task = blockIdx.x / tiles;
  const int head = task % heads, width = heads * d;
  const u64 sample = task / heads;
  const act* const q = qkv + sample * tokens * 3 * width + head * d;
  const act* const k = cache + (u64)task * capacity * d;
  attend<D>(q, 3 * width, k, k + (u64)batch * heads * capacity * d, d,
            out + sample * tokens * width + head * d, width, nullptr,
            tokens - (tiles - tile) * ROWS, d, [&](int (&limits)[5], const int (&)[5]) {
#pragma unroll
              for (int i = 0; i < 5; i++) limits[i] = past + tokens;
            });
}

#define CACHED_ATTENTION(D, BLOCKS)                                                             \
  KERNEL void __launch_bounds__(THREADS) cached_attention_append_##D(                           \
      act* __restrict__ qkv, act* __restrict__ cache, const float* __restrict__ q_bias,         \
      const float* __restrict__ v_bias, const float* __restrict__ scale_mul, int batch,         \
      int tokens, int past, int capacity, int heads, int d) {                                   \
    append<D>(qkv, cache, HeadParams{q_bias, v_bias, scale_mul}, batch, tokens, past, capacity, \
              heads, d);                                                                        \
  }                                                                                             \
  REGISTER_KERNEL(cached_attention_append_##D)                                                  \
  KERNEL void __launch_bounds__(THREADS, BLOCKS) cached_attention_forward_##D(                  \
      act* __restrict__ out, const act* __restrict__ qkv, const act* __restrict__ cache,        \
      int batch, int tokens, int past, int capacity, int heads, int d) {                        \
    forward<D>(out, qkv, cache, batch, tokens, past, capacity, heads, d);                       \
  }                                                                                             \
  REGISTER_KERNEL(cached_attention_forward_##D)

CACHED_ATTENTION(32, 3)
CACHED_ATTENTION(64, 3)
CACHED_ATTENTION(128, 2)
