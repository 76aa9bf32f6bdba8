// Tokens of a pass: the class token cond + pos_start + pos, others inputs·wordᵀ + bias + pos.
//
// The product has some 32 terms, so the forward writes x once, with the positions already in it, on
// plain f32 arithmetic from the f32 weights; a matrix product and an addition would move x thrice.
#include "prelude.cuh"
#include "vector.cuh"

// A block: 128 columns of up to 128 tokens of a sample, 64 at once; a warp has 8 tokens, a lane 4
// columns, of each of which a thread keeps the sum. Terms come 32 at a time.
#define COLUMNS 128
#define TOKENS 64
#define TERMS 32
// Rows of the tiles in floats: four more than they hold, so that columns are not all in one bank.
#define WORDS_ROW (COLUMNS + 4)
#define INPUTS_ROW (TOKENS + 4)

// x[batch, span, width]; cond[batch, width]; inputs[input_batch, words, channels], words the tokens of
// the span that are not the class token; word[width, channels]; bias and pos_start [width] or NULL;
// pos[tokens, width]. The span starts at token `start`; the class token is token 0.
KERNEL void __launch_bounds__(256) token_embedding(act* __restrict__ x, const act* __restrict__ cond,
                                                   const act* __restrict__ inputs,
                                                   const float* __restrict__ word,
                                                   const float* __restrict__ bias,
                                                   const float* __restrict__ pos_start,
                                                   const act* __restrict__ pos, int input_batch,
                                                   int start, int span, int width, int channels,
                                                   int block_tokens) {
    SMEM(float, words, TERMS* WORDS_ROW);
    SMEM(float, given, TERMS* INPUTS_ROW);
    const u32 blocks = ((u32)span + block_tokens - 1) / block_tokens;
    const u64 sample = blockIdx.x / blocks;
    const int begin = (int)(blockIdx.x % blocks) * block_tokens;
    const int end = min(begin + block_tokens, span);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int columns = blockIdx.y * COLUMNS, mine = columns + 4 * lane;
    // The first row of inputs is that of the first token that is not the class token.
    const int class_tokens = start == 0 ? 1 : 0;
    const act* samples_inputs = inputs + (sample % input_batch) * (u64)(span - class_tokens) * channels;
    float added[4], at_start[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        added[j] = bias && mine + j < width ? bias[mine + j] : 0.f;
        at_start[j] = pos_start && mine + j < width ? pos_start[mine + j] : 0.f;
    }
    for (int tile = begin; tile < end; tile += TOKENS) {
        float sum[8][4] = {};
        for (int term = 0; term < channels; term += TERMS) {
            const int terms = min(TERMS, channels - term);
            // Words stay from tile to tile where they are all there.
            const bool reload = tile == begin || channels > TERMS;
            for (int c = warp; reload && lane < terms && c < COLUMNS; c += 8) {
                const int row = columns + c;
                words[lane * WORDS_ROW + c] =
                    row < width ? word[(u64)row * channels + term + lane] : 0.f;
            }
            for (int t = warp; lane < terms && t < TOKENS; t += 8) {
                const int row = tile + t - class_tokens;
                const bool there = row >= 0 && tile + t < end;
                given[lane * INPUTS_ROW + t] =
                    there ? to_float(samples_inputs[(u64)row * channels + term + lane]) : 0.f;
            }
            __syncthreads();
#pragma unroll 4
            for (int k = 0; k < terms; k++) {
                const float4 w = *reinterpret_cast<const float4*>(words + k * WORDS_ROW + 4 * lane);
                const float* in = given + k * INPUTS_ROW + 8 * warp;
                const float4 low = *reinterpret_cast<const float4*>(in);
                const float4 high = *reinterpret_cast<const float4*>(in + 4);
                const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    sum[i][0] = fmaf(v[i], w.x, sum[i][0]);
                    sum[i][1] = fmaf(v[i], w.y, sum[i][1]);
                    sum[i][2] = fmaf(v[i], w.z, sum[i][2]);
                    sum[i][3] = fmaf(v[i], w.w, sum[i][3]);
                }
            }
            __syncthreads();  // before the tiles are written again
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int t = tile + 8 * warp + i;
            if (t >= end) continue;
            const u64 row = sample * span + t;
            const bool is_class = start + t == 0;
            // Aligned to four elements together, or taken one by one.
            if (mine + 4 <= width && width % 4 == 0) {
                float p[4], v[4];
                load4(p, pos + (u64)(start + t) * width + mine);
                if (is_class) load4(v, cond + sample * width + mine);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    v[j] = (is_class ? v[j] + at_start[j] : sum[i][j] + added[j]) + p[j];
                }
                store4(x + row * width + mine, v);
            } else {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    if (mine + j >= width) continue;
                    const float p = to_float(pos[(u64)(start + t) * width + mine + j]);
                    const float v = is_class
                                        ? to_float(cond[sample * width + mine + j]) + at_start[j]
                                        : sum[i][j] + added[j];
                    x[row * width + mine + j] = from_float<act>(v + p);
                }
            }
        }
    }
}
REGISTER_KERNEL(token_embedding)

