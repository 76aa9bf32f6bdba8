// Activations in vectors of 16 bytes, the most that a thread reads or writes at once, or one by one
// where a width is no multiple of that: the same code for both, by the length of a register array.
#pragma once

// Elements of a vector: 8 of bf16, 4 of f32.
#define VECTOR (16 / (int)sizeof(act))

DEV void unpack(float (&v)[VECTOR], const uint4& word) {
    const u32 words[4] = {word.x, word.y, word.z, word.w};
#ifdef ACT_BF16
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = __uint_as_float(words[i] << 16);
        v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
#else
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = __uint_as_float(words[i]);
#endif
}

// Rounded to nearest.
DEV uint4 pack(const float (&v)[VECTOR]) {
#ifdef ACT_BF16
    return make_uint4(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]), pack_bf16x2(v[4], v[5]),
                      pack_bf16x2(v[6], v[7]));
#else
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                      __float_as_uint(v[3]));
#endif
}

// 16 bytes from an address that is a multiple of 16.
DEV uint4 load_word(const act* from) { return *reinterpret_cast<const uint4*>(from); }
DEV void store_word(act* to, const uint4& word) { *reinterpret_cast<uint4*>(to) = word; }

DEV void load(float (&v)[VECTOR], const act* from) { unpack(v, load_word(from)); }
DEV void load(float (&v)[1], const act* from) { v[0] = to_float(*from); }
DEV void store(act* to, const float (&v)[VECTOR]) { store_word(to, pack(v)); }
DEV void store(act* to, const float (&v)[1]) { *to = from_float<act>(v[0]); }

// Four elements, from or to an address that is a multiple of their size.
DEV void load4(float (&v)[4], const act* from) {
#ifdef ACT_BF16
    const uint2 pairs = *reinterpret_cast<const uint2*>(from);
    v[0] = __uint_as_float(pairs.x << 16);
    v[1] = __uint_as_float(pairs.x & 0xffff0000u);
    v[2] = __uint_as_float(pairs.y << 16);
    v[3] = __uint_as_float(pairs.y & 0xffff0000u);
#else
    load(v, from);
#endif
}

DEV void store4(act* to, const float (&v)[4]) {
#ifdef ACT_BF16
    const uint2 pairs = make_uint2(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]));
    *reinterpret_cast<uint2*>(to) = pairs;
#else
    store(to, v);
#endif
}

// As many f32, to an address that is a multiple of 16 where there are several.
DEV void store_f32(float* to, const float (&v)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < VECTOR; i += 4) {
        *reinterpret_cast<float4*>(to + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    }
}
DEV void store_f32(float* to, const float (&v)[1]) { *to = v[0]; }

// Elements i.. of `len`, zero beyond the end. The base is a multiple of 16, and i of VECTOR.
DEV void load_upto(float (&v)[VECTOR], const act* base, u64 i, u64 len) {
    if (i + VECTOR <= len) return load(v, base + i);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) v[j] = i + j < len ? to_float(base[i + j]) : 0.f;
}

DEV void store_upto(act* base, const float (&v)[VECTOR], u64 i, u64 len) {
    if (i + VECTOR <= len) return store(base + i, v);
#pragma unroll
    for (int j = 0; j < VECTOR; j++) {
        if (i + j < len) base[i + j] = from_float<act>(v[j]);
    }
}
