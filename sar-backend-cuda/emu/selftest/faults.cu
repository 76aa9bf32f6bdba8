// Kernels with one planted bug each, and their sound twins. The emulator must tell them apart.
#include "../../kernels/prelude.cuh"

// ---- order: results that depend on who runs first. Blocks of 64 threads.

KERNEL void missing_barrier(int* out) {
    SMEM(int, s, 64);
    s[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = s[(threadIdx.x + 32) % 64];
}
REGISTER_KERNEL(missing_barrier)

KERNEL void with_barrier(int* out) {
    SMEM(int, s, 64);
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s[(threadIdx.x + 32) % 64];
}
REGISTER_KERNEL(with_barrier)

KERNEL void missing_syncwarp(int* out) {
    SMEM(int, s, 64);
    s[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}
REGISTER_KERNEL(missing_syncwarp)

KERNEL void with_syncwarp(int* out) {
    SMEM(int, s, 64);
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}
REGISTER_KERNEL(with_syncwarp)

// ---- reading too early. Blocks of 32 threads; each copies four floats.

template <int WAIT_FOR_ALL> DEV void copy_through_shared(float* out, const float* in) {
    SMEM(float, s, 128);
    cp_async16(s + threadIdx.x * 4, in + threadIdx.x * 4);
    cp_commit();
    if (WAIT_FOR_ALL) {
        cp_wait<0>();
    } else {
        cp_wait<1>();
    }
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = s[threadIdx.x * 4 + i];
}

KERNEL void missing_cp_wait(float* out, const float* in) { copy_through_shared<0>(out, in); }
REGISTER_KERNEL(missing_cp_wait)

KERNEL void with_cp_wait(float* out, const float* in) { copy_through_shared<1>(out, in); }
REGISTER_KERNEL(with_cp_wait)

KERNEL void uninitialised_shared(float* out) {
    SMEM(float, s, 32);
    DYN_SMEM(float, dynamic);
    out[threadIdx.x] = s[threadIdx.x];
    out[32 + threadIdx.x] = dynamic[threadIdx.x];
}
REGISTER_KERNEL(uninitialised_shared)

// Lane 31 reads from lane 32 - 16 of a mask of the upper half alone.
KERNEL void shuffle_from_outside(float* out) {
    float value = 1.0f;
    if (threadIdx.x >= 16) value = __shfl_sync(0xffff0000u, value, 3);
    out[threadIdx.x] = value;
}
REGISTER_KERNEL(shuffle_from_outside)

// ---- writes next to an array of 32 floats

KERNEL void write_shared(int index) {
    SMEM(float, s, 32);
    s[0] = 0.0f;
    if (threadIdx.x == 5) s[index] = 1.0f;
}
REGISTER_KERNEL(write_shared)

KERNEL void write_dynamic(int index) {
    DYN_SMEM(float, s);
    if (threadIdx.x == 5) s[index] = 1.0f;
}
REGISTER_KERNEL(write_dynamic)

// ---- threads that do not meet

KERNEL void divergent_barrier() {
    if (threadIdx.x % 2 == 0) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
REGISTER_KERNEL(divergent_barrier)

KERNEL void barrier_against_shuffle(float* out) {
    float value = 1.0f;
    if (threadIdx.x % 2 == 0) {
        __syncthreads();
    } else {
        value = __shfl_xor_sync(~0u, value, 1);
    }
    out[threadIdx.x] = value;
}
REGISTER_KERNEL(barrier_against_shuffle)

KERNEL void lane_not_in_mask(float* out) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1); }
REGISTER_KERNEL(lane_not_in_mask)

KERNEL void masks_disagree(u32* out) {
    out[threadIdx.x] = __ballot_sync(threadIdx.x == 7 ? 0xfffffffeu : ~0u, 1);
}
REGISTER_KERNEL(masks_disagree)

KERNEL void operations_disagree(u32* out) {
    out[threadIdx.x] = threadIdx.x == 7 ? __ballot_sync(~0u, 1) : __shfl_xor_sync(~0u, 1u, 1);
}
REGISTER_KERNEL(operations_disagree)

KERNEL void mma_of_half_a_warp(float* out) {
    float d[4] = {};
    const u32 a[4] = {}, b[2] = {};
    if (threadIdx.x < 16) return;
    mma_16816(d, a, b);
    out[threadIdx.x] = d[0];
}
REGISTER_KERNEL(mma_of_half_a_warp)

// ---- addresses

KERNEL void misaligned_ldmatrix(u32* out) {
    SMEM(u16, s, 1024);
    u32 r[4];
    ldmatrix_x4(r, s + threadIdx.x * 8 + (threadIdx.x == 9 ? 4 : 0));
    out[threadIdx.x] = r[0];
}
REGISTER_KERNEL(misaligned_ldmatrix)

KERNEL void ldmatrix_of_global(u32* out) {
    u32 r[2];
    ldmatrix_x2(r, out);
    out[threadIdx.x] = r[0];
}
REGISTER_KERNEL(ldmatrix_of_global)

KERNEL void misaligned_cp_async(const float* in) {
    SMEM(float, s, 256);
    cp_async16(s + threadIdx.x * 4, in + threadIdx.x);
    cp_commit();
    cp_wait<0>();
}
REGISTER_KERNEL(misaligned_cp_async)

KERNEL void misaligned_vector(uint4* out, const float* in) {
    out[threadIdx.x] = *reinterpret_cast<const uint4*>(in + threadIdx.x);
}
REGISTER_KERNEL(misaligned_vector)

KERNEL void null_pointer(float* out, const float* in) { out[threadIdx.x] = in[threadIdx.x]; }
REGISTER_KERNEL(null_pointer)

KERNEL void index_outside(float* out, int index) {
    float local[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    out[threadIdx.x] = local[index];
}
REGISTER_KERNEL(index_outside)

KERNEL void shift_too_far(u32* out, int distance) { out[threadIdx.x] = 1u << distance; }
REGISTER_KERNEL(shift_too_far)

// ---- more than there is

KERNEL void too_much_shared(float* out) {
    SMEM(float, s, 12289);
    s[0] = 0.0f;
    out[0] = s[0];
}
REGISTER_KERNEL(too_much_shared)

KERNEL void too_much_stack(u8* out, int bytes) {
    volatile u8 local[66600];
    for (int i = 0; i < bytes; i++) local[66599 - i] = (u8)i;
    out[0] = local[66599];
}
REGISTER_KERNEL(too_much_stack)

KERNEL void registered_twice() {}
REGISTER_KERNEL(registered_twice)
#ifdef EMU
static const bool second_time = emu::enter<registered_twice>(EMU_VARIANT "/registered_twice");
#endif
