// Guidance of features, before a linear head. Three activations moved an element.
#include "prelude.cuh"
#include "vector.cuh"

// x[i] becomes weight·x[i] − t·x[len + i], i < len, with weight 1 + t: conditional features guided by
// unconditional ones. A vector a thread; element by element where the second half is not aligned.
KERNEL void __launch_bounds__(256) guide(act* x, u64 len, float weight, float t) {
    const u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (first >= len) return;
    if (len % VECTOR == 0) {
        float c[VECTOR], u[VECTOR];
        load_upto(c, x, first, len);
        load_upto(u, x + len, first, len);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) c[j] = weight * c[j] - t * u[j];
        store_upto(x, c, first, len);
        return;
    }
    const u64 end = first + VECTOR < len ? first + VECTOR : len;
    for (u64 i = first; i < end; i++)
        x[i] = from_float<act>(weight * to_float(x[i]) - t * to_float(x[len + i]));
}
REGISTER_KERNEL(guide)
