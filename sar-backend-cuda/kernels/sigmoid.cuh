// 1/(1+2^t) as activations need it: two instructions of the special-function unit, where expf and a
// division are some 25 others and would make GELU slower than its memory.
#pragma once

// To about 1 ulp; of an infinity, 0. For 1 <= x.
DEV float reciprocal(float x) {
#ifdef EMU
    return 1.f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// 1/(1+2^t); exactly 0 and 1 far from t = 0, never a NaN but of one.
DEV float sigmoid_exp2(float t) { return reciprocal(1.f + fast_exp2(t)); }
