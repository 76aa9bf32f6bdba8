// The nearest code: the row of the largest product with z.
//
// By angle, codes and z have length 1, and |z - e|² = 2 - 2 z·e. By distance, a row is (e, -|e|²/2) and
// z is taken as (z, 1): |z - e|² = |z|² - 2 (z·e - |e|²/2). Either is brought to length 1, which changes
// no order. Products in f32 leave those within rounding of the largest undecided; they alone are taken
// again in f64, where products of f32 are exact, in the order of the channels. So the result is that
// of the f64 formula, the lowest index on ties, whatever the tiles are. Beyond unit_rows, `channels`
// are the numbers of a row of the codebook.
#include "prelude.cuh"
#include "reduce.cuh"
#include "block.cuh"

// Rows and codes of a tile, and channels of it that are in shared memory at a time. A thread has
// 8 x 8 of them: 4 reads of 16 bytes for 64 multiply-adds.
#define ROWS 64
#define CODES 128
#define CHANNELS 32
#define EACH 8
#define THREADS 128
#define ACROSS (CODES / EACH)
// A tile is kept channel by channel, padded so that the rows that a warp writes lie in other banks.
#define ROWS_PITCH (ROWS + 4)
#define CODES_PITCH (CODES + 4)
// Below this length z has no direction.
#define NORM_EPS 1e-12

// unit[rows, columns] = z / |z| in f64 and then rounded, z being a row of z[rows, channels] and, where
// there are more columns, a 1 behind it; a thread has a row.
KERNEL void __launch_bounds__(THREADS)
unit_rows(float* __restrict__ unit, const act* __restrict__ z, u64 rows, int channels, int columns) {
    const u64 row = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    double square = 0.0;
    for (int k = 0; k < channels; k++) {
        const double v = to_float(z[row * channels + k]);
        square += v * v;
    }
    if (columns > channels) square += 1.0;
    double length = sqrt(square);
    // NaN as well: the row's NaN stays in its elements.
    if (!(length > NORM_EPS)) length = NORM_EPS;
    for (int k = 0; k < channels; k++) {
        unit[row * columns + k] = (float)((double)to_float(z[row * channels + k]) / length);
    }
    if (columns > channels) unit[row * columns + channels] = (float)(1.0 / length);
}
REGISTER_KERNEL(unit_rows)

// longest[0], zero before, becomes the largest length of a row of codebook[vocab, channels] that is
// a number, rounded up: as bits, which for positive numbers order as they do.
KERNEL void __launch_bounds__(THREADS)
longest_code(u32* __restrict__ longest, const float* __restrict__ codebook, int vocab,
             int channels) {
    const int code = blockIdx.x * blockDim.x + threadIdx.x;
    double square = 0.0;
    if (code < vocab) {
        for (int k = 0; k < channels; k++) {
            const double v = codebook[(u64)code * channels + k];
            square += v * v;
        }
    }
    const float length = square == square ? (float)sqrt(square) * 1.000001f : 0.f;
    const float largest = warp_max(length);
    if ((threadIdx.x & 31) == 0) atomicMax(longest, __float_as_uint(largest));
}
REGISTER_KERNEL(longest_code)

// to[channel, row] of `count` rows of from[rows, channels], CHANNELS of them from `first` on; zero
// beyond the rows and the channels.
DEV void stage(float* to, int pitch, int tile, const float* from, int count, int channels,
               int first) {
    if (channels % 4 == 0) {
        for (int i = threadIdx.x; i < tile * CHANNELS / 4; i += blockDim.x) {
            const int row = i % tile, k = i / tile * 4;
            float v[4] = {0.f, 0.f, 0.f, 0.f};
            if (row < count && first + k < channels) {
                load16(from + (u64)row * channels + first + k, v);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) to[(k + j) * pitch + row] = v[j];
        }
    } else {
        for (int i = threadIdx.x; i < tile * CHANNELS; i += blockDim.x) {
            const int row = i % tile, k = i / tile;
            const bool inside = row < count && first + k < channels;
            to[k * pitch + row] = inside ? from[(u64)row * channels + first + k] : 0.f;
        }
    }
}

DEV double exact_product(const float* z, const float* code, int channels) {
    double sum = 0.0;
    for (int k = 0; k < channels; k++) sum += (double)z[k] * code[k];
    return sum;
}

// Where a thread's code j lies from its first: in two groups of four, so that neighbouring threads
// read neighbouring 16 bytes of shared memory.
DEV int code_of(int j) { return j < 4 ? j : CODES / 2 - 4 + j; }

// The better of two: of the larger product, of the lower code on ties.
DEV bool is_better(double product, u32 code, double than, u32 than_code) {
    return product > than || (product == than && code < than_code);
}



