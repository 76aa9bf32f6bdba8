// Integers and doubles over a block, and 16 bytes at a time. Integer results have one value whatever
// the order; sums of doubles are added in an order that the shape alone fixes.
//
// `shared` holds 32 words of 64 bits and may be used again at once; blocks are of whole warps.
#pragma once

// ---- 16 bytes, of an address that is a multiple of 16

// Elements of T in 16 bytes.
template <class T> struct Lanes {
    static const int n = 16 / sizeof(T);
};

DEV void load16(const float* from, float (&x)[4]) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

DEV void unpack_bf16x2(u32 pair, float& lo, float& hi) {
    lo = __uint_as_float(pair << 16), hi = __uint_as_float(pair & 0xffff0000u);
}

DEV void load16(const bf16* from, float (&x)[8]) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    unpack_bf16x2(v.x, x[0], x[1]), unpack_bf16x2(v.y, x[2], x[3]);
    unpack_bf16x2(v.z, x[4], x[5]), unpack_bf16x2(v.w, x[6], x[7]);
}

DEV void store16(float* to, const float (&x)[4]) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}

DEV void store16(bf16* to, const float (&x)[8]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3]),
                                               pack_bf16x2(x[4], x[5]), pack_bf16x2(x[6], x[7]));
}

// ---- order

// Integers that order as the numbers do; NaN below everything, -0 with +0.
DEV u32 order_key(float x) {
    if (x != x) return 0;
    const u32 bits = __float_as_uint(x + 0.f);  // -0 + 0 is +0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The number of a key; that of NaN gives -infinity.
DEV float of_order_key(u32 key) {
    if (key == 0) return -INFINITY;
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// Orders by value, and among equals the lower index first.
DEV u64 ranked(u32 key, u32 index) { return (u64)key << 32 | (0xffffffffu - index); }
DEV u32 index_of_ranked(u64 rank) { return 0xffffffffu - (u32)rank; }

// ---- over a block; every thread gets the result

template <class T> DEV T warp_total(T v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

template <class T> DEV T block_total(T v, T* shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = warp_total(v);
    if (lane == 0) shared[warp] = v;
    __syncthreads();
    v = warp_total(lane < warps ? shared[lane] : T(0));
    __syncthreads();  // before anyone writes to `shared` again
    return v;
}

DEV u64 warp_largest(u64 v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const u64 other = __shfl_xor_sync(0xffffffffu, v, offset);
        v = other > v ? other : v;
    }
    return v;
}

DEV u64 block_largest(u64 v, u64* shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = warp_largest(v);
    if (lane == 0) shared[warp] = v;
    __syncthreads();
    v = warp_largest(lane < warps ? shared[lane] : 0);
    __syncthreads();
    return v;
}

DEV u64 warp_through(u64 v) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        const u64 before = __shfl_up_sync(0xffffffffu, v, offset);
        if (lane >= offset) v += before;
    }
    return v;
}

// The sum over all threads before this one.
DEV u64 block_before(u64 v, u64* shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const u64 through = warp_through(v);
    if (lane == 31) shared[warp] = through;
    __syncthreads();
    const u64 sums = warp_through(lane < warps ? shared[lane] : 0);
    const u64 of_warps_before = __shfl_sync(0xffffffffu, sums, warp == 0 ? 0 : warp - 1);
    __syncthreads();
    return (warp == 0 ? 0 : of_warps_before) + through - v;
}
