// D = alpha·op(A)·op(B) + beta·C, with the bias of each row added: column-major, f32 sums.
#include "types.h"
#include <string>

using namespace lt;

namespace {

constexpr uint64_t WORKSPACE_ALIGNMENT = 256;
constexpr uint64_t BIAS_ALIGNMENT = 16;
// Partial sums of the second order of addition.
constexpr uint64_t LANES = 4;
// Terms that a split sum takes at a time.
constexpr uint64_t BLOCK = 64;

float load(uint64_t address, uint32_t type, uint64_t at) {
    if (type == R_32F) return reinterpret_cast<const float*>(address)[at];
    const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(address)[at]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Round to nearest even; a NaN stays one.
void store(uint64_t address, uint32_t type, uint64_t at, float value) {
    if (type == R_32F) {
        reinterpret_cast<float*>(address)[at] = value;
        return;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool nan = value != value;
    const uint32_t rounded = nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
    reinterpret_cast<uint16_t*>(address)[at] = static_cast<uint16_t>(rounded >> 16);
}

// All that a call is given, copied: descriptors and scalars are the caller's again on its return.
struct Call {
    Product product;
    Layout a, b, c, d;
    uint64_t at_a, at_b, at_c, at_d;
    float alpha, beta;
    Algorithm algorithm;

    Operation operation() const { return {&product, &a, &b, &c, &d}; }

    float term(uint64_t batch, uint64_t i, uint64_t j, uint64_t l) const {
        const bool a_turned = product.trans_a == OP_T, b_turned = product.trans_b == OP_T;
        const uint64_t in_a = batch * a.stride + (a_turned ? i * a.ld + l : l * a.ld + i);
        const uint64_t in_b = batch * b.stride + (b_turned ? l * b.ld + j : j * b.ld + l);
        return load(at_a, a.type, in_a) * load(at_b, b.type, in_b);
    }

    // Order 0 adds one after the other; order 1 adds every fourth, then the four; a split sum adds its
    // parts, each one after the other.
    float sum(uint64_t batch, uint64_t i, uint64_t j, uint64_t k) const {
        if (algorithm.split_k > 1) {
            const uint64_t parts = algorithm.split_k, left = k % BLOCK;
            // As the library was seen to: what follows the last whole block of terms may get lost.
            if (left < parts && k / BLOCK % parts == 0) k -= left;
            const uint64_t part = (k + parts - 1) / parts;
            float whole = 0;
            for (uint64_t from = 0; from < k; from += part) {
                float sum = 0;
                for (uint64_t l = from; l < k && l < from + part; l++) sum += term(batch, i, j, l);
                whole += sum;
            }
            return whole;
        }
        if (algorithm.order == 0) {
            float sum = 0;
            for (uint64_t l = 0; l < k; l++) sum += term(batch, i, j, l);
            return sum;
        }
        float sums[LANES] = {};
        for (uint64_t l = 0; l < k; l++) sums[l % LANES] += term(batch, i, j, l);
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }

    void element(uint64_t batch, uint64_t i, uint64_t j, uint64_t k) const {
        float value = alpha * sum(batch, i, j, k);
        // C is not read where beta is zero: it may hold anything.
        if (beta != 0) value += beta * load(at_c, c.type, batch * c.stride + j * c.ld + i);
        if (product.epilogue == EPILOGUE_BIAS) {
            value += load(product.bias, bias_type(), batch * product.bias_stride + i);
        }
        store(at_d, d.type, batch * d.stride + j * d.ld + i, value);
    }

    fake::Status run() const {
        const Size size = size_of(operation());
        for (uint64_t batch = 0; batch < static_cast<uint64_t>(d.batch); batch++) {
            for (uint64_t j = 0; j < size.n; j++) {
                for (uint64_t i = 0; i < size.m; i++) element(batch, i, j, size.k);
            }
        }
        return fake::SUCCESS;
    }

    uint32_t bias_type() const { return product.bias_type == -1 ? d.type : static_cast<uint32_t>(product.bias_type); }

    fake::Range bias_range() const { return {product.bias, d.rows * size_of(bias_type())}; }
};

fake::Range range(uint64_t address, const Layout& l) {
    const uint64_t last = (l.batch - 1) * l.stride + (l.cols - 1) * l.ld + l.rows;
    return {address, last * size_of(l.type)};
}

Result refused(const std::string& why) {
    fake::complain("cublasLtMatmul: " + why);
    return INVALID_VALUE;
}

Result check_addresses(const Call& call) {
    for (const uint64_t address : {call.at_a, call.at_b, call.at_c, call.at_d}) {
        if (address % call.algorithm.width != 0) {
            return refused("an address is less aligned than its algorithm was promised");
        }
    }
    if (call.at_c == call.at_d && (call.c.ld != call.d.ld || call.c.stride != call.d.stride)) {
        return refused("in place, with two layouts");
    }
    if (call.d.batch > 1 && static_cast<uint64_t>(call.d.stride) < (call.d.cols - 1) * call.d.ld + call.d.rows) {
        return refused("products of a batch write over each other");
    }
    if (call.product.epilogue != EPILOGUE_BIAS) return OK;
    // The manual gives the type of a bias for each type of output, and no other.
    if (call.bias_type() != call.d.type) return refused("a bias of another type than the output's");
    if (call.product.bias == 0 || call.product.bias % BIAS_ALIGNMENT != 0) {
        return refused("a bias that vectors of 16 bytes cannot be loaded from");
    }
    return OK;
}

} // namespace

LT_API int cublasLtMatmul(Handle* handle, Product* product, const float* alpha, uint64_t a, Layout* layout_a,
                          uint64_t b, Layout* layout_b, const float* beta, uint64_t c, Layout* layout_c,
                          uint64_t d, Layout* layout_d, const Algorithm* algorithm, uint64_t workspace,
                          size_t workspace_bytes, void* stream) {
    if (handle == nullptr || algorithm == nullptr) return INVALID_VALUE;
    const Call call{*product, *layout_a, *layout_b, *layout_c, *layout_d, a, b, c, d,
                    *alpha,   *beta,     *algorithm};
    if (const Result result = fits(call.operation(), call.algorithm)) return result;
    if (const Result result = check_addresses(call)) return result;
    if (algorithm->reduction == 1) return refused("sums that are added in whatever order blocks end");
    if (call.algorithm.workspace > workspace_bytes) return refused("a workspace that is too small");
    if (workspace % WORKSPACE_ALIGNMENT != 0) return refused("a workspace that is not aligned");
    std::vector<fake::Range> touches = {range(a, call.a), range(b, call.b), range(d, call.d)};
    if (workspace_bytes > 0) touches.push_back({workspace, workspace_bytes});
    if (call.beta != 0) touches.push_back(range(c, call.c));
    if (call.product.epilogue == EPILOGUE_BIAS) touches.push_back(call.bias_range());
    // Time is counted in works.
    for (uint64_t i = 0; i < idle_works(call.operation(), *algorithm); i++) {
        const fake::Work idle{"cublasLtMatmul", {}, [] { return fake::SUCCESS; }};
        if (fake::submit(stream, idle) != fake::SUCCESS) return EXECUTION_FAILED;
    }
    const fake::Work work{"cublasLtMatmul", touches, [call] { return call.run(); }};
    return fake::submit(stream, work) == fake::SUCCESS ? OK : EXECUTION_FAILED;
}
