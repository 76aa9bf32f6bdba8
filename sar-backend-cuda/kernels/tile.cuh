// Products of tiles in shared memory, 16 rows a warp: tensor cores where activations are bf16, f32
// multiplications (no TF32) where they are f32. Both leave a product in the accumulator layout of
// mma.m16n8k16, so that what is done between two products is written once:
//
//   c[j][e] of lane l is row l/4 + 8(e/2), column 8j + 2(l%4) + e%2   of the 16 x 8j.. tile.
//
// A tile's rows are padded by 16 bytes, which keeps the rows that a warp reads at a time in
// different banks. Heads of fewer than D elements are padded with zeros, which no product notices.
#pragma once

constexpr int CHUNK = 16 / (int)sizeof(act);  // elements of a 16-byte access
constexpr int THREADS = 128;                  // four warps
constexpr int ROWS = 64;                      // of the tile that a block owns: 16 a warp

template <int D> struct Tile {
  static constexpr int STRIDE = D + CHUNK;        // elements from row to row
  static constexpr int INNER = D > 64 ? 32 : 64;  // rows of the tiles that a block goes through
};

// ---- two neighbouring elements

DEV void store_pair(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = make_float2(x, y);
}
DEV void store_pair(bf16* to, float x, float y) { *reinterpret_cast<u32*>(to) = pack_bf16x2(x, y); }

DEV float2 load_pair(const float* from) { return *reinterpret_cast<const float2*>(from); }
DEV float2 load_pair(const bf16* from) {
  u32 pair = *reinterpret_cast<const u32*>(from);
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// ---- between global and shared memory

// Starts to copy rows first .. first + COUNT of from[rows, stride] into a tile; rows before 0 and
// from `end` on, and columns from d on, become zero. The caller commits, waits and meets the other
// threads.
template <int D, int COUNT>
DEV void load_tile(act* tile, const act* from, int stride, int first, int end, int d) {
  if (d % CHUNK == 0) {
    constexpr int CHUNKS = D / CHUNK, STEP = THREADS / CHUNKS;
    const int row = first + threadIdx.x / CHUNKS, c = threadIdx.x % CHUNKS * CHUNK;
    const act* at = from + (long long)row * stride + c;
    act* to = tile + threadIdx.x / CHUNKS * Tile<D>::STRIDE + c;
#pragma unroll
    for (int r = 0; r < COUNT; r += STEP) {
      if (row + r >= 0 && row + r < end && c < d) {
        cp_async16(to + r * Tile<D>::STRIDE, at + r * stride);
      } else {
        *reinterpret_cast<uint4*>(to + r * Tile<D>::STRIDE) = make_uint4(0, 0, 0, 0);
      }
    }
  } else {  // rows that do not start at multiples of 16 bytes
#pragma unroll 1
    for (int i = threadIdx.x; i < COUNT * D; i += THREADS) {
      int r = i / D, c = i % D, row = first + r;
      bool inside = row >= 0 && row < end && c < d;
      tile[r * Tile<D>::STRIDE + c] = inside ? from[(u64)row * stride + c] : from_float<act>(0.f);
    }
  }
}

// Writes this warp's 16 rows of a product to rows first .. first + 16 of to[rows, stride], those in
// 0 .. end. They go by way of the warp's own rows of a tile, so that writes are 16 bytes wide.
template <int D> DEV void store_rows(act* rows, const float (&c)[D / 8][4], act* to, int stride,
                                     int first, int end, int d) {
  int lane = threadIdx.x & 31;
  __syncwarp();  // the other lanes have read what the rows held
  act* at = rows + (lane >> 2) * Tile<D>::STRIDE + (lane & 3) * 2;
#pragma unroll
  for (int j = 0; j < D / 8; j++) {
    store_pair(at + j * 8, c[j][0], c[j][1]);
    store_pair(at + j * 8 + 8 * Tile<D>::STRIDE, c[j][2], c[j][3]);
  }
  __syncwarp();
  if (d % CHUNK == 0) {
    constexpr int CHUNKS = D / CHUNK;
#pragma unroll
    for (int i = lane; i < 16 * CHUNKS; i += 32) {
      int r = i / CHUNKS, x = i % CHUNKS * CHUNK, row = first + r;
      if (row >= 0 && row < end && x < d) {
        *reinterpret_cast<uint4*>(to + (u64)row * stride + x) =
            *reinterpret_cast<const uint4*>(rows + r * Tile<D>::STRIDE + x);
      }
    }
  } else {
    for (int i = lane; i < 16 * D; i += 32) {
      int r = i / D, x = i % D, row = first + r;
      if (row >= 0 && row < end && x < d) to[(u64)row * stride + x] = rows[r * Tile<D>::STRIDE + x];
    }
  }
}

// ---- products

// The 16 rows of a left operand, read from shared memory whenever they are needed.
template <int D> struct SharedRows {
  const act* rows;
};

#ifdef ACT_BF16

// The 16 rows of a left operand, in registers.
template <int D> struct HeldRows {
  u32 fragments[D / 16][4];
};

template <int D> DEV void fragment(u32 (&f)[4], const SharedRows<D>& a, int k) {
  int lane = threadIdx.x & 31;
  ldmatrix_x4(f, a.rows + (lane & 15) * Tile<D>::STRIDE + k * 16 + (lane >> 4) * 8);
}

template <int D> DEV void fragment(u32 (&f)[4], const HeldRows<D>& a, int k) {
#pragma unroll
  for (int i = 0; i < 4; i++) f[i] = a.fragments[k][i];
}

template <int D> DEV void hold(HeldRows<D>& held, const act* rows) {
  SharedRows<D> shared = {rows};
#pragma unroll
  for (int k = 0; k < D / 16; k++) fragment(held.fragments[k], shared, k);
}

// c[16, N] += a[16, D] b[N, D]^T
template <int D, int N, class Rows>
DEV void multiply_transposed(float (&c)[N / 8][4], const Rows& a, const act* b) {
  int lane = threadIdx.x & 31;
  const act* at = b + ((lane >> 4) * 8 + (lane & 7)) * Tile<D>::STRIDE + (lane & 8);
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    u32 left[4];
    fragment(left, a, k);
#pragma unroll
    for (int j = 0; j < N / 8; j += 2) {
      u32 f[4];
      ldmatrix_x4(f, at + j * 8 * Tile<D>::STRIDE + k * 16);
      u32 right[2][2] = {{f[0], f[1]}, {f[2], f[3]}};
      mma_16816(c[j], left, right[0]);
      mma_16816(c[j + 1], left, right[1]);
    }
  }
}

