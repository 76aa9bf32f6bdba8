// Sums over the rows of a matrix: the gradient of a bias. Two stages, so that the order in which
// numbers are added is fixed by the shape. x is read once; partial sums are a few percent of it.
#include "prelude.cuh"
#include "columns.cuh"
#include "vector.cuh"

// partials[chunk, columns]: each chunk of `chunk_rows` rows of x[rows, columns] summed, in f32.
template <int STEP> DEV void sum_columns(float* __restrict__ partials, const act* __restrict__ x,
                                         u64 rows, int columns, int chunk_rows) {
    SMEM(float, shared, GROUPS* STEP * 33);
    const int lane = threadIdx.x & 31, group = threadIdx.x >> 5;
    const int begin = blockIdx.y * 32 * STEP, c = begin + lane * STEP;
    const u64 first = (u64)blockIdx.x * chunk_rows;
    const u64 end = min(first + chunk_rows, rows);
    float sum[STEP] = {};
    if (c < columns) {
#pragma unroll 4
        for (u64 row = first + group; row < end; row += GROUPS) {
            float v[STEP];
            load(v, x + row * columns + c);
#pragma unroll
            for (int j = 0; j < STEP; j++) sum[j] += v[j];
        }
    }
    sum_groups(partials + (u64)blockIdx.x * columns + begin, columns - begin, sum, shared);
}

KERNEL void __launch_bounds__(256) column_sums(float* __restrict__ partials, const act* __restrict__ x,
                                               u64 rows, int columns, int chunk_rows) {
    sum_columns<VECTOR>(partials, x, rows, columns, chunk_rows);
}
REGISTER_KERNEL(column_sums)

// The same for columns that are no whole vectors.
KERNEL void __launch_bounds__(256) column_sums_any(float* __restrict__ partials,
                                                   const act* __restrict__ x, u64 rows, int columns,
                                                   int chunk_rows) {
    sum_columns<1>(partials, x, rows, columns, chunk_rows);
}
REGISTER_KERNEL(column_sums_any)

// to[columns] += partials[chunks, columns] summed: warp by warp in turn, then the warps in order.
KERNEL void __launch_bounds__(512) add_partials(float* __restrict__ to, const float* __restrict__ partials,
                                                int chunks, int columns) {
    SMEM(float, shared, 512);
    const int group = threadIdx.x >> 5, groups = blockDim.x >> 5;
    const int column = blockIdx.x * 32 + (threadIdx.x & 31);
    float sum = 0.f;
    if (column < columns) {
#pragma unroll 8
        for (int chunk = group; chunk < chunks; chunk += groups) {
            sum += partials[(u64)chunk * columns + column];
        }
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (group > 0 || column >= columns) return;
    for (int g = 1; g < groups; g++) sum += shared[32 * g + threadIdx.x];
    to[column] += sum;
}
REGISTER_KERNEL(add_partials)
