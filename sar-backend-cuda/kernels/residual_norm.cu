// Residual, gate, layer norm and modulation: sum = x + keep·γ·branch, y = LN(sum)·(1+s) + b.
//
// In bytes of the activation [batch, tokens, width]: the forward reads x and branch and writes sum
// and y, 4 of them; the backward reads dy, sum (or x), branch and dx and writes dx and dbranch, 6, plus
// partial sums of the gradients of modulation and bias, 8/chunk_rows of f32. Nothing is read twice from memory.
// Renorm reads sum, or x and branch, and writes y.
//
// ada[batch, stride] holds the modulation of a sample: γ, s and b are width columns from `gate`,
// `scale` and `shift` on. keep[batch] is NULL for 1; branch is NULL where there is none.
#include "prelude.cuh"
#include "reduce.cuh"
#include "vector.cuh"

// Blocks are those of whole samples: `tokens` in groups of one a warp. The row of a warp, or a token
// that is none.
struct Row {
    u64 sample;
    int token;
};

DEV Row row_of_warp(int tokens) {
    const u32 warps = blockDim.x >> 5, groups = ((u32)tokens + warps - 1) / warps;
    return {blockIdx.x / groups, (int)(blockIdx.x % groups * warps + (threadIdx.x >> 5))};
}

// Spelt out, so that forward and renorm give the same bits.
DEV float modulate(float v, float mean, float inverse, float scale, float shift) {
    return fmaf((v - mean) * inverse, 1.f + scale, shift);
}

DEV float add_branch(float x, float keep, float gate, float branch) {
    return fmaf(keep * gate, branch, x);
}

// A number as memory holds it.
DEV float stored(float v) { return to_float(from_float<act>(v)); }

#define FORWARD_PARAMETERS                                                                         \
    act *__restrict__ y, act *sum, float *__restrict__ stats, const act *__restrict__ x,           \
        const act *__restrict__ branch, const float *__restrict__ keep,                            \
        const act *__restrict__ ada, int tokens, int width, int stride, int scale, int shift,      \
        int gate, float eps
#define FORWARD_ARGUMENTS                                                                          \
    y, sum, stats, x, branch, keep, ada, tokens, width, stride, scale, shift, gate, eps

// A warp a row, which stays in registers: at most ELEMENTS a lane, in vectors that lanes take in turn.
template <int ELEMENTS> DEV void norm_in_registers(FORWARD_PARAMETERS) {
    const int VECTORS = ELEMENTS / VECTOR;
    const Row at = row_of_warp(tokens);
    if (at.token >= tokens) return;
    const u64 row = at.sample * tokens + at.token, start = row * width;
    const int first = (int)(threadIdx.x & 31) * VECTOR;
    const act* modulation = ada + at.sample * stride;
    float v[VECTORS][VECTOR];
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int c = first + i * 32 * VECTOR;
        if (c < width) {
            load(v[i], x + start + c);
        } else {
#pragma unroll
            for (int j = 0; j < VECTOR; j++) v[i][j] = 0.f;
        }
    }
    if (branch) {
        const float kept = keep ? keep[at.sample] : 1.f;
        uint4 words[VECTORS];
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int c = first + i * 32 * VECTOR;
            if (c < width) words[i] = load_word(branch + start + c);
        }
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int c = first + i * 32 * VECTOR;
            if (c < width) {
                float b[VECTOR], gamma[VECTOR];
                unpack(b, words[i]);
                load(gamma, modulation + gate + c);
#pragma unroll
                for (int j = 0; j < VECTOR; j++) v[i][j] = add_branch(v[i][j], kept, gamma[j], b[j]);
                // What is normalised is what is stored: the backward and renorm see that.
                const uint4 rounded = pack(v[i]);
                store_word(sum + start + c, rounded);
                unpack(v[i], rounded);
            }
        }
    }
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
#pragma unroll
        for (int j = 0; j < VECTOR; j++) total += v[i][j];
    }
    const float mean = warp_sum(total) / width;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        if (first + i * 32 * VECTOR < width) {
#pragma unroll
            for (int j = 0; j < VECTOR; j++) squares = fmaf(v[i][j] - mean, v[i][j] - mean, squares);
        }
    }
    const float inverse = 1.f / sqrtf(warp_sum(squares) / width + eps);
    if (first == 0) *reinterpret_cast<float2*>(stats + 2 * row) = make_float2(mean, inverse);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int c = first + i * 32 * VECTOR;
        if (c < width) {
            float s[VECTOR], b[VECTOR];
            load(s, modulation + scale + c);
            load(b, modulation + shift + c);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) s[j] = modulate(v[i][j], mean, inverse, s[j], b[j]);
            store(y + start + c, s);
        }
    }
}

