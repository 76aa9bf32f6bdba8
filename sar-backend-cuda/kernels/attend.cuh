// The forward of attention for a tile of queries: scores, softmax and output key tile by key tile,
// as in FlashAttention (Dao et al. 2022). Shared by attention.cu and cached_attention.cu.
#pragma once

// Rows first .. first + ROWS of out[rows, out_stride] from q[rows, q_stride] and k, v[keys,
// kv_stride], all of one head of one sample; negative rows do not exist. Row r sees keys 0 .. its
// limit, which grows with r and is at least 1; limits_of(limits, rows) tells several. `lse`, where
// given, receives the log-sum-exps of the scores.
//
// Two key tiles are in flight: the next is copied while this one is used. Needs shared memory for
// ROWS + 4 INNER rows. Products of a key tile: 4 ROWS INNER D FLOP for 2 INNER D elements read.
template <int D, class Limits>
DEV void attend(const act* __restrict__ q, int q_stride, const act* __restrict__ k,
                const act* __restrict__ v, int kv_stride, act* __restrict__ out, int out_stride,
                float* __restrict__ lse, int first, int d, Limits limits_of) {
  constexpr int STRIDE = Tile<D>::STRIDE, KEYS = Tile<D>::INNER;
  DYN_SMEM(act, shared);
  act* const q_tile = shared;
  act* const stages = shared + ROWS * STRIDE;  // twice: keys, values
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int warp_first = first + warp * 16, warp_last = warp_first + 15;
  const int row[2] = {warp_first + (lane >> 2), warp_first + (lane >> 2) + 8};

  load_tile<D, ROWS>(q_tile, q, q_stride, first, first + ROWS, d);
  // A row that does not exist sees what the first does, so that its numbers stay finite; it is not
  // written. Then: keys that all, and that some, rows of this warp see, and that some of the block
  // do.
  int limits[5];
  limits_of(limits, {row[0], row[1], warp_first, warp_last, first + ROWS - 1});
  const int all = limits[2], some = warp_last < 0 ? 0 : limits[3], end = limits[4];
  load_tile<D, KEYS>(stages, k, kv_stride, 0, end, d);
  load_tile<D, KEYS>(stages + KEYS * STRIDE, v, kv_stride, 0, end, d);
  cp_commit();
  cp_wait<0>();
  __syncthreads();
  HeldRows<D> queries;
  hold(queries, q_tile + warp * 16 * STRIDE);

  float acc[D / 8][4] = {}, highest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  act* stage = stages;
  act* next = stages + 2 * KEYS * STRIDE;
  for (int key = 0; key < end; key += KEYS) {
    // The copy into `stage` is done, and nobody uses `next` any more.
    cp_wait<0>();
    __syncthreads();
    if (key + KEYS < end) {
      load_tile<D, KEYS>(next, k, kv_stride, key + KEYS, end, d);
      load_tile<D, KEYS>(next + KEYS * STRIDE, v, kv_stride, key + KEYS, end, d);
    }
    cp_commit();
    if (key < some) {
      float s[KEYS / 8][4] = {};
      multiply_transposed<D, KEYS>(s, queries, stage);
      if (key + KEYS > all) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (key + j * 8 + (lane & 3) * 2 + (e & 1) >= limits[e >> 1]) s[j][e] = -INFINITY;
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float most = highest[half];
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
          most = fmaxf(most, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        most = quad_max(most);
        // Key 0 is seen by every row, so that `most` is finite from the first tile on.
        const float offset = offset_of(most), by = exp_minus(highest[half], offset);
        highest[half] = most;
        float added = 0.f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; e++)
            added += s[j][e] = exp_minus(s[j][e], offset);
        sum[half] = sum[half] * by + added;
#pragma unroll
        for (int j = 0; j < D / 8; j++) acc[j][2 * half] *= by, acc[j][2 * half + 1] *= by;
      }
      multiply<D, KEYS>(acc, s, stage + KEYS * STRIDE);
    }
    act* used = stage;
    stage = next, next = used;
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float total = quad_sum(sum[half]), by = 1.f / total;
#pragma unroll
    for (int j = 0; j < D / 8; j++) acc[j][2 * half] *= by, acc[j][2 * half + 1] *= by;
    if (lse != nullptr && row[half] >= 0 && (lane & 3) == 0)
      lse[row[half]] = highest[half] + logf(total);
  }
  // Each warp has read its own rows of q for the last time.
  store_rows<D>(q_tile + warp * 16 * STRIDE, acc, out, out_stride, warp_first, first + ROWS, d);
}
