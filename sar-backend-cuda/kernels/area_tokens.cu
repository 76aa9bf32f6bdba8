// The latent at every scale of a schedule, token-major.
#include "prelude.cuh"
#include "schedule.cuh"

// tokens[batch, token, channel] of latent[batch, channel, height, width]: the mean over the inputs
// that adaptive average pooling gives each token of its scale's grid. A thread has one output, and
// neighbours have neighbouring channels; an image's latent (16 KB) stays in the cache.
KERNEL void __launch_bounds__(256)
area_tokens(act* __restrict__ tokens, const act* __restrict__ latent, ScaleTable table, u64 outputs,
            int channels, int height, int width) {
    const u64 output = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const int all = table.first[table.scales];
    const int channel = output % channels, token = output / channels % all;
    const u64 sample = output / channels / all;
    const int scale = scale_of(table, token), place = token - table.first[scale];
    const int rows = table.height[scale], columns = table.width[scale];
    const int row = place / columns, column = place % columns;
    const u64 top = (u64)row * height / rows;
    const u64 bottom = ((u64)(row + 1) * height + rows - 1) / rows;
    const u64 left = (u64)column * width / columns;
    const u64 right = ((u64)(column + 1) * width + columns - 1) / columns;
    const act* map = latent + (sample * channels + channel) * height * width;
    float sum = 0.f;
    for (u64 y = top; y < bottom; y++) {
        for (u64 x = left; x < right; x++) sum += to_float(map[y * width + x]);
    }
    tokens[output] = from_float<act>(sum / (float)((bottom - top) * (right - left)));
}
REGISTER_KERNEL(area_tokens)
