// L2-normalised, block-causal attention: what it makes of q, k and v, and its forward.
#include "prelude.cuh"
#include "schedule.cuh"
#include "limits.cuh"
#include "tile.cuh"
#include "heads.cuh"
#include "attend.cuh"

// In place on qkv[rows, 3, heads, d]: see normalize. inverse_norms[rows, 2, heads] receives 1 / |.|
// of q and k. A block a row and 128 / lanes vectors; every element is read once and written once.
template <int D> DEV void prepare(act* __restrict__ qkv, float* __restrict__ inverse_norms,
                                  const HeadParams& params, int heads, int d) {
  constexpr int LANES = D / CHUNK;
  const u64 row = blockIdx.x;
  const int vector = (blockIdx.y * THREADS + threadIdx.x) / LANES, c = threadIdx.x % LANES * CHUNK;
  // Lanes without a vector still take part in the sums.
  const bool exists = vector < 3 * heads;
  const int part = exists ? vector / heads : 2, head = exists ? vector % heads : 0;
  act* const at = qkv + (row * 3 * heads + (exists ? vector : 0)) * d;
  float x[CHUNK] = {};
  if (exists) load_chunk(x, at, c, d);  // spare lanes point at vector 0, which its owner may be writing
  const float inverse = normalize<D>(x, part, head, c, d, params);
  if (!exists) return;
  store_chunk(at, x, c, d);
  if (part < 2 && c == 0) inverse_norms[(row * 2 + part) * heads + head] = inverse;
}

// out[batch, tokens, heads, d] and lse[batch, heads, tokens] of prepared qkv[batch, tokens, 3,
// heads, d]. A block a tile of queries; tiles are aligned to the last token, since the last scale,
// the largest, then falls on whole tiles, and those that see most keys come first. Per head and
// sample 4 d FLOP for each pair of a token and one that it sees, and (4 d + 1) tokens elements of
// memory.
template <int D> DEV void forward(act* __restrict__ out, float* __restrict__ lse,
                                  const act* __restrict__ qkv, const ScaleTable& table, int heads,
                                  int d) {
  const int tokens = table.first[table.scales], tiles = (tokens + ROWS - 1) / ROWS;
  const int tile = tiles - 1 - blockIdx.x % tiles, task = blockIdx.x / tiles, head = task % heads;
  const u64 sample = task / heads;
  const int width = heads * d;
  const act* const q = qkv + sample * tokens * 3 * width + head * d;
  attend<D>(q, 3 * width, q + width, q + 2 * width, 3 * width,
            out + sample * tokens * width + head * d, width, lse + (u64)task * tokens,
            tokens - (tiles - tile) * ROWS, d,
            [&](int (&limits)[5], const int (&rows)[5]) { visible_to(limits, rows, table); });
}

#define ATTENTION(D, BLOCKS)                                                                      \
  KERNEL void __launch_bounds__(THREADS) attention_prepare_##D(                                   \
      act* __restrict__ qkv, float* __restrict__ inverse_norms, const float* __restrict__ q_bias, \
      const float* __restrict__ v_bias, const float* __restrict__ scale_mul, int heads, int d) {  \
    prepare<D>(qkv, inverse_norms, HeadParams{q_bias, v_bias, scale_mul}, heads, d);              \
  }                                                                                               \
  REGISTER_KERNEL(attention_prepare_##D)                                                          \
  KERNEL void __launch_bounds__(THREADS, BLOCKS) attention_forward_##D(                           \
      act* __restrict__ out, float* __restrict__ lse, const act* __restrict__ qkv,                \
      const ScaleTable table, int heads, int d) {                                                 \
    forward<D>(out, lse, qkv, table, heads, d);                                                   \
  }                                                                                               \
  REGISTER_KERNEL(attention_forward_##D)

ATTENTION(32, 3)
ATTENTION(64, 3)
ATTENTION(128, 2)
