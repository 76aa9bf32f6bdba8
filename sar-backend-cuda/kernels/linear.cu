// Sums over the rows of a matrix: the gradient of a bias. Two stages, so that the order in which
// numbers are added is fixed by the shape.
#include "prelude.cuh"

// partials[chunk, columns]: each chunk of `chunk_rows` rows of x[rows, columns] summed, in f32.
// A thread owns a column, neighbours read neighbours.
KERNEL void __launch_bounds__(256) column_sums(float* __restrict__ partials, const act* __restrict__ x,
                                               u64 rows, int columns, int chunk_rows) {
  int column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  u64 first = (u64)blockIdx.x * chunk_rows;
  u64 end = first + chunk_rows < rows ? first + chunk_rows : rows;
  float sum = 0.f;
  for (u64 row = first; row < end; row++) sum += to_float(x[row * columns + column]);
  partials[(u64)blockIdx.x * columns + column] = sum;
}
REGISTER_KERNEL(column_sums)

// to[columns] += the partial sums, chunk by chunk.
KERNEL void __launch_bounds__(256) add_partials(float* __restrict__ to, const float* __restrict__ partials,
                                                int chunks, int columns) {
  int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  float sum = 0.f;
  for (int chunk = 0; chunk < chunks; chunk++) sum += partials[(u64)chunk * columns + column];
  to[column] += sum;
}
REGISTER_KERNEL(add_partials)
