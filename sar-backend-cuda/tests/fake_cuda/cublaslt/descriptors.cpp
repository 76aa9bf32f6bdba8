// Handles and descriptors: made, changed, destroyed.
#include "types.h"
#include <cstdlib>
#include <string>

using namespace lt;

namespace {

Result unknown(const char* of, int attribute) {
    fake::complain(std::string(of) + " attribute " + std::to_string(attribute) + " is not modelled");
    return INVALID_VALUE;
}

} // namespace

LT_API int cublasLtCreate(Handle** handle) {
    if (!fake::has_current_context()) return NOT_INITIALIZED;
    fake::count("cuBLASLt handles", 1);
    *handle = new Handle;
    return OK;
}

// Of CUDA 12.9 unless the test says otherwise.
LT_API size_t cublasLtGetVersion() {
    const char* version = std::getenv("SAR_FAKE_CUBLASLT_VERSION");
    return version ? std::strtoull(version, nullptr, 10) : 120901;
}

LT_API int cublasLtDestroy(Handle* handle) {
    if (!fake::has_current_context()) fake::complain("cublasLtDestroy without a living context");
    fake::count("cuBLASLt handles", -1);
    delete handle;
    return OK;
}

LT_API int cublasLtMatmulDescCreate(Product** product, int compute, int scale) {
    fake::count("descriptors of products", 1);
    *product = new Product{compute, scale};
    return OK;
}

LT_API int cublasLtMatmulDescDestroy(Product* product) {
    fake::count("descriptors of products", -1);
    delete product;
    return OK;
}

LT_API int cublasLtMatmulDescSetAttribute(Product* p, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
    case 0: return assign(p->compute, value, bytes);
    case 1: return assign(p->scale, value, bytes);
    case 3: return assign(p->trans_a, value, bytes);
    case 4: return assign(p->trans_b, value, bytes);
    case 7: return assign(p->epilogue, value, bytes);
    case 8: return assign(p->bias, value, bytes);
    case 10: return assign(p->bias_stride, value, bytes);
    case 26: return assign(p->bias_type, value, bytes);
    default: return unknown("cublasLtMatmulDesc", attribute);
    }
}

LT_API int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    fake::count("layouts", 1);
    *layout = new Layout{static_cast<uint32_t>(type), rows, cols, ld};
    return OK;
}

LT_API int cublasLtMatrixLayoutDestroy(Layout* layout) {
    fake::count("layouts", -1);
    delete layout;
    return OK;
}

LT_API int cublasLtMatrixLayoutSetAttribute(Layout* l, int attribute, const void* value, size_t bytes) {
    int32_t order = ORDER_COL;
    Result result;
    switch (attribute) {
    case 0: return assign(l->type, value, bytes);
    case 1:
        result = assign(order, value, bytes);
        return order == ORDER_COL ? result : unknown("row-major order as a layout", attribute);
    case 2: return assign(l->rows, value, bytes);
    case 3: return assign(l->cols, value, bytes);
    case 4: return assign(l->ld, value, bytes);
    case 5: return assign(l->batch, value, bytes);
    case 6: return assign(l->stride, value, bytes);
    default: return unknown("cublasLtMatrixLayout", attribute);
    }
}

LT_API int cublasLtMatmulPreferenceCreate(Preference** preference) {
    fake::count("preferences", 1);
    *preference = new Preference;
    return OK;
}

LT_API int cublasLtMatmulPreferenceDestroy(Preference* preference) {
    fake::count("preferences", -1);
    delete preference;
    return OK;
}

LT_API int cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
    case 1: return assign(p->workspace, value, bytes);
    case 3: return assign(p->reductions, value, bytes);
    case 5:
    case 6:
    case 7:
    case 8: return assign(p->alignment[attribute - 5], value, bytes);
    default: return unknown("cublasLtMatmulPreference", attribute);
    }
}