// From dx[batch, tokens, width], read once for all: sums[tokens, width] = Σ over the batch, in its
// order, in f32; dpos = sums; dcond[batch, width] = dx of token 0. STEP elements a thread.
template <int STEP> DEV void sum_samples(act* __restrict__ dpos, float* __restrict__ sums,
                                         act* __restrict__ dcond, const act* __restrict__ dx,
                                         int batch, u64 sample_len, int width) {
    const u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * STEP;
    if (i >= sample_len) return;
    float sum[STEP] = {};
#pragma unroll 4
    for (int sample = 0; sample < batch; sample++) {
        float v[STEP];
        load(v, dx + sample * sample_len + i);
#pragma unroll
        for (int j = 0; j < STEP; j++) sum[j] += v[j];
        if (i < (u64)width) store(dcond + (u64)sample * width + i, v);
    }
    store(dpos + i, sum);
    store_f32(sums + i, sum);
}

KERNEL void __launch_bounds__(256) embedding_sums(act* __restrict__ dpos, float* __restrict__ sums,
                                                  act* __restrict__ dcond, const act* __restrict__ dx,
                                                  int batch, u64 sample_len, int width) {
    sum_samples<VECTOR>(dpos, sums, dcond, dx, batch, sample_len, width);
}
REGISTER_KERNEL(embedding_sums)

// The same for a width that is no whole vectors.
KERNEL void __launch_bounds__(256) embedding_sums_any(act* __restrict__ dpos, float* __restrict__ sums,
                                                      act* __restrict__ dcond,
                                                      const act* __restrict__ dx, int batch,
                                                      u64 sample_len, int width) {
    sum_samples<1>(dpos, sums, dcond, dx, batch, sample_len, width);
}
REGISTER_KERNEL(embedding_sums_any)

// dpos_start += row 0 of sums[tokens, width], dbias += the other rows: warp by warp in turn, then the
// warps in order. Either may be NULL.
KERNEL void __launch_bounds__(512) embedding_biases(float* __restrict__ dbias,
                                                    float* __restrict__ dpos_start,
                                                    const float* __restrict__ sums, int tokens,
                                                    int width) {
    SMEM(float, shared, 512);
    const int group = threadIdx.x >> 5, groups = blockDim.x >> 5;
    const int column = blockIdx.x * 32 + (threadIdx.x & 31);
    float sum = 0.f;
    if (column < width) {
#pragma unroll 8
        for (int token = 1 + group; token < tokens; token += groups) {
            sum += sums[(u64)token * width + column];
        }
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (group > 0 || column >= width) return;
    for (int g = 1; g < groups; g++) sum += shared[32 * g + threadIdx.x];
    if (dbias) dbias[column] += sum;
    if (dpos_start && tokens > 0) dpos_start[column] += sums[column];
}
REGISTER_KERNEL(embedding_biases)

// dword[len] += products[batch, len], sample by sample.
KERNEL void __launch_bounds__(256) embedding_words(float* __restrict__ dword,
                                                   const float* __restrict__ products, int batch,
                                                   u64 len) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    float sum = 0.f;
#pragma unroll 8
    for (int sample = 0; sample < batch; sample++) sum += products[sample * len + i];
    dword[i] += sum;
}
REGISTER_KERNEL(embedding_words)
