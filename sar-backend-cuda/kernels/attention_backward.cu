// Backward of L2-normalised, block-causal attention. Probabilities are computed again from the
// log-sum-exps, once by a block that owns a tile of queries and once by one that owns a tile of
// keys: seven products a pair of tiles instead of five, and no sum that depends on the order of
// blocks.
#include "prelude.cuh"
#include "schedule.cuh"
#include "limits.cuh"
#include "tile.cuh"
#include "heads.cuh"

// What the forward left, and the gradient of its output: d_out[batch, tokens, heads, d],
// qkv[batch, tokens, 3, heads, d] prepared, inverse_norms[batch, tokens, 2, heads], and of each row
// the log-sum-exp and the sum of d_out * out, both [batch, heads, tokens].
struct Saved {
  const act* d_out;
  const act* qkv;
  const float* inverse_norms;
  const float* lse;
  const float* inner;
};

// The head of a sample that a block works on.
struct Place {
  u64 sample;
  int head, heads, tokens, d;
};

// Offset of q (0), k (1) or v (2) of token 0 in qkv; tokens are 3 heads d elements apart.
DEV u64 qkv_at(const Place& at, int part) {
  return (at.sample * at.tokens * 3 + part) * at.heads * at.d + at.head * at.d;
}
// Offset of token 0 in d_out; tokens are heads d elements apart.
DEV u64 out_at(const Place& at) { return at.sample * at.tokens * at.heads * at.d + at.head * at.d; }
// Offset of 1 / |q| (0) or 1 / |k| (1).
DEV u64 norm_at(const Place& at, int token, int part) {
  return ((at.sample * at.tokens + token) * 2 + part) * at.heads + at.head;
}
// Offset of token 0 in lse and inner.
DEV u64 row_at(const Place& at) { return (at.sample * at.heads + at.head) * at.tokens; }
// Offset of this head's sums over a tile: q bias [d], v bias [d], log-scale.
DEV u64 partials_at(const Place& at, int tile, int tiles) {
  return ((at.sample * tiles + tile) * at.heads + at.head) * (2 * at.d + 1);
}

// inner[batch, heads, tokens]: the sum of d_out * out over each head's vector.
template <int D> DEV void inner_products(float* __restrict__ inner, const act* __restrict__ d_out,
                                         const act* __restrict__ out, int tokens, int heads,
                                         int d) {
  constexpr int LANES = D / CHUNK;
  const int row = blockIdx.x, head = (blockIdx.y * THREADS + threadIdx.x) / LANES;
  const int c = threadIdx.x % LANES * CHUNK;
  const bool exists = head < heads;
  const u64 at = ((u64)row * heads + (exists ? head : 0)) * d;
  float x[CHUNK], y[CHUNK], sum = 0.f;
  load_chunk(x, d_out + at, c, d);
  load_chunk(y, out + at, c, d);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) sum += x[i] * y[i];
  sum = sum_of_head<D>(sum);
  const int sample = row / tokens, token = row % tokens;
  if (exists && c == 0) inner[((u64)sample * heads + head) * tokens + token] = sum;
}

// From the gradient c of y = factor x / |x| to that of x, for a warp's 16 rows of y in shared
// memory; `inverse` is 1 / |x| of the lane's two rows, whose sums of c * y are returned in `along`.
// Where the norm was clamped it is a constant, and nothing is projected out.
template <int D> DEV void through_norm(float (&c)[D / 8][4], const act* rows,
                                       const float (&inverse)[2], float factor, float (&along)[2]) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const act* y = rows + ((lane >> 2) + 8 * half) * Tile<D>::STRIDE + (lane & 3) * 2;
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
      const float2 pair = load_pair(y + j * 8);
      sum += c[j][2 * half] * pair.x + c[j][2 * half + 1] * pair.y;
    }
    along[half] = quad_sum(sum);
    const bool clamped = inverse[half] >= 1.f / NORMALIZE_EPS;
    const float project = clamped ? 0.f : along[half] / factor / factor,
                by = factor * inverse[half];
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
      const float2 pair = load_pair(y + j * 8);
      c[j][2 * half] = by * (c[j][2 * half] - pair.x * project);
      c[j][2 * half + 1] = by * (c[j][2 * half + 1] - pair.y * project);
    }
  }
}