// Without a number of blocks a multiprocessor, the compiler keeps to 64 registers and spills.
#define FORWARD(elements, blocks)                                                                  \
    KERNEL void __launch_bounds__(128, blocks) residual_norm_##elements(FORWARD_PARAMETERS) {      \
        norm_in_registers<elements>(FORWARD_ARGUMENTS);                                            \
    }                                                                                              \
    REGISTER_KERNEL(residual_norm_##elements)

// Widths up to 256, 512, 1024, 1536 and 2048 that are whole vectors.
FORWARD(8, 8)
FORWARD(16, 8)
FORWARD(32, 6)
FORWARD(48, 5)
FORWARD(64, 2)

// Any width: a warp a row, element by element, which reads its own row again for each moment: from sum
// where there is a branch, else from x. Which of the two is known when this is compiled: through a
// pointer that may be either, since x is read only, reads would go by the read-only path, and ahead of
// the stores to sum (seen in the machine code of NVRTC 12.9).
template <bool BRANCH> DEV void norm_in_memory(FORWARD_PARAMETERS) {
    const Row at = row_of_warp(tokens);
    if (at.token >= tokens) return;
    const u64 row = at.sample * tokens + at.token, start = row * width;
    const int lane = threadIdx.x & 31;
    const act* modulation = ada + at.sample * stride;
    const float kept = BRANCH && keep ? keep[at.sample] : 1.f;
    float total = 0.f;
    for (int c = lane; c < width; c += 32) {
        act value = x[start + c];
        if (BRANCH) {
            const float gamma = to_float(modulation[gate + c]);
            const float b = to_float(branch[start + c]);
            value = from_float<act>(add_branch(to_float(value), kept, gamma, b));
            sum[start + c] = value;
        }
        total += to_float(value);
    }
    const float mean = warp_sum(total) / width;
    // A lane reads what it wrote itself: no barrier.
    float squares = 0.f;
    for (int c = lane; c < width; c += 32) {
        const float v = to_float(BRANCH ? sum[start + c] : x[start + c]) - mean;
        squares = fmaf(v, v, squares);
    }
    const float inverse = 1.f / sqrtf(warp_sum(squares) / width + eps);
    if (lane == 0) *reinterpret_cast<float2*>(stats + 2 * row) = make_float2(mean, inverse);
    for (int c = lane; c < width; c += 32) {
        const float v = to_float(BRANCH ? sum[start + c] : x[start + c]);
        const float s = to_float(modulation[scale + c]), b = to_float(modulation[shift + c]);
        y[start + c] = from_float<act>(modulate(v, mean, inverse, s, b));
    }
}

KERNEL void __launch_bounds__(128) residual_norm_any(FORWARD_PARAMETERS) {
    if (branch) {
        norm_in_memory<true>(FORWARD_ARGUMENTS);
    } else {
        norm_in_memory<false>(FORWARD_ARGUMENTS);
    }
}
REGISTER_KERNEL(residual_norm_any)

#define RENORM_PARAMETERS                                                                          \
    act *__restrict__ y, const act *__restrict__ x, const act *__restrict__ branch,                \
        const float *__restrict__ keep, const float *__restrict__ stats,                           \
        const act *__restrict__ ada, int tokens, int width, int stride, int scale, int shift,      \
        int gate
#define RENORM_ARGUMENTS                                                                           \
    y, x, branch, keep, stats, ada, tokens, width, stride, scale, shift, gate

// A warp a row, STEP elements at once; x is the sum where there is no branch.
template <int STEP, bool BRANCH> DEV void norm_again(RENORM_PARAMETERS) {
    const Row at = row_of_warp(tokens);
    if (at.token >= tokens) return;
    const u64 row = at.sample * tokens + at.token, start = row * width;
    const act* modulation = ada + at.sample * stride;
    const float2 moments = *reinterpret_cast<const float2*>(stats + 2 * row);
    const float kept = BRANCH && keep ? keep[at.sample] : 1.f;
    // So much is on its way at a time: four vectors of activations.
#pragma unroll(BRANCH ? 2 : 4)
    for (int c = (int)(threadIdx.x & 31) * STEP; c < width; c += 32 * STEP) {
        float v[STEP], s[STEP], b[STEP];
        load(v, x + start + c);
        if (BRANCH) {
            float gamma[STEP];
            load(b, branch + start + c);
            load(gamma, modulation + gate + c);
#pragma unroll
            for (int j = 0; j < STEP; j++) v[j] = stored(add_branch(v[j], kept, gamma[j], b[j]));
        }
        load(s, modulation + scale + c);
        load(b, modulation + shift + c);
#pragma unroll
        for (int j = 0; j < STEP; j++) v[j] = modulate(v[j], moments.x, moments.y, s[j], b[j]);
        store(y + start + c, v);
    }
}

// A branch takes registers, which the kernels without one are not to pay for.
#define RENORM(name, step, with_branch)                                                            \
    KERNEL void __launch_bounds__(128) renorm_##name(RENORM_PARAMETERS) {                          \
        norm_again<step, with_branch>(RENORM_ARGUMENTS);                                           \
    }                                                                                              \
    REGISTER_KERNEL(renorm_##name)

RENORM(vectors, VECTOR, false)
RENORM(any, 1, false)
RENORM(branch_vectors, VECTOR, true)
RENORM(branch_any, 1, true)

// dx[batch, tokens, width] = (accumulate ? dx : 0) + the norm's gradient; dbranch = keep·γ·dx. `seen` is
// the sum, or where it is to be added up again x.
// partials[batch, chunks, kinds, width]: Σ dy·x̂, Σ dy and, with a branch, keep·Σ dx·branch and (of four
// kinds) Σ dbranch over the chunk_rows tokens of a chunk, in their order. A block a chunk.
#define BACKWARD_PARAMETERS                                                                        \
    act *dx, act *__restrict__ dbranch, float *__restrict__ partials, const act *__restrict__ dy,  \
        const act *__restrict__ seen, const float *__restrict__ stats,                             \
        const act *__restrict__ branch, const float *__restrict__ keep,                            \
        const act *__restrict__ ada, int tokens, int width, int chunk_rows, int stride, int scale, \
        int gate, int accumulate, int again, int kinds

// Rows that are in flight together, so that one barrier serves them all.
#define TOGETHER 2

// Over the block, in the order of warps; `shared` holds 32 of them and is not written again before
// the next barrier but one.
DEV float4 block_sum4(float4 v, float4* shared) {
    const int warps = blockDim.x >> 5;
    v = make_float4(warp_sum(v.x), warp_sum(v.y), warp_sum(v.z), warp_sum(v.w));
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = v;
    __syncthreads();
    v = shared[0];
    for (int warp = 1; warp < warps; warp++) {
        const float4 other = shared[warp];
        v = make_float4(v.x + other.x, v.y + other.y, v.z + other.z, v.w + other.w);
    }
    return v;
}

// A thread owns a vector of columns through all rows: width is at most VECTOR a thread.
KERNEL void __launch_bounds__(512) residual_norm_backward(BACKWARD_PARAMETERS) {
    SMEM(float4, shared, 64);
    const u32 chunks = ((u32)tokens + chunk_rows - 1) / chunk_rows;
    const u64 sample = blockIdx.x / chunks;
    const int begin = (int)(blockIdx.x % chunks) * chunk_rows;
    const int end = min(begin + chunk_rows, tokens);
    const int c = threadIdx.x * VECTOR;
    const bool mine = c < width;
    const float kept = branch && keep ? keep[sample] : 1.f;
    // Unpacked where they are used: in bf16 that leaves registers for the sums.
    uint4 scale_word = make_uint4(0, 0, 0, 0), gamma_word = make_uint4(0, 0, 0, 0);
    if (mine) {
        scale_word = load_word(ada + sample * stride + scale + c);
        if (branch) gamma_word = load_word(ada + sample * stride + gate + c);
    }
    float dscale[VECTOR] = {}, dshift[VECTOR] = {}, dgate[VECTOR] = {}, dsum[VECTOR] = {};
    int turn = 0;
    for (int token = begin; token < end; token += TOGETHER, turn ^= 1) {
        // All that is read is on its way before the first sum is waited for.
        uint4 dy_word[TOGETHER], sum_word[TOGETHER], dx_word[TOGETHER], branch_word[TOGETHER];
        float2 moments[TOGETHER];
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            dy_word[r] = sum_word[r] = dx_word[r] = branch_word[r] = make_uint4(0, 0, 0, 0);
            moments[r] = make_float2(0.f, 0.f);
            if (mine && token + r < end) {
                const u64 row = sample * tokens + token + r, at = row * width + c;
                moments[r] = *reinterpret_cast<const float2*>(stats + 2 * row);
                dy_word[r] = load_word(dy + at);
                sum_word[r] = load_word(seen + at);
                if (accumulate) dx_word[r] = load_word(dx + at);
                if (branch) branch_word[r] = load_word(branch + at);
            }
        }
        float sums[TOGETHER][2];
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            float d[VECTOR], v[VECTOR], factor[VECTOR];
            unpack(v, sum_word[r]);
            if (again) {
                float value[VECTOR], gamma[VECTOR];
                unpack(value, branch_word[r]);
                unpack(gamma, gamma_word);
#pragma unroll
                for (int j = 0; j < VECTOR; j++) v[j] = add_branch(v[j], kept, gamma[j], value[j]);
                // To the bits of the forward's, which were stored.
                sum_word[r] = pack(v);
                unpack(v, sum_word[r]);
            }
            unpack(d, dy_word[r]);
            unpack(factor, scale_word);
            sums[r][0] = sums[r][1] = 0.f;
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                const float normal = (v[j] - moments[r].x) * moments[r].y;
                const float g = d[j] * (1.f + factor[j]);
                dscale[j] = fmaf(d[j], normal, dscale[j]);
                dshift[j] += d[j];
                sums[r][0] += g;
                sums[r][1] = fmaf(g, normal, sums[r][1]);
            }
        }
        const float4 all = block_sum4(make_float4(sums[0][0], sums[0][1], sums[1][0], sums[1][1]),
                                      shared + 32 * turn);
        const float means[TOGETHER][2] = {{all.x / width, all.y / width},
                                          {all.z / width, all.w / width}};
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            if (!mine || token + r >= end) continue;
            const u64 at = (sample * tokens + token + r) * width + c;
            float d[VECTOR], v[VECTOR], later[VECTOR], value[VECTOR], factor[VECTOR], gamma[VECTOR];
            unpack(d, dy_word[r]);
            unpack(v, sum_word[r]);
            unpack(later, dx_word[r]);
            unpack(value, branch_word[r]);
            unpack(factor, scale_word);
            unpack(gamma, gamma_word);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                const float normal = (v[j] - moments[r].x) * moments[r].y;
                const float g = d[j] * (1.f + factor[j]);
                const float inner = g - means[r][0] - normal * means[r][1];
                d[j] = fmaf(moments[r].y, inner, later[j]);
                dgate[j] = fmaf(d[j], value[j], dgate[j]);
                dsum[j] += d[j];
                v[j] = d[j] * (kept * gamma[j]);
            }
            store(dx + at, d);
            if (branch) store(dbranch + at, v);
        }
    }
    if (!mine) return;
    float* partial = partials + (u64)blockIdx.x * kinds * width + c;
    store_f32(partial, dscale);
    store_f32(partial + width, dshift);
    if (!branch) return;
    // keep·γ is one for all tokens: dbranch sums to it times what dx does, without rounding.
    float gamma[VECTOR];
    unpack(gamma, gamma_word);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) {
        dgate[j] *= kept;
        dsum[j] *= kept * gamma[j];
    }
    store_f32(partial + 2 * (u64)width, dgate);
    if (kinds > 3) store_f32(partial + 3 * (u64)width, dsum);
}
REGISTER_KERNEL(residual_norm_backward)

