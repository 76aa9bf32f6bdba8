// The codes of one scale as a channel-first map.
#include "prelude.cuh"

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
