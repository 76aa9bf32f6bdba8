// ldmatrix and mma.m16n8k16, with the register layouts of the PTX ISA ("Matrix Fragments for
// mma.m16n8k16" and "ldmatrix").
#pragma once
#include "intrinsics.h"
#include "shared_memory.h"
#include "warp_ops.h"

namespace emu {

// An 8x8 matrix of 16-bit elements by its rows, whose addresses lanes 8m to 8m+7 gave.
inline void load_matrix(Warp& warp, u32 matrix, bool transposed) {
    u16 rows[8][8];
    for (u32 row = 0; row < 8; row++) {
        std::memcpy(rows[row], warp.post[matrix * 8 + row].in, sizeof rows[row]);
    }
    for (u32 lane = 0; lane < WARP; lane++) {
        const u32 major = lane / 4, minor = lane % 4 * 2;
        const u32 low = transposed ? rows[minor][major] : rows[major][minor];
        const u32 high = transposed ? rows[minor + 1][major] : rows[major][minor + 1];
        static_cast<u32*>(warp.post[lane].out)[matrix] = low | high << 16;
    }
}

template <u32 MATRICES, bool TRANSPOSED> inline void complete_ldmatrix(Warp& warp, u32) {
    for (u32 matrix = 0; matrix < MATRICES; matrix++) load_matrix(warp, matrix, TRANSPOSED);
}

template <u32 MATRICES, bool TRANSPOSED>
inline constexpr WarpOp LDMATRIX = {"ldmatrix", true, complete_ldmatrix<MATRICES, TRANSPOSED>};

template <u32 MATRICES, bool TRANSPOSED>
inline void ldmatrix(u32* registers, const void* row, Site site) {
    // Lanes beyond the last matrix give no row.
    if (current->lane < MATRICES * 8) {
        if (!is_shared(row)) fault(site, "ldmatrix: %p is not shared memory", row);
        if (!is_aligned16(row)) fault(site, "ldmatrix: row %p is not 16-byte aligned", row);
    }
    Post& post = current->warp->post[current->lane];
    post.in = row;
    post.out = registers;
    take_part(LDMATRIX<MATRICES, TRANSPOSED>, ALL_LANES, site);
}

typedef float Vec4 __attribute__((vector_size(16)));

inline float bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
inline float bf16_high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// One mma of a warp: fragments gathered into whole matrices, multiplied, and spread again.
struct Tile {
    float a[16][16];
    Vec4 b[16][2];
    Vec4 d[16][2];

    void gather(const Post (&post)[WARP]) {
        float* b_flat = reinterpret_cast<float*>(b);
        for (u32 lane = 0; lane < WARP; lane++) {
            const u32* a_pairs = static_cast<const u32*>(post[lane].in);
            const u32* b_pairs = static_cast<const u32*>(post[lane].in2);
            const u32 group = lane / 4, k = lane % 4 * 2;
            for (u32 pair = 0; pair < 4; pair++) {
                float* at = &a[group + pair % 2 * 8][k + pair / 2 * 8];
                at[0] = bf16_low(a_pairs[pair]);
                at[1] = bf16_high(a_pairs[pair]);
            }
            for (u32 pair = 0; pair < 2; pair++) {
                float* at = &b_flat[(k + pair * 8) * 8 + group];
                at[0] = bf16_low(b_pairs[pair]);
                at[8] = bf16_high(b_pairs[pair]);
            }
        }
    }

    // Products of bf16 are exact in f32; they are summed in the order of k.
    void multiply() {
        for (u32 row = 0; row < 16; row++) {
            Vec4 left = {}, right = {};
            for (u32 k = 0; k < 16; k++) {
                left += a[row][k] * b[k][0];
                right += a[row][k] * b[k][1];
            }
            d[row][0] = left;
            d[row][1] = right;
        }
    }

    void add_to(const Post (&post)[WARP]) const {
        const float* d_flat = reinterpret_cast<const float*>(d);
        for (u32 lane = 0; lane < WARP; lane++) {
            float* out = static_cast<float*>(post[lane].out);
            for (u32 i = 0; i < 4; i++) {
                out[i] += d_flat[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
            }
        }
    }
};

inline void complete_mma(Warp& warp, u32) {
    Tile tile;
    tile.gather(warp.post);
    tile.multiply();
    tile.add_to(warp.post);
}

inline constexpr WarpOp MMA = {"mma.m16n8k16", true, complete_mma};

} // namespace emu

inline void ldmatrix_x4(u32 (&r)[4], const void* row, emu::Site site = emu::Site::here()) {
    emu::ldmatrix<4, false>(r, row, site);
}
inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row, emu::Site site = emu::Site::here()) {
    emu::ldmatrix<4, true>(r, row, site);
}
inline void ldmatrix_x2(u32 (&r)[2], const void* row, emu::Site site = emu::Site::here()) {
    emu::ldmatrix<2, false>(r, row, site);
}
inline void ldmatrix_x2_trans(u32 (&r)[2], const void* row, emu::Site site = emu::Site::here()) {
    emu::ldmatrix<2, true>(r, row, site);
}

// d[16x8] += a[16x16] b[16x8], bf16 in, f32 sums.
inline void mma_16816(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2],
                      emu::Site site = emu::Site::here()) {
    emu::Post& post = emu::current->warp->post[emu::current->lane];
    post.in = a;
    post.in2 = b;
    post.out = d;
    emu::take_part(emu::MMA, emu::ALL_LANES, site);
}
