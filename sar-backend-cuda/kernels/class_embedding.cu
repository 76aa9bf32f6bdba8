// Rows of the class table, and their gradient. A thread a column; blocks are those of whole samples.
#include "prelude.cuh"

struct Place {
    int sample, column;
};

DEV Place place(int width) {
    const u32 blocks = ((u32)width + blockDim.x - 1) / blockDim.x;
    return {(int)(blockIdx.x / blocks), (int)(blockIdx.x % blocks * blockDim.x + threadIdx.x)};
}

// cond[batch, width] = table[labels[batch], width]; NaN for a label that the table has no row of.
KERNEL void __launch_bounds__(256) class_embedding(act* __restrict__ cond, const u32* __restrict__ labels,
                                                   const float* __restrict__ table, int width, u32 rows) {
    const Place at = place(width);
    if (at.column >= width) return;
    const u32 label = labels[at.sample];
    const float value = label < rows ? table[(u64)label * width + at.column] : NAN;
    cond[(u64)at.sample * width + at.column] = from_float<act>(value);
}
REGISTER_KERNEL(class_embedding)

// dtable[labels_b, width] += dcond[b, width], in the order of the batch. The first sample of a label
// adds up all of them, so that no two blocks write to one row; the others' blocks find that they are
// not the first and leave. A label that the table has no row of has no gradient.
KERNEL void __launch_bounds__(256) class_embedding_backward(float* __restrict__ dtable,
                                                            const u32* __restrict__ labels,
                                                            const act* __restrict__ dcond, int batch,
                                                            int width, u32 rows) {
    const Place at = place(width);
    const u32 label = labels[at.sample];
    if (label >= rows) return;
    // A warp compares 32 labels at once; all its lanes leave or stay together.
    const int lane = threadIdx.x & 31;
    for (int base = 0; base < at.sample; base += 32) {
        const bool same = base + lane < at.sample && labels[base + lane] == label;
        if (__ballot_sync(0xffffffffu, same)) return;
    }
    float sum = 0.f;
    for (int base = at.sample; base < batch; base += 32) {
        const bool same = base + lane < batch && labels[base + lane] == label;
        for (u32 found = __ballot_sync(0xffffffffu, same); found; found &= found - 1) {
            const u64 sample = base + __ffs(found) - 1;
            if (at.column < width) sum += to_float(dcond[sample * width + at.column]);
        }
    }
    if (at.column < width) dtable[(u64)label * width + at.column] += sum;
}
REGISTER_KERNEL(class_embedding_backward)
