// Objects of the fake cuBLASLt. Numbers are those of cublasLt.h and library_types.h.
#pragma once
#include "../hooks.h"
#include <cstdint>
#include <cstring>

#define LT_API extern "C" __attribute__((visibility("default")))

namespace lt {

enum Result {
    OK = 0,
    NOT_INITIALIZED = 1,
    ALLOC_FAILED = 3,
    INVALID_VALUE = 7,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15,
};

enum Type { R_32F = 0, R_16BF = 14 };
enum { COMPUTE_32F = 68, OP_N = 0, OP_T = 1, EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4, ORDER_COL = 0 };

inline uint64_t size_of(int type) { return type == R_32F ? 4 : 2; }

struct Handle {};

struct Product {
    int32_t compute, scale;
    int32_t trans_a = OP_N, trans_b = OP_N;
    uint32_t epilogue = EPILOGUE_DEFAULT;
    uint64_t bias = 0;
    int64_t bias_stride = 0;
    int32_t bias_type = -1; // as the output
};

// A column-major matrix of `rows` rows, each column `ld` elements after the last.
struct Layout {
    uint32_t type;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch = 1;
    int64_t stride = 0;
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t reductions = 7; // all
    uint32_t alignment[4] = {256, 256, 256, 256}; // of A, B, C, D, promised by the caller
};

// cublasLtMatmulAlgo_t: 64 bytes of the library's own.
struct Algorithm {
    uint64_t magic;
    uint32_t order;     // in which it adds: see matmul.cpp
    uint32_t width;     // bytes that it loads at once: what it needs addresses aligned to
    int32_t split_k;    // parts of the sum, added by a reduction through memory
    uint32_t reduction; // 0 for none
    uint64_t workspace;
    uint64_t tile; // changes no bit, and the time
    uint64_t unused[3];
};
static_assert(sizeof(Algorithm) == 64, "as cublasLtMatmulAlgo_t");

constexpr uint64_t LARGE_TILE = 0, SMALL_TILE = 1, SLOW_TILE = 2;
constexpr uint64_t ALGORITHM_MAGIC = 0x5341525f414c474full;

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace;
    int32_t state;
    float waves;
    int32_t reserved[4];
};

// The descriptors of a call, A·B with C added, to D.
struct Operation {
    const Product* product;
    const Layout *a, *b, *c, *d;
};

// Whether types, sizes and leading dimensions are those of a product.
Result check(const Operation& operation);
// Whether an algorithm can do a product: strides and leading dimensions keep what it loads at once
// aligned, where the first element is.
Result fits(const Operation& operation, const Algorithm& algorithm);
// Works that an algorithm takes besides its own, with nothing to do: those of time alone.
uint64_t idle_works(const Operation& operation, const Algorithm& algorithm);

struct Size {
    uint64_t m, n, k;
};
Size size_of(const Operation& operation);

// Copies an attribute's value where its size is the right one.
template <class T> Result assign(T& to, const void* value, size_t bytes) {
    if (value == nullptr || bytes != sizeof(T)) return INVALID_VALUE;
    std::memcpy(&to, value, sizeof(T));
    return OK;
}

} // namespace lt