// The nearest code of each row of unit[rows, channels], 0 where the row has a NaN: the `span` columns
// from `first_column` on of ids[samples, tokens], a sample having as many rows. A block has ROWS rows
// and goes through the codes; the 16 threads that share a row agree on its largest product after
// every tile, so that about as many exact products are taken as there are records.
//
// 2 rows · vocab · channels operations in f32.
KERNEL void __launch_bounds__(THREADS, 4)
nearest_code(u32* __restrict__ ids, const float* __restrict__ unit,
             const float* __restrict__ codebook, const float* __restrict__ longest, u64 rows,
             int vocab, int channels, int tokens, int first_column, int span) {
    SMEM(float, z_tile, CHANNELS * ROWS_PITCH);
    SMEM(float, code_tile, CHANNELS * CODES_PITCH);
    // The best of a thread's codes for each of its rows; touched too seldom to be worth registers.
    SMEM(double, best, THREADS * EACH);
    SMEM(u32, code_of_best, THREADS * EACH);
    const u64 first_row = (u64)blockIdx.x * ROWS;
    const int count = rows - first_row < ROWS ? (int)(rows - first_row) : ROWS;
    const float* z = unit + first_row * channels;
    const int down = threadIdx.x / ACROSS * EACH, across = threadIdx.x % ACROSS * 4;
    // Twice what a product of k terms may be off by: k + 1 roundings of 2⁻²⁴ of the lengths' product.
    const float margin = 2.f * (channels + 1) * 1.1920929e-7f * longest[0];
    float largest[EACH];
#pragma unroll
    for (int r = 0; r < EACH; r++) {
        largest[r] = -INFINITY;
        best[r * THREADS + threadIdx.x] = -(double)INFINITY, code_of_best[r * THREADS + threadIdx.x] = 0;
    }
    for (int first = 0; first < vocab; first += CODES) {
        const int codes = vocab - first < CODES ? vocab - first : CODES;
        const float* block = codebook + (u64)first * channels;
        float products[EACH][EACH] = {};
        for (int k = 0; k < channels; k += CHANNELS) {
            __syncthreads();  // the tile before is done with
            if (first == 0 || channels > CHANNELS) {
                stage(z_tile, ROWS_PITCH, ROWS, z, count, channels, k);
            }
            stage(code_tile, CODES_PITCH, CODES, block, codes, channels, k);
            __syncthreads();
#pragma unroll 4
            for (int c = 0; c < CHANNELS; c++) {
                float a[EACH], b[EACH];
                float4* const rows_at = reinterpret_cast<float4*>(z_tile + c * ROWS_PITCH + down);
                float4* const codes_at =
                    reinterpret_cast<float4*>(code_tile + c * CODES_PITCH + across);
                const float4 a0 = rows_at[0], a1 = rows_at[1], b0 = codes_at[0];
                const float4 b1 = codes_at[CODES / 8];
                a[0] = a0.x, a[1] = a0.y, a[2] = a0.z, a[3] = a0.w;
                a[4] = a1.x, a[5] = a1.y, a[6] = a1.z, a[7] = a1.w;
                b[0] = b0.x, b[1] = b0.y, b[2] = b0.z, b[3] = b0.w;
                b[4] = b1.x, b[5] = b1.y, b[6] = b1.z, b[7] = b1.w;
#pragma unroll
                for (int r = 0; r < EACH; r++) {
#pragma unroll
                    for (int j = 0; j < EACH; j++) products[r][j] += a[r] * b[j];
                }
            }
        }
        // Bit 8r + j: whether the exact product of row r and code j is asked for.
        u32 candidates[2] = {0, 0};
#pragma unroll
        for (int r = 0; r < EACH; r++) {
            float top = -INFINITY;  // a NaN is passed over
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                if (across + code_of(j) < codes) top = fmaxf(top, products[r][j]);
            }
#pragma unroll
            for (int lanes = ACROSS / 2; lanes > 0; lanes /= 2) {
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, lanes));
            }
            largest[r] = fmaxf(largest[r], top);
            const float bar = largest[r] - margin;
            if (!(top >= bar) || down + r >= count) continue;
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                const bool near = across + code_of(j) < codes && products[r][j] >= bar;
                candidates[r / 4] |= (u32)near << (r % 4 * EACH + j);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            for (u32 left = candidates[half]; left != 0; left &= left - 1) {
                const int bit = __ffs((int)left) - 1, r = half * 4 + bit / EACH;
                const int code = across + code_of(bit % EACH), at = r * THREADS + threadIdx.x;
                const double exact = exact_product(z + (down + r) * channels,
                                                   block + code * channels, channels);
                if (exact > best[at]) best[at] = exact, code_of_best[at] = first + code;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < EACH; r++) {
        double exact = best[r * THREADS + threadIdx.x];
        u32 code = code_of_best[r * THREADS + threadIdx.x];
#pragma unroll
        for (int lanes = ACROSS / 2; lanes > 0; lanes /= 2) {
            const double other = __shfl_xor_sync(0xffffffffu, exact, lanes);
            const u32 other_code = __shfl_xor_sync(0xffffffffu, code, lanes);
            if (is_better(other, other_code, exact, code)) exact = other, code = other_code;
        }
        if (across == 0 && down + r < count) {
            const u64 row = first_row + down + r;
            ids[row / span * tokens + first_column + row % span] = code;
        }
    }
}
REGISTER_KERNEL(nearest_code)
