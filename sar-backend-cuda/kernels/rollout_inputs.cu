// Inputs of scales: the codes of the scale before each, resized bicubically to its grid.
#include "prelude.cuh"
#include "schedule.cuh"
#include "bicubic.cuh"

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
    const float value = resized_code(rows, columns, of_sample, width_before, codebook, vocab,
                                     channels, channel);
    inputs[output] = from_float<act>(value);
}
REGISTER_KERNEL(rollout_inputs)
