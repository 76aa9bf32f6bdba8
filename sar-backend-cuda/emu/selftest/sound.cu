// Kernels without bugs, whose results are known. They run on a device as well.
#include "../../kernels/prelude.cuh"

struct Pair {
    double first;
    int second;
};

KERNEL void parameters(double* out, u8 a, float b, Pair c, const int d) {
    if (threadIdx.x + threadIdx.y + threadIdx.z == 0) out[0] = a + b + c.first + c.second + d;
}
REGISTER_KERNEL(parameters)

// Where each thread stands, as one number.
KERNEL void indices(u32* out) {
    const u32 block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const u32 thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const u32 at = block * blockDim.x * blockDim.y * blockDim.z + thread;
    out[at] = at;
}
REGISTER_KERNEL(indices)

// All 32-lane results of one call, [operation][lane]: see selftest.cpp for the formulas.
KERNEL void warp_operations(u32* out) {
    const u32 lane = threadIdx.x, full = ~0u, value = 1000 + lane;
    u32 r[14];
    r[0] = __shfl_sync(full, value, 5);
    r[1] = __shfl_sync(full, value, (int)lane + 3);
    r[2] = __shfl_sync(full, value, 9, 8);
    r[3] = __shfl_xor_sync(full, value, 21);
    r[4] = __shfl_xor_sync(full, value, 12, 8);
    r[5] = __shfl_up_sync(full, value, 3);
    r[6] = __shfl_up_sync(full, value, 3, 8);
    r[7] = __shfl_down_sync(full, value, 3);
    r[8] = __shfl_down_sync(full, value, 3, 8);
    r[9] = __ballot_sync(full, lane % 3 == 0);
    r[10] = __any_sync(full, lane == 31) + 2 * __any_sync(full, lane == 32);
    r[11] = __all_sync(full, lane < 32) + 2 * __all_sync(full, lane < 31);
    // The halves of a warp in different operations.
    if (lane < 16) {
        r[12] = __ballot_sync(0x0000ffffu, lane % 2);
    } else {
        r[12] = __shfl_xor_sync(0xffff0000u, value, 1);
    }
    const double wide = __shfl_down_sync(full, 0.5 + lane, 1);
    r[13] = (u32)(wide * 2.0);
    for (int i = 0; i < 14; i++) out[i * 32 + lane] = r[i];
}
REGISTER_KERNEL(warp_operations)

// Lanes from `count` on return at once; the others vote under the full mask.
KERNEL void votes_after_return(u32* out, int count) {
    if ((int)threadIdx.x >= count) return;
    out[threadIdx.x] = __ballot_sync(~0u, 1);
}
REGISTER_KERNEL(votes_after_return)

// Half of the threads return before a barrier that the others meet at.
KERNEL void barrier_after_return(int* out) {
    SMEM(int, s, 64);
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    if (threadIdx.x % 2 == 1) return;
    s[threadIdx.x] *= 2;
    __syncthreads();
    out[threadIdx.x] = s[(threadIdx.x + 32) % 64];
}
REGISTER_KERNEL(barrier_after_return)

