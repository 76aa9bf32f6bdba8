// Inputs of scales: the codes of the scale before each, resized bicubically to its grid.
#include "prelude.cuh"
#include "schedule.cuh"

// Cubic convolution, a = -0.75: for distances up to 1, and from 1 to 2.
DEV double cubic_inner(double x) { return (1.25 * x - 2.25) * x * x + 1.0; }
DEV double cubic_outer(double x) { return ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0; }

struct Taps {
    int at[4];
    float weight[4];
};

// The inputs and weights of output `output` where `n` positions become `m`: half-pixel centres,
// clamped borders. (o + 1/2) n/m - 1/2 = ((2o + 1) n - m) / 2m, without rounding; sides are at most
// 1024, so an int holds it.
DEV Taps bicubic_taps(int n, int m, int output) {
    const int numerator = (2 * output + 1) * n - m;
    // Rounded down, where C++ rounds towards zero; it is more than -2m.
    const int whole = (numerator + 2 * m) / (2 * m) - 1;
    const double fraction = (double)(numerator - whole * 2 * m) / (2 * m);
    Taps taps;
#pragma unroll
    for (int i = 0; i < 4; i++) taps.at[i] = max(0, min(n - 1, whole - 1 + i));
    taps.weight[0] = (float)cubic_outer(1.0 + fraction);
    taps.weight[1] = (float)cubic_inner(fraction);
    taps.weight[2] = (float)cubic_inner(1.0 - fraction);
    taps.weight[3] = (float)cubic_outer(2.0 - fraction);
    return taps;
}

// inputs[batch, tokens of the scales, channel] from ids[batch, tokens] and codebook[vocab, channel];
// `first` is the first token of the scales, of which there are `span`, and scale 0 is none of them.
// An id outside the codebook gives NaN wherever it counts. A thread has one output; a warp's 32
// neighbouring channels share their taps and read 16 whole rows of the codebook (1 MB, in the L2
// cache).
KERNEL void __launch_bounds__(256)
rollout_inputs(act* __restrict__ inputs, const u32* __restrict__ ids,
               const float* __restrict__ codebook, ScaleTable table, u64 outputs, int first,
               int span, int channels, int vocab) {
    const u64 output = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const int channel = output % channels, token = first + (int)(output / channels % span);
    const u64 sample = output / channels / span;
    const int scale = scale_of(table, token), place = token - table.first[scale];
    const int width = table.width[scale], before = scale - 1, width_before = table.width[before];
    const Taps rows = bicubic_taps(table.height[before], table.height[scale], place / width);
    const Taps columns = bicubic_taps(width_before, width, place % width);
    const u32* of_sample = ids + sample * table.first[table.scales] + table.first[before];
    float lines[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float codes[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 id = of_sample[rows.at[i] * width_before + columns.at[j]];
            codes[j] = id < (u32)vocab ? codebook[(u64)id * channels + channel] : NAN;
        }
        lines[i] = (columns.weight[0] * codes[0] + columns.weight[1] * codes[1]) +
                   (columns.weight[2] * codes[2] + columns.weight[3] * codes[3]);
    }
    const float value = (rows.weight[0] * lines[0] + rows.weight[1] * lines[1]) +
                        (rows.weight[2] * lines[2] + rows.weight[3] * lines[3]);
    inputs[output] = from_float<act>(value);
}
REGISTER_KERNEL(rollout_inputs)