// What is read of a block's own rows, which every tile that it goes through meets: two operands are held in
// registers where these have room.
template <int D> struct OwnRows {
  using Type = HeldRows<D>;
};
template <> struct OwnRows<128> {
  using Type = SharedRows<128>;
};
template <int D> DEV void hold(SharedRows<D>& own, const act* rows) { own.rows = rows; }

// The sum over the lanes that hold the same column of a product.
DEV float column_sum(float v) {
#pragma unroll
  for (int offset = 4; offset < 32; offset <<= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// sums[D] of this warp: a product's columns over its 16 rows.
template <int D> DEV void column_sums(const float (&c)[D / 8][4], float* sums) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float sum = column_sum(c[j][e] + c[j][2 + e]);
      if (lane < 4) sums[j * 8 + lane * 2 + e] = sum;
    }
}

// The gradient of q: a block a tile of queries, aligned to the last token as in the forward. Row by
// row dS = P (dP - inner), dq = dS k, then through bias and normalisation. Shared memory: 2 ROWS +
// 4 INNER rows.
template <int D> DEV void query_gradients(act* __restrict__ dqkv, float* __restrict__ partials,
                                          const Saved& saved, const float* __restrict__ scale_mul,
                                          const ScaleTable& table, int heads, int d) {
  constexpr int STRIDE = Tile<D>::STRIDE, KEYS = Tile<D>::INNER;
  DYN_SMEM(act, shared);
  act* const q_tile = shared;
  act* const d_out_tile = shared + ROWS * STRIDE;
  act* const stages = shared + 2 * ROWS * STRIDE;  // twice: keys, values
  const int tokens = table.first[table.scales], tiles = (tokens + ROWS - 1) / ROWS;
  const int tile = tiles - 1 - blockIdx.x % tiles, task = blockIdx.x / tiles;
  const Place place = {(u64)(task / heads), task % heads, heads, tokens, d};
  const int width = heads * d, first = tokens - (tiles - tile) * ROWS;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int warp_first = first + warp * 16, warp_last = warp_first + 15;
  const int row[2] = {warp_first + (lane >> 2), warp_first + (lane >> 2) + 8};
  const act* const k = saved.qkv + qkv_at(place, 1);
  const act* const v = saved.qkv + qkv_at(place, 2);

  load_tile<D, ROWS>(q_tile, saved.qkv + qkv_at(place, 0), 3 * width, first, tokens, d);
  load_tile<D, ROWS>(d_out_tile, saved.d_out + out_at(place), width, first, tokens, d);
  // Of the lane's rows; then keys that all, and that some, rows of this warp see, and that some of
  // the block do.
  int limits[5];
  visible_to(limits, {row[0], row[1], warp_first, warp_last, first + ROWS - 1}, table);
  const int all = limits[2], some = warp_last < 0 ? 0 : limits[3], end = limits[4];
  load_tile<D, KEYS>(stages, k, 3 * width, 0, end, d);
  load_tile<D, KEYS>(stages + KEYS * STRIDE, v, 3 * width, 0, end, d);
  cp_commit();
  // A row that does not exist is zero in q and d_out, and has no gradient.
  float offset[2], inner[2], inverse[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const bool exists = row[half] >= 0;
    offset[half] = exists ? offset_of(saved.lse[row_at(place) + row[half]]) : 0.f;
    inner[half] = exists ? saved.inner[row_at(place) + row[half]] : 0.f;
    inverse[half] = exists ? saved.inverse_norms[norm_at(place, row[half], 0)] : 0.f;
  }
  act* const own = q_tile + warp * 16 * STRIDE;
  cp_wait<0>();
  __syncthreads();
  typename OwnRows<D>::Type queries, d_outs;
  hold(queries, own);
  hold(d_outs, d_out_tile + warp * 16 * STRIDE);

  float dq[D / 8][4] = {};
  act* stage = stages;
  act* next = stages + 2 * KEYS * STRIDE;
  for (int key = 0; key < end; key += KEYS) {
    cp_wait<0>();
    __syncthreads();
    if (key + KEYS < end) {
      load_tile<D, KEYS>(next, k, 3 * width, key + KEYS, end, d);
      load_tile<D, KEYS>(next + KEYS * STRIDE, v, 3 * width, key + KEYS, end, d);
    }
    cp_commit();
    if (key < some) {
      float s[KEYS / 8][4] = {}, dp[KEYS / 8][4] = {};
      multiply_transposed<D, KEYS>(s, queries, stage);
      if (key + KEYS > all) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (key + j * 8 + (lane & 3) * 2 + (e & 1) >= limits[e >> 1]) s[j][e] = -INFINITY;
      }
      multiply_transposed<D, KEYS>(dp, d_outs, stage + KEYS * STRIDE);
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          s[j][e] = exp_minus(s[j][e], offset[e >> 1]) * (dp[j][e] - inner[e >> 1]);
      multiply<D, KEYS>(dq, s, stage);
    }
    act* used = stage;
    stage = next, next = used;
  }

  float along[2];
  through_norm<D>(dq, own, inverse, head_scale(scale_mul[place.head]), along);
  __syncthreads();  // before the stages are used for other things
  float* const sums = reinterpret_cast<float*>(stages);
  column_sums<D>(dq, sums + warp * (D + 1));
  const float along_rows = column_sum(along[0] + along[1]);
  if (lane == 0) sums[warp * (D + 1) + D] = along_rows;
  store_rows<D>(own, dq, dqkv + qkv_at(place, 0), 3 * width, warp_first,
                tokens, d);
  __syncthreads();
  float* const to = partials + partials_at(place, tile, tiles);
  for (int i = threadIdx.x; i <= D; i += THREADS) {
    float sum = 0.f;
    for (int w = 0; w < THREADS / 32; w++) sum += sums[w * (D + 1) + i];
    if (i < d) to[i] = sum;
    if (i == D) to[2 * d] = sum;
  }
}

