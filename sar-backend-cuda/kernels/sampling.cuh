// The arithmetic of `sar_math::sampling` and `sar_math::philox`, to the bit: files that include this
// are compiled without fusing products and sums.
#pragma once

// The weight of the largest logit is 2^47; weights and index share 64 bits.
#define WEIGHT_ONE (1ull << 47)
#define INDEX_BITS 16
#define INDEX_MASK ((1u << INDEX_BITS) - 1)

DEV double double_of_bits(u64 bits) { return __longlong_as_double((long long)bits); }
DEV u64 bits_of_double(double x) { return (u64)__double_as_longlong(x); }

// An entry orders by weight and then by falling index, which it also names.
DEV u64 entry_of(u64 weight, u32 index) { return weight << INDEX_BITS | (INDEX_MASK - index); }
DEV u64 weight_of(u64 entry) { return entry >> INDEX_BITS; }
DEV u32 index_of(u64 entry) { return INDEX_MASK - ((u32)entry & INDEX_MASK); }

// 2^47 exp(logit - largest) to nearest; -infinity and NaN weigh 0, the largest logit 2^47, also where
// it is infinity.
DEV u64 softmax_weight(float logit, float largest) {
    const double LEAST = -35.0, LOG2E = 1.44269504088896340736;
    const double LN2 = 0.693147180559945309417;
    const double LN2_HIGH = double_of_bits(0x3FE62E4200000000ull), LN2_LOW = LN2 - LN2_HIGH;
    // Adding it rounds to an integer, ties to even, and leaves that integer in the low bits.
    const double TO_INTEGER = 1.5 * (double)(1ull << 52);
    if (fabsf(largest) == INFINITY) return logit == INFINITY ? WEIGHT_ONE : 0;
    double x = (double)logit - (double)largest;
    x = x > LEAST ? x : LEAST;  // NaN too
    const double shifted = x * LOG2E + TO_INTEGER;
    const double k = shifted - TO_INTEGER;
    const double r = (x - k * LN2_HIGH) - k * LN2_LOW;
    double series = 1.0 / 6227020800.0;  // 1/n!, n from 13 down to 0
    series = series * r + 1.0 / 479001600.0;
    series = series * r + 1.0 / 39916800.0;
    series = series * r + 1.0 / 3628800.0;
    series = series * r + 1.0 / 362880.0;
    series = series * r + 1.0 / 40320.0;
    series = series * r + 1.0 / 5040.0;
    series = series * r + 1.0 / 720.0;
    series = series * r + 1.0 / 120.0;
    series = series * r + 1.0 / 24.0;
    series = series * r + 1.0 / 6.0;
    series = series * r + 0.5;
    series = series * r + 1.0;
    series = series * r + 1.0;
    const u64 exponent = bits_of_double(shifted) - bits_of_double(TO_INTEGER);
    const double power = double_of_bits((exponent + 1023 + 47) << 52);
    return bits_of_double(series * power + TO_INTEGER) - bits_of_double(TO_INTEGER);
}

// The uniform in [0, 1) of a token, by Philox4x32-10: `token_uniform`.
DEV double token_uniform(u64 seed, u64 image, u32 scale, u32 token) {
    u32 c0 = token, c1 = scale & 0x7fffffffu, c2 = (u32)image, c3 = (u32)(image >> 32);
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
        const u32 d0 = (u32)(b >> 32) ^ c1 ^ k0, d2 = (u32)(a >> 32) ^ c3 ^ k1;
        c0 = d0, c1 = (u32)b, c2 = d2, c3 = (u32)a;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return (double)(((u64)c1 << 32 | c0) >> 11) * (1.0 / 9007199254740992.0);
}

// x as an integer, rounded down; 0 below 1 and for NaN.
DEV u64 whole_part(double x) { return x >= 1.0 ? (u64)x : 0; }
