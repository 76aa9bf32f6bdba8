// Arithmetic that CUDA has and C++ has not. expf, logf, fmaxf and their like come from <cmath>.
#pragma once
#include "vector_types.h"
#include <atomic>
#include <cmath>
#include <cstring>

namespace emu {

template <class To, class From> inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

} // namespace emu

inline float __uint_as_float(u32 bits) { return emu::bits_as<float>(bits); }
inline u32 __float_as_uint(float value) { return emu::bits_as<u32>(value); }
inline float __int_as_float(int bits) { return emu::bits_as<float>(bits); }
inline int __float_as_int(float value) { return emu::bits_as<int>(value); }
inline double __longlong_as_double(long long bits) { return emu::bits_as<double>(bits); }
inline long long __double_as_longlong(double value) { return emu::bits_as<long long>(value); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

// ex2.approx.ftz.f32: subnormal arguments and results are zero.
inline float fast_exp2(float x) {
    const float y = exp2f(x);
    return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}

inline u32 __umulhi(u32 a, u32 b) { return static_cast<u32>(static_cast<u64>(a) * b >> 32); }
inline int __popc(u32 x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<u32>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline u32 min(u32 a, u32 b) { return b < a ? b : a; }
inline u32 max(u32 a, u32 b) { return a < b ? b : a; }
inline long long min(long long a, long long b) { return b < a ? b : a; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
inline u64 min(u64 a, u64 b) { return b < a ? b : a; }
inline u64 max(u64 a, u64 b) { return a < b ? b : a; }

template <class T> inline T __ldg(const T* address) { return *address; }

// ---- atomics: blocks may run on several OS threads. All return the value before.

inline u32 atomicAdd(u32* address, u32 value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline int atomicAdd(int* address, int value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline u32 atomicMax(u32* address, u32 value) {
    u32 old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (old < value && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED,
                                                       __ATOMIC_RELAXED)) {
    }
    return old;
}
inline u32 atomicMin(u32* address, u32 value) {
    u32 old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value < old && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED,
                                                       __ATOMIC_RELAXED)) {
    }
    return old;
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() {}