// The gradients of k and v: a block a tile of keys, which goes through the queries that see them,
// transposed: S^T = k q^T, dv = P^T d_out, dP^T = v d_out^T, dk = dS^T q. Shared memory: 2 ROWS + 4
// INNER rows, and 4 INNER floats.
template <int D> DEV void key_gradients(act* __restrict__ dqkv, float* __restrict__ partials,
                                        const Saved& saved, const ScaleTable& table, int heads,
                                        int d) {
  constexpr int STRIDE = Tile<D>::STRIDE, QUERIES = Tile<D>::INNER;
  DYN_SMEM(act, shared);
  act* const k_tile = shared;
  act* const v_tile = shared + ROWS * STRIDE;
  act* const stages = shared + 2 * ROWS * STRIDE;  // twice: queries, gradients of their outputs
  float* const statistics =
      reinterpret_cast<float*>(stages + 4 * QUERIES * STRIDE);  // twice: lse, inner
  const int tokens = table.first[table.scales], tiles = (tokens + ROWS - 1) / ROWS;
  const int tile = blockIdx.x % tiles, task = blockIdx.x / tiles;
  const Place place = {(u64)(task / heads), task % heads, heads, tokens, d};
  const int width = heads * d, first = tile * ROWS;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, thread = threadIdx.x;
  const int warp_first = first + warp * 16;
  const int key[2] = {warp_first + (lane >> 2), warp_first + (lane >> 2) + 8};
  const act* const q = saved.qkv + qkv_at(place, 0);
  const act* const d_out = saved.d_out + out_at(place);

  // A thread brings one number of a query: the forward's log-sum-exp, or the sum of d_out * out.
  const auto statistic = [&](int from) {
    const int at = from + thread % QUERIES;
    if (at < 0 || thread >= 2 * QUERIES) return 0.f;
    return thread < QUERIES ? offset_of(saved.lse[row_at(place) + at])
                            : saved.inner[row_at(place) + at];
  };

  load_tile<D, ROWS>(k_tile, saved.qkv + qkv_at(place, 1), 3 * width, first, tokens, d);
  load_tile<D, ROWS>(v_tile, saved.qkv + qkv_at(place, 2), 3 * width, first, tokens, d);
  // From which query on the lane's keys are seen; some, and all, keys of this warp; some of the
  // block.
  int seen[5];
  seen_from(seen, {key[0], key[1], warp_first, warp_first + 15, first}, table);
  const int some = seen[2], all = seen[3];
  // Tiles of queries are aligned to the last token; those before token 0 are zero, and count
  // nothing.
  int query = tokens - ((tokens - 1 - seen[4]) / QUERIES + 1) * QUERIES;
  load_tile<D, QUERIES>(stages, q, 3 * width, query, tokens, d);
  load_tile<D, QUERIES>(stages + QUERIES * STRIDE, d_out, width, query, tokens, d);
  cp_commit();
  if (thread < 2 * QUERIES) statistics[thread] = statistic(query);
  act* const own_keys = k_tile + warp * 16 * STRIDE;
  act* const own_values = v_tile + warp * 16 * STRIDE;
  cp_wait<0>();
  __syncthreads();
  typename OwnRows<D>::Type keys, values;
  hold(keys, own_keys);
  hold(values, own_values);

  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  for (int parity = 0; query < tokens; query += QUERIES, parity ^= 1) {
    const act* const stage = stages + parity * 2 * QUERIES * STRIDE;
    act* const next = stages + (parity ^ 1) * 2 * QUERIES * STRIDE;
    const float* const lse = statistics + parity * 2 * QUERIES;
    const float* const inner = lse + QUERIES;
    cp_wait<0>();
    __syncthreads();
    const bool more = query + QUERIES < tokens;
    float fetched = 0.f;
    if (more) {
      load_tile<D, QUERIES>(next, q, 3 * width, query + QUERIES, tokens, d);
      load_tile<D, QUERIES>(next + QUERIES * STRIDE, d_out, width, query + QUERIES, tokens, d);
      fetched = statistic(query + QUERIES);
    }
    cp_commit();
    if (query + QUERIES > some) {
      float s[QUERIES / 8][4] = {}, dp[QUERIES / 8][4] = {};
      multiply_transposed<D, QUERIES>(s, keys, stage);
      if (query < all) {
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++)
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (query + j * 8 + (lane & 3) * 2 + (e & 1) < seen[e >> 1]) s[j][e] = -INFINITY;
      }
#pragma unroll
      for (int j = 0; j < QUERIES / 8; j++) {
        const float2 pair = load_pair(lse + j * 8 + (lane & 3) * 2);
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] = exp_minus(s[j][e], e & 1 ? pair.y : pair.x);
      }
      multiply<D, QUERIES>(dv, s, stage + QUERIES * STRIDE);
      multiply_transposed<D, QUERIES>(dp, values, stage + QUERIES * STRIDE);
#pragma unroll
      for (int j = 0; j < QUERIES / 8; j++) {
        const float2 pair = load_pair(inner + j * 8 + (lane & 3) * 2);
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] *= dp[j][e] - (e & 1 ? pair.y : pair.x);
      }
      multiply<D, QUERIES>(dk, s, stage);
    }
    // Written only now: the read has had the products' time to arrive.
    if (more && thread < 2 * QUERIES) statistics[(parity ^ 1) * 2 * QUERIES + thread] = fetched;
  }

  float inverse[2], along[2];
