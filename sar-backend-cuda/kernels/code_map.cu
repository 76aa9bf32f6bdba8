// The codes of one scale as a channel-first map of any size.
#include "prelude.cuh"
#include "bicubic.cuh"

// map[batch, channel, position] of the ids in the columns first .. first + positions of
// ids[batch, tokens]; NaN where an id is none of the codebook's [vocab, channels]. A thread has one
// output, neighbours have neighbouring positions.
KERNEL void __launch_bounds__(256)
code_map(act* __restrict__ map, const u32* __restrict__ ids, const float* __restrict__ codebook,
         u64 outputs, int tokens, int first, int positions, int channels, int vocab) {
    const u64 output = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const int position = output % positions, channel = output / positions % channels;
    const u64 sample = output / positions / channels;
    const u32 id = ids[sample * tokens + first + position];
    const float value = id < (u32)vocab ? codebook[(u64)id * channels + channel] : NAN;
    map[output] = from_float<act>(value);
}
REGISTER_KERNEL(code_map)

// map[batch, channel, height, width] of the grid of grid_height x grid_width ids that starts at column
// `first` of ids[batch, tokens]. Neighbours have neighbouring positions, most of which share their
// taps; the rows of the codebook that they read lie in the L2 cache.
KERNEL void __launch_bounds__(256)
code_map_resized(act* __restrict__ map, const u32* __restrict__ ids,
                 const float* __restrict__ codebook, u64 outputs, int tokens, int first,
                 int grid_height, int grid_width, int height, int width, int channels, int vocab) {
    const u64 output = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= outputs) return;
    const u64 line = output / width, plane = line / height, sample = plane / channels;
    const int channel = plane % channels;
    const Taps rows = bicubic_taps(grid_height, height, line % height);
    const Taps columns = bicubic_taps(grid_width, width, output % width);
    const float value = resized_code(rows, columns, ids + sample * tokens + first, grid_width,
                                     codebook, vocab, channels, channel);
    map[output] = from_float<act>(value);
}
REGISTER_KERNEL(code_map_resized)
