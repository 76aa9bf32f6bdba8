// The learned position table, area-resized to every scale: cell o of m averages the cells
// ⌊o·n/m⌋ … ⌈(o+1)·n/m⌉−1 of n, in both directions.
//
// A step does this once, on 4 MB; all reads are of neighbouring channels. The table is stored by
// channel and tokens by position, so both directions turn 32×32 tiles in shared memory.
#include "prelude.cuh"
#include "schedule.cuh"

// First and end.
struct Window {
    u32 first, end;
};

// The cells of n that cell o of m averages. As whether o averages y is ⌊o·n/m⌋ ≤ y < ⌈(o+1)·n/m⌉, it
// is also o < ⌈(y+1)·m/n⌉ and o ≥ ⌊y·m/n⌋: window(y, m, n) are those that average y.
DEV Window window(u32 o, u32 n, u32 m) { return {o * n / m, ((o + 1) * n + m - 1) / m}; }

// cells[area, width] = table[width, area] transposed; a tile of 32×32 a block of 32×8.
KERNEL void __launch_bounds__(256) positions_by_cell(float* __restrict__ cells,
                                                     const float* __restrict__ table, int area,
                                                     int width) {
    SMEM(float, tile, 32 * 33);
    const int lane = threadIdx.x & 31, group = threadIdx.x >> 5;
    const int cell = blockIdx.x * 32, channel = blockIdx.y * 32;
    for (int i = group; i < 32; i += 8) {
        if (channel + i < width && cell + lane < area) {
            tile[i * 33 + lane] = table[(u64)(channel + i) * area + cell + lane];
        }
    }
    __syncthreads();
    for (int i = group; i < 32; i += 8) {
        if (cell + i < area && channel + lane < width) {
            cells[(u64)(cell + i) * width + channel + lane] = tile[lane * 33 + i];
        }
    }
}
REGISTER_KERNEL(positions_by_cell)

// pos[tokens, width] from cells[side, side, width]: a block averages 32 channels of a token; its warps
// take cells in turn, and their sums are added in order.
KERNEL void __launch_bounds__(256) positions(act* __restrict__ pos, const float* __restrict__ cells,
                                             ScaleTable scales, int side, int width) {
    SMEM(float, sums, 256);
    const u32 blocks = ((u32)width + 31) / 32;
    const int token = blockIdx.x / blocks, lane = threadIdx.x & 31, group = threadIdx.x >> 5;
    const int channel = blockIdx.x % blocks * 32 + lane;
    const int scale = scale_of(scales, token);
    const u32 place = token - scales.first[scale], across = scales.width[scale];
    const Window rows = window(place / across, side, scales.height[scale]);
    const Window columns = window(place % across, side, across);
    const u32 wide = columns.end - columns.first, count = (rows.end - rows.first) * wide;
    float sum = 0.f;
    if (channel < width) {
        for (u32 i = group; i < count; i += 8) {
            const u64 cell = (u64)(rows.first + i / wide) * side + columns.first + i % wide;
            sum += cells[cell * width + channel];
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (group > 0 || channel >= width) return;
    for (int g = 1; g < 8; g++) sum += sums[32 * g + lane];
    pos[(u64)token * width + channel] = from_float<act>(sum / (float)count);
}
REGISTER_KERNEL(positions)

// dtable[width, side, side] += the transpose of that on dpos[tokens, width]: a cell sums over the
// tokens that averaged it, in their order. A block has 32 cells and 32 channels.
KERNEL void __launch_bounds__(256) positions_backward(float* __restrict__ dtable,
                                                      const act* __restrict__ dpos,
                                                      ScaleTable scales, int side, int width) {
    SMEM(float, tile, 32 * 33);
    const int lane = threadIdx.x & 31, group = threadIdx.x >> 5, area = side * side;
    const int first = blockIdx.x * 32, channels = blockIdx.y * 32;
    for (int i = group; i < 32 && first + i < area; i += 8) {
        const u32 y = (first + i) / side, x = (first + i) % side;
        float sum = 0.f;
        for (int scale = 0; scale < scales.scales && channels + lane < width; scale++) {
            const u32 height = scales.height[scale], across = scales.width[scale];
            const Window rows = window(y, height, side), columns = window(x, across, side);
            for (u32 row = rows.first; row < rows.end; row++) {
                const Window tall = window(row, side, height);
                for (u32 column = columns.first; column < columns.end; column++) {
                    const Window wide = window(column, side, across);
                    const u32 count = (tall.end - tall.first) * (wide.end - wide.first);
                    const u64 token = scales.first[scale] + row * across + column;
                    sum += to_float(dpos[token * width + channels + lane]) / (float)count;
                }
            }
        }
        tile[i * 33 + lane] = sum;
    }
    __syncthreads();
    for (int i = group; i < 32 && channels + i < width; i += 8) {
        if (first + lane < area) {
            dtable[(u64)(channels + i) * area + first + lane] += tile[lane * 33 + i];
        }
    }
}
REGISTER_KERNEL(positions_backward)