// The same for any width, element by element: a thread owns columns, and adds to their partial sums
// where they lie.
KERNEL void __launch_bounds__(256) residual_norm_backward_any(BACKWARD_PARAMETERS) {
    SMEM(float, shared, 32);
    const u32 chunks = ((u32)tokens + chunk_rows - 1) / chunk_rows;
    const u64 sample = blockIdx.x / chunks;
    const int begin = (int)(blockIdx.x % chunks) * chunk_rows;
    const int end = min(begin + chunk_rows, tokens);
    const float kept = branch && keep ? keep[sample] : 1.f;
    const act* modulation = ada + sample * stride;
    const auto sum = [&](u64 at, int c) {
        const float v = to_float(seen[at + c]);
        if (!again) return v;
        return stored(add_branch(v, kept, to_float(modulation[gate + c]), to_float(branch[at + c])));
    };
    float* dscale = partials + (u64)blockIdx.x * kinds * width;
    float* dshift = dscale + width;
    float* dgate = dshift + width;
    float* dbias = dgate + width;
    for (int token = begin; token < end; token++) {
        const u64 row = sample * tokens + token, start = row * width;
        const float mean = stats[2 * row], inverse = stats[2 * row + 1];
        float sum_g = 0.f, sum_gx = 0.f;
        for (int c = threadIdx.x; c < width; c += blockDim.x) {
            const float d = to_float(dy[start + c]);
            const float normal = (sum(start, c) - mean) * inverse;
            const float g = d * (1.f + to_float(modulation[scale + c]));
            dscale[c] = fmaf(d, normal, token == begin ? 0.f : dscale[c]);
            dshift[c] = d + (token == begin ? 0.f : dshift[c]);
            sum_g += g;
            sum_gx = fmaf(g, normal, sum_gx);
        }
        const float mean_g = block_sum(sum_g, shared) / width;
        const float mean_gx = block_sum(sum_gx, shared) / width;
        for (int c = threadIdx.x; c < width; c += blockDim.x) {
            const float normal = (sum(start, c) - mean) * inverse;
            const float g = to_float(dy[start + c]) * (1.f + to_float(modulation[scale + c]));
            const float later = accumulate ? to_float(dx[start + c]) : 0.f;
            const float d = fmaf(inverse, g - mean_g - normal * mean_gx, later);
            dx[start + c] = from_float<act>(d);
            if (!branch) continue;
            const float value = to_float(branch[start + c]);
            const float gated = kept * d * to_float(modulation[gate + c]);
            dbranch[start + c] = from_float<act>(gated);
            dgate[c] = fmaf(kept * d, value, token == begin ? 0.f : dgate[c]);
            if (kinds > 3) dbias[c] = gated + (token == begin ? 0.f : dbias[c]);
        }
    }
}
REGISTER_KERNEL(residual_norm_backward_any)

