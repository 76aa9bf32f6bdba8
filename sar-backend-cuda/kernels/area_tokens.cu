// The latent at scales of a schedule, token-major.
#include "prelude.cuh"
#include "schedule.cuh"

// tokens[batch, token, channel] of latent[batch, channel, height, width]: the mean over the inputs
// that adaptive average pooling gives each token of its scale's grid. Written are `span` tokens of
// the schedule from `first` on, in rows that hold `held` of them from `first_held` on. A thread has
// one output, and neighbours have neighbouring channels; an image's latent (16 KB) stays in the cache.
KERNEL void __launch_bounds__(256)
area_tokens(act* __restrict__ tokens, const act* __restrict__ latent, ScaleTable table, u64 outputs,
            int first, int span, int first_held, int held, int channels, int height, int width) {
    const u64 output = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const int channel = output % channels, token = first + (int)(output / channels % span);
    const u64 sample = output / channels / span;
    const int scale = scale_of(table, token), place = token - table.first[scale];
    const int rows = table.height[scale], columns = table.width[scale];
    const int row = place / columns, column = place % columns;
    const u64 top = (u64)row * height / rows;
    const u64 bottom = ((u64)(row + 1) * height + rows - 1) / rows;
    const u64 left = (u64)column * width / columns;
    const u64 right = ((u64)(column + 1) * width + columns - 1) / columns;
    act* to = tokens + (sample * held + (token - first_held)) * channels + channel;
    const act* map = latent + (sample * channels + channel) * height * width;
    float sum = 0.f;
    for (u64 y = top; y < bottom; y++) {
        for (u64 x = left; x < right; x++) sum += to_float(map[y * width + x]);
    }
    *to = from_float<act>(sum / (float)((bottom - top) * (right - left)));
}
REGISTER_KERNEL(area_tokens)