// d[16,8] = a[16,16] b[16,8], a row-major, b row-major in `b_kn` and column-major in `b_nk`; four
// results, through the ldmatrix variants x4 + x2.trans, x4 + x2, x4.trans + x2.trans and x4.trans
// for a transposed in shared memory.
KERNEL void tile_products(float* out, const u16* a_mk, const u16* a_km, const u16* b_kn,
                          const u16* b_nk) {
    SMEM(u16, sa, 16 * 24);
    SMEM(u16, sat, 16 * 24);
    SMEM(u16, sb, 16 * 8);
    SMEM(u16, sbt, 8 * 24);
    const u32 lane = threadIdx.x;
    for (u32 i = lane; i < 256; i += 32) {
        sa[i / 16 * 24 + i % 16] = a_mk[i];
        sat[i / 16 * 24 + i % 16] = a_km[i];
    }
    for (u32 i = lane; i < 128; i += 32) {
        sb[i] = b_kn[i];
        sbt[i / 16 * 24 + i % 16] = b_nk[i];
    }
    __syncwarp();
    u32 a[4], at[4], b[2], bt[2], pair[4];
    ldmatrix_x4(a, sa + lane % 16 * 24 + lane / 16 * 8);
    // Matrices in the order (m0,k0), (m8,k0), (m0,k8), (m8,k8) of a that lies [k, m].
    ldmatrix_x4_trans(at, sat + (lane % 8 + lane / 16 * 8) * 24 + lane / 8 % 2 * 8);
    ldmatrix_x2_trans(b, sb + lane % 16 * 8);
    ldmatrix_x2(bt, sbt + lane % 8 * 24 + lane / 8 % 2 * 8);
    // The same columns of b twice, as a kernel would take two neighbouring tiles at once.
    ldmatrix_x4(pair, sbt + lane % 8 * 24 + lane / 8 % 2 * 8);
    const u32 second[2] = {pair[2], pair[3]};
    float d[4][4] = {};
    mma_16816(d[0], a, b);
    mma_16816(d[1], a, bt);
    mma_16816(d[2], at, b);
    mma_16816(d[3], at, second);
    for (int product = 0; product < 4; product++) {
        for (int i = 0; i < 4; i++) {
            const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            out[product * 128 + row * 8 + column] = d[product][i];
        }
    }
}
REGISTER_KERNEL(tile_products)

// Sums of rows of 256 floats through three stages of cp.async, shuffles, shared memory; a count of
// positive ones by atomics. Blocks of 64 threads.
KERNEL void __launch_bounds__(64) row_sums(float* sums, u32* positive, const float* in,
                                           int stages) {
    DYN_SMEM(float, tiles);
    SMEM(float, partial, 2);
    const float* row = in + (u64)blockIdx.x * 256 * stages;
    float sum = 0.0f;
    u32 count = 0;
    cp_async16(tiles + threadIdx.x * 4, row + threadIdx.x * 4);
    cp_commit();
    for (int stage = 0; stage < stages; stage++) {
        if (stage + 1 < stages) {
            const u32 next = (stage + 1) * 256 + threadIdx.x * 4;
            cp_async16(tiles + next % 512, row + next);
        }
        cp_commit();
        cp_wait<1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float value = tiles[stage % 2 * 256 + (threadIdx.x + 64 * i) % 256];
            sum += value;
            count += value > 0.0f;
        }
        __syncthreads();
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    atomicAdd(positive, count);
    if (threadIdx.x == 0) sums[blockIdx.x] = partial[0] + partial[1];
}
REGISTER_KERNEL(row_sums)

// bf16 there and back, three ways.
KERNEL void round_trip(u16* single, u32* packed, float* back, const float* in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const bf16 rounded = from_float<bf16>(in[i]);
    single[i] = rounded.bits;
    packed[i] = pack_bf16x2(in[i], from_float<float>(in[n - 1 - i]));
    back[i] = to_float(rounded);
}
REGISTER_KERNEL(round_trip)

// Bits that integer and bit-cast functions give.
KERNEL void bit_functions(u32* out) {
    out[0] = __umulhi(0x80000001u, 6u);
    out[1] = (u32)__popc(0xf0f0u);
    out[2] = (u32)__clz(1) + (u32)__clz(0) * 100;
    out[3] = (u32)__ffs(8) + (u32)__ffs(0) * 100;
    out[4] = __float_as_uint(__uint_as_float(0x3fc00000u) * 2.0f);
    out[5] = (u32)(__double_as_longlong(__longlong_as_double(0x3ff8000000000000ll) * 2.0) >> 32);
    out[6] = (u32)min(-3, 2) + (u32)max(-3, 2);
    const float4 v = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
    const uint2 u = make_uint2(5, 6);
    out[7] = (u32)(v.x + v.y + v.z + v.w) + u.x + u.y;
    out[8] = __float_as_uint(fast_exp2(3.0f));
    out[9] = __float_as_uint(fast_exp2(-140.0f));
    out[10] = __float_as_uint(rsqrtf(0.25f));
    out[11] = __float_as_uint(-INFINITY) + (NAN == NAN);
}
REGISTER_KERNEL(bit_functions)