#pragma unroll
  for (int half = 0; half < 2; half++)
    inverse[half] = key[half] < tokens ? saved.inverse_norms[norm_at(place, key[half], 1)] : 0.f;
  through_norm<D>(dk, own_keys, inverse, 1.f, along);
  __syncthreads();  // before the stages are used for other things
  float* const sums = reinterpret_cast<float*>(stages);
  column_sums<D>(dv, sums + warp * D);
  store_rows<D>(own_keys, dk, dqkv + qkv_at(place, 1), 3 * width, warp_first, tokens, d);
  store_rows<D>(own_values, dv, dqkv + qkv_at(place, 2), 3 * width, warp_first,
                tokens, d);
  __syncthreads();
  for (int i = thread; i < d; i += THREADS) {
    float sum = 0.f;
    for (int w = 0; w < THREADS / 32; w++) sum += sums[w * D + i];
    partials[partials_at(place, tile, tiles) + d + i] = sum;
  }
}

#define ATTENTION_BACKWARD(D, BLOCKS)                                                            \
  KERNEL void __launch_bounds__(THREADS)                                                         \
      attention_inner_##D(float* __restrict__ inner, const act* __restrict__ d_out,              \
                          const act* __restrict__ out, int tokens, int heads, int d) {           \
    inner_products<D>(inner, d_out, out, tokens, heads, d);                                      \
  }                                                                                              \
  REGISTER_KERNEL(attention_inner_##D)                                                           \
  KERNEL void __launch_bounds__(THREADS, BLOCKS) attention_queries_##D(                          \
      act* __restrict__ dqkv, float* __restrict__ partials, const act* __restrict__ d_out,       \
      const act* __restrict__ qkv, const float* __restrict__ inverse_norms,                      \
      const float* __restrict__ lse, const float* __restrict__ inner,                            \
      const float* __restrict__ scale_mul, const ScaleTable table, int heads, int d) {           \
    query_gradients<D>(dqkv, partials, Saved{d_out, qkv, inverse_norms, lse, inner}, scale_mul,  \
                       table, heads, d);                                                         \
  }                                                                                              \
  REGISTER_KERNEL(attention_queries_##D)                                                         \
  KERNEL void __launch_bounds__(THREADS, BLOCKS) attention_keys_##D(                             \
      act* __restrict__ dqkv, float* __restrict__ partials, const act* __restrict__ d_out,       \
      const act* __restrict__ qkv, const float* __restrict__ inverse_norms,                      \
      const float* __restrict__ lse, const float* __restrict__ inner, const ScaleTable table,    \
      int heads, int d) {                                                                        \
    key_gradients<D>(dqkv, partials, Saved{d_out, qkv, inverse_norms, lse, inner}, table, heads, \
                     d);                                                                         \
  }                                                                                              \
  REGISTER_KERNEL(attention_keys_##D)

ATTENTION_BACKWARD(32, 2)
ATTENTION_BACKWARD(64, 2)
ATTENTION_BACKWARD(128, 1)

// Adds partials[rows, heads, 2 d + 1] to the gradients of q bias [heads * d], v bias [heads * d]
// and log-scale [heads]. A block a head and 32 columns; its 16 groups of 32 lanes take rows in
// turn. Above its ceiling a log-scale has no gradient.
KERNEL void __launch_bounds__(512)
    attention_add_partials(float* __restrict__ q_bias, float* __restrict__ v_bias,
                           float* __restrict__ log_scale, const float* __restrict__ scale_mul,
                           const float* __restrict__ partials, u64 rows, int heads, int d) {
  SMEM(float, sums, 512);
  const int head = blockIdx.x, group = threadIdx.x >> 5,
            column = blockIdx.y * 32 + (threadIdx.x & 31);
  const int width = 2 * d + 1;
  float sum = 0.f;
  if (column < width)
    for (u64 row = group; row < rows; row += 16)
      sum += partials[(row * heads + head) * width + column];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (group > 0 || column >= width) return;
  sum = 0.f;
  for (int i = 0; i < 16; i++) sum += sums[i * 32 + threadIdx.x];
  if (column < d) {
    q_bias[head * d + column] += sum;
  } else if (column < 2 * d) {
    v_bias[head * d + column - d] += sum;
  } else if (!(scale_mul[head] > SCALE_MUL_MAX)) {
    log_scale[head] += sum;
  }
}
REGISTER_KERNEL(attention_add_partials)