// c[16, D] += p[16, N] b[N, D], where p is a product, rounded to bf16 here.
template <int D, int N>
DEV void multiply(float (&c)[D / 8][4], const float (&p)[N / 8][4], const act* b) {
  int lane = threadIdx.x & 31;
  const act* at = b + (lane & 15) * Tile<D>::STRIDE + (lane >> 4) * 8;
#pragma unroll
  for (int k = 0; k < N / 16; k++) {
    const float (&low)[4] = p[2 * k], (&high)[4] = p[2 * k + 1];
    u32 left[4] = {pack_bf16x2(low[0], low[1]), pack_bf16x2(low[2], low[3]),
                   pack_bf16x2(high[0], high[1]), pack_bf16x2(high[2], high[3])};
#pragma unroll
    for (int j = 0; j < D / 8; j += 2) {
      u32 f[4];
      ldmatrix_x4_trans(f, at + k * 16 * Tile<D>::STRIDE + j * 8);
      u32 right[2][2] = {{f[0], f[1]}, {f[2], f[3]}};
      mma_16816(c[j], left, right[0]);
      mma_16816(c[j + 1], left, right[1]);
    }
  }
}

#else  // f32: registers would not hold the rows, and the memory is read 16 bytes at a time

template <int D> struct HeldRows {
  const act* rows;
};

template <int D> DEV void hold(HeldRows<D>& held, const act* rows) { held.rows = rows; }

template <int D, int N, class Rows>
DEV void multiply_transposed(float (&c)[N / 8][4], const Rows& a, const act* b) {
  int lane = threadIdx.x & 31;
  const act* top = a.rows + (lane >> 2) * Tile<D>::STRIDE;
  const act* at = b + (lane & 3) * 2 * Tile<D>::STRIDE;
#pragma unroll 2
  for (int k = 0; k < D; k += 4) {
    float4 a0 = *reinterpret_cast<const float4*>(top + k);
    float4 a1 = *reinterpret_cast<const float4*>(top + 8 * Tile<D>::STRIDE + k);
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float4 x = *reinterpret_cast<const float4*>(at + (j * 8 + e) * Tile<D>::STRIDE + k);
        float sum0 = c[j][e], sum1 = c[j][2 + e];
        sum0 += a0.x * x.x, sum1 += a1.x * x.x;
        sum0 += a0.y * x.y, sum1 += a1.y * x.y;
        sum0 += a0.z * x.z, sum1 += a1.z * x.z;
        sum0 += a0.w * x.w, sum1 += a1.w * x.w;
        c[j][e] = sum0, c[j][2 + e] = sum1;
      }
    }
  }
}

// An element of p is needed by the four lanes of its row: they take it from the one that has it.
template <int D, int N>
DEV void multiply(float (&c)[D / 8][4], const float (&p)[N / 8][4], const act* b) {
  int lane = threadIdx.x & 31;
  const act* at = b + (lane & 3) * 2;
#pragma unroll
  for (int j = 0; j < N / 8; j++) {
#pragma unroll 1
    for (int owner = 0; owner < 4; owner++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float p0 = __shfl_sync(0xffffffffu, p[j][e], owner, 4);
        float p1 = __shfl_sync(0xffffffffu, p[j][2 + e], owner, 4);
        const act* row = at + (j * 8 + owner * 2 + e) * Tile<D>::STRIDE;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
          float2 x = load_pair(row + n * 8);
          c[n][0] += p0 * x.x, c[n][1] += p0 * x.y;
          c[n][2] += p1 * x.x, c[n][3] += p1 * x.y;
        }
      }
    }
  }
}

#endif

// ---- rows of a product: its elements lie in the four lanes of a quad

DEV float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

DEV float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// e^(x - y) is exp_minus(x, offset_of(y)). Where probabilities are rounded to bf16 it is one
// multiplication-addition and the two-ulp exponential; where they are not, the difference is taken
// first, since x and y may be a hundred.
#ifdef ACT_BF16
#define LOG2_E 1.4426950408889634f
DEV float offset_of(float y) { return y * LOG2_E; }
DEV float exp_minus(float x, float offset) { return fast_exp2(fmaf(x, LOG2_E, -offset)); }
#else
DEV float offset_of(float y) { return y; }
DEV float exp_minus(float x, float offset) { return expf(x - offset); }
#endif
