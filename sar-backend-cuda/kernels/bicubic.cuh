// Codes of a grid resized bicubically. What includes it is compiled without fusing products and sums,
// so that the bits are the CPU backend's.
#pragma once

// Cubic convolution, a = -0.75: for distances up to 1, and from 1 to 2.
DEV double cubic_inner(double x) { return (1.25 * x - 2.25) * x * x + 1.0; }
DEV double cubic_outer(double x) { return ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0; }

struct Taps {
    int at[4];
    float weight[4];
};

// The inputs and weights of output `output` where `n` positions become `m`: half-pixel centres,
// clamped borders. (o + 1/2) n/m - 1/2 = ((2o + 1) n - m) / 2m, without rounding; n is a side of a
// scale, at most 1024, and an int holds it for m up to 2^20 - 512.
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

// A channel of the codes of a grid of ids that is `width` wide: along its rows, then across them. An id
// outside codebook[vocab, channels] gives NaN wherever it counts.
DEV float resized_code(const Taps& rows, const Taps& columns, const u32* ids, int width,
                       const float* codebook, int vocab, int channels, int channel) {
    float lines[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float codes[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 id = ids[rows.at[i] * width + columns.at[j]];
            codes[j] = id < (u32)vocab ? codebook[(u64)id * channels + channel] : NAN;
        }
        lines[i] = (columns.weight[0] * codes[0] + columns.weight[1] * codes[1]) +
                   (columns.weight[2] * codes[2] + columns.weight[3] * codes[3]);
    }
    return (rows.weight[0] * lines[0] + rows.weight[1] * lines[1]) +
           (rows.weight[2] * lines[2] + rows.weight[3] * lines[3]);
}