// d_ada[batch, stride], columns of scale, shift and (of three kinds) gate: the partial sums, chunk by
// chunk. sums[batch, width]: as much of the fourth kind, of which samples are still to be added up. A
// thread a column; blocks are those of whole samples.
KERNEL void __launch_bounds__(256) residual_norm_ada(act* __restrict__ d_ada, float* __restrict__ sums,
                                                     const float* __restrict__ partials, int chunks,
                                                     int kinds, int width, int stride, int scale,
                                                     int shift, int gate) {
    const u32 columns = (u32)kinds * width, blocks = (columns + blockDim.x - 1) / blockDim.x;
    const u32 column = blockIdx.x % blocks * blockDim.x + threadIdx.x;
    const u64 sample = blockIdx.x / blocks;
    if (column >= columns) return;
    float sum = 0.f;
#pragma unroll 8
    for (int chunk = 0; chunk < chunks; chunk++) {
        sum += partials[(sample * chunks + chunk) * columns + column];
    }
    const u32 kind = column / width, c = column % width;
    const int offset = kind == 0 ? scale : kind == 1 ? shift : gate;
    if (kind < 3) {
        d_ada[sample * stride + offset + c] = from_float<act>(sum);
    } else {
        sums[sample * width + c] = sum;
    }
}
REGISTER_KERNEL(residual_norm_ada)
