// One AdamW step over flat buffers, with clipping fused in: one pass over memory.
#include "prelude.cuh"
#include "block.cuh"

#define MAX_RUNS 64
// Quads (four parameters, 16 bytes) that a thread updates.
#define QUADS 4

// Runs of neighbouring parameters that decay alike, by value; `ops/adamw.rs` has the same struct.
struct AdamRuns {
    u64 from[MAX_RUNS], to[MAX_RUNS];  // parameters
    u64 decays;                        // bit r: whether run r does
    u32 first_block[MAX_RUNS];         // of each run, ascending
    int runs;
    int unused;
};

// What an element needs of the hyperparameters, in f32; `ops/adamw.rs` has the same struct.
struct AdamFactors {
    double clip;  // largest norm, 0 where gradients are not clipped
    float keep1, beta2, keep2;
    float eps;        // ε √(1 - β₂ᵗ)
    float step_size;  // lr √(1 - β₂ᵗ) / (1 - β₁ᵗ)
    float decay;      // lr · weight decay
};

static_assert(sizeof(AdamRuns) == 20 * MAX_RUNS + 16, "as in ops/adamw.rs");
static_assert(sizeof(AdamFactors) == 32, "as in ops/adamw.rs");

// Keeps the clip factor finite for a zero gradient; the published value.
#define CLIP_EPS 1e-6

struct Element {
    float p, g, m, v;
};

// In the order of roundings of the CPU backend.
DEV void update(const AdamFactors& f, float clip, float decay, Element& e) {
    const float g = e.g * clip;
    e.m += f.keep1 * (g - e.m);
    e.v = f.beta2 * e.v + f.keep2 * (g * g);
    // Both sides of the fraction times √(1 - β₂ᵗ): a division less.
    const float step = f.step_size * (e.m / (sqrtf(e.v) + f.eps));
    // Not p (1 - decay): that factor rounds away most of a small decay in f32.
    e.p = (e.p - decay * e.p) - step;
}

DEV int run_of_block(const AdamRuns& runs, u32 block) {
    int low = 0, high = runs.runs - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (runs.first_block[middle] <= block) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

// params, first and second moments of every run, and the parameters' copy in `narrow` where there is
// one (all [parameters], as grads); nothing at all where norm[0] is not finite. A block has a piece
// of one run, cut at multiples of four parameters so that all but a run's edges move 16 bytes a time.
//
// Memory: 28 bytes a parameter, 30 with a copy in bf16.
KERNEL void __launch_bounds__(256)
adamw(float* __restrict__ params, act* __restrict__ narrow, const float* __restrict__ grads,
      float* __restrict__ first, float* __restrict__ second, const float* __restrict__ norm,
      AdamRuns runs, AdamFactors f) {
    const float length = norm[0];
    if (!(fabsf(length) < INFINITY)) return;
    double clip = 1.0;
    if (f.clip > 0.0) clip = f.clip / (length + CLIP_EPS) < 1.0 ? f.clip / (length + CLIP_EPS) : 1.0;
    const int run = run_of_block(runs, blockIdx.x);
    const u64 from = runs.from[run], to = runs.to[run];
    const float decay = runs.decays >> run & 1 ? f.decay : 0.f;
    const u64 block = blockIdx.x - runs.first_block[run];
    u64 at = from / 4 * 4 + (block * QUADS * blockDim.x + threadIdx.x) * 4;
#pragma unroll
    for (int quad = 0; quad < QUADS; quad++, at += blockDim.x * 4) {
        if (at >= from && at + 4 <= to) {
            float p[4], g[4], m[4], v[4];
            load16(params + at, p), load16(grads + at, g);
            load16(first + at, m), load16(second + at, v);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                Element e = {p[i], g[i], m[i], v[i]};
                update(f, (float)clip, decay, e);
                p[i] = e.p, m[i] = e.m, v[i] = e.v;
            }
            store16(params + at, p), store16(first + at, m), store16(second + at, v);
#ifdef ACT_BF16
            *reinterpret_cast<uint2*>(narrow + at) =
                make_uint2(pack_bf16x2(p[0], p[1]), pack_bf16x2(p[2], p[3]));
#endif
        } else {
            for (u64 i = at > from ? at : from; i < at + 4 && i < to; i++) {
                Element e = {params[i], grads[i], first[i], second[i]};
                update(f, (float)clip, decay, e);
                params[i] = e.p, first[i] = e.m, second[i] = e.v;
                if (narrow) narrow[i] = from_float<act>(e.p);
            }
        }
    }
}
REGISTER_KERNEL(adamw)
