// What every kernel file includes, and the only thing it includes: names of types, and wrappers of
// the PTX instructions that CUDA C++ has no function for. On the device nothing else is included;
// under -DEMU the CPU emulator supplies the same names. -DACT_BF16 stores activations in bf16, else
// f32.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// A number as its bits: arithmetic is in f32, between to_float and from_float.
struct bf16 {
    u16 bits;
};

#ifdef ACT_BF16
typedef bf16 act;
#else
typedef float act;
#endif

#ifdef EMU

#include "../emu/cuda_emu.h"

// Round to nearest even; every NaN becomes the one that cvt.rn.bf16.f32 gives.
DEV u16 bf16_bits(float value) {
    const u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Two bf16 in a word, `lo` in the lower half.
DEV u32 pack_bf16x2(float lo, float hi) { return bf16_bits(lo) | (u32)bf16_bits(hi) << 16; }

#else // device

#define KERNEL extern "C" __global__
#define DEV static __device__ __forceinline__
#define REGISTER_KERNEL(name)
#define SMEM(T, name, n) __shared__ __align__(16) T name[n]
#define DYN_SMEM(T, name)                                                                          \
    extern __shared__ __align__(16) unsigned char dynamic_shared_[];                               \
    T* const name = reinterpret_cast<T*>(dynamic_shared_)
#define INFINITY __uint_as_float(0x7f800000u)
#define NAN __uint_as_float(0x7fffffffu)

// The address of shared memory as PTX takes it.
DEV u32 shared_address(const void* generic) { return (u32)__cvta_generic_to_shared(generic); }

DEV u16 bf16_bits(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Two bf16 in a word, `lo` in the lower half.
DEV u32 pack_bf16x2(float lo, float hi) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
    return pair;
}

// 2^x to about 2 ulp; subnormal arguments and results are zero.
DEV float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- ldmatrix: 8x8 matrices of 16-bit elements from shared memory. Lane 8m + i gives the address
// of row i of matrix m, 16-byte aligned. Register m of lane l holds elements 2(l%4) and 2(l%4)+1 of
// row l/4, or of column l/4 with _trans.

DEV void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

DEV void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

DEV void ldmatrix_x2(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

DEV void ldmatrix_x2_trans(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// d[16x8] += a[16x16] b[16x8], bf16 in, f32 sums; fragments as the PTX ISA lays them out.
DEV void mma_16816(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- cp.async: 16 bytes, both addresses 16-byte aligned, past the L1 cache

DEV void cp_async16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
}

// Closes the group of copies that this thread has begun since the last commit.
DEV void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's latest groups are pending.
template <int N> DEV void cp_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#endif

// ---- storage and arithmetic, the same on both sides

DEV float to_float(float value) { return value; }
DEV float to_float(bf16 value) { return __uint_as_float((u32)value.bits << 16); }

DEV void round_to(float value, float& out) { out = value; }
DEV void round_to(float value, bf16& out) { out.bits = bf16_bits(value); }

// `value` as T, float or bf16: round to nearest even, a NaN stays a NaN.
template <class T> DEV T from_float(float value) {
    T out;
    round_to(value, out);
    return out;
}
