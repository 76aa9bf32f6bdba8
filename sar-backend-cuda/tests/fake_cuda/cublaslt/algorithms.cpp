// Which algorithms there are for a product, and whether one fits. As in the library, the first choice
// changes with the size, and algorithms differ in the order in which they add.
#include "types.h"
#include <algorithm>
#include <cstdlib>
#include <initializer_list>

using namespace lt;

namespace {

constexpr uint64_t SPLIT_WORKSPACE = 1 << 20;
// Columns of the output from which on another algorithm is the first choice.
constexpr uint64_t FEW_COLUMNS = 64;
// Terms from which on split sums are offered, whether asked for or not.
constexpr uint64_t LONG_SUM = 8;
constexpr uint32_t WIDTHS[] = {16, 8, 4, 2};

bool types_match(const Operation& o) {
    const uint32_t a = o.a->type, b = o.b->type, c = o.c->type, d = o.d->type;
    if (a != b || c != d) return false;
    return (a == R_32F && d == R_32F) || (a == R_16BF && (d == R_16BF || d == R_32F));
}

bool keeps_alignment(const Layout& layout, uint32_t width) {
    const uint64_t column = static_cast<uint64_t>(layout.ld) * size_of(layout.type);
    const uint64_t matrix = static_cast<uint64_t>(layout.stride) * size_of(layout.type);
    return column % width == 0 && (layout.batch == 1 || matrix % width == 0);
}

// Every kernel of the library loads elements whole.
uint32_t least_width(const Operation& o) { return static_cast<uint32_t>(size_of(o.a->type)); }

uint32_t widest(const Operation& o, const Preference& preference) {
    const uint32_t promised = *std::min_element(preference.alignment, preference.alignment + 4);
    for (const uint32_t width : WIDTHS) {
        if (width > promised || width < least_width(o)) continue;
        if (fits(o, {ALGORITHM_MAGIC, 0, width, 1, 0, 0, 0, {}}) == OK) return width;
    }
    return 0;
}

} // namespace

namespace lt {

Size size_of(const Operation& o) {
    const bool turned = o.product->trans_a == OP_T;
    return {o.d->rows, o.d->cols, turned ? o.a->rows : o.a->cols};
}

Result check(const Operation& o) {
    if (o.product->compute != COMPUTE_32F) {
        fake::complain("a product that does not ask for f32 sums of f32 numbers");
        return NOT_SUPPORTED;
    }
    if (o.product->scale != R_32F || !types_match(o)) return NOT_SUPPORTED;
    const uint32_t epilogue = o.product->epilogue;
    if (epilogue != EPILOGUE_DEFAULT && epilogue != EPILOGUE_BIAS) return NOT_SUPPORTED;
    for (const Layout* layout : {o.a, o.b, o.c, o.d}) {
        if (layout->rows == 0 || layout->cols == 0) return INVALID_VALUE;
        if (layout->ld < static_cast<int64_t>(layout->rows)) return INVALID_VALUE;
        if (layout->batch != o.d->batch || layout->batch < 1) return INVALID_VALUE;
    }
    const bool a_turned = o.product->trans_a == OP_T, b_turned = o.product->trans_b == OP_T;
    const uint64_t m = a_turned ? o.a->cols : o.a->rows, k = a_turned ? o.a->rows : o.a->cols;
    const uint64_t k_of_b = b_turned ? o.b->cols : o.b->rows, n = b_turned ? o.b->rows : o.b->cols;
    const bool shapes = k == k_of_b && o.d->rows == m && o.d->cols == n && o.c->rows == m && o.c->cols == n;
    return shapes ? OK : INVALID_VALUE;
}

uint64_t idle_works(const Operation& o, const Algorithm& algorithm) {
    if (algorithm.tile == SLOW_TILE) return 3;
    return algorithm.tile == LARGE_TILE && size_of(o).n < FEW_COLUMNS ? 1 : 0;
}

Result fits(const Operation& o, const Algorithm& algorithm) {
    if (algorithm.magic != ALGORITHM_MAGIC) return INVALID_VALUE;
    if (const Result result = check(o)) return result;
    if (algorithm.width < least_width(o)) return NOT_SUPPORTED;
    for (const Layout* layout : {o.a, o.b, o.c, o.d}) {
        if (!keeps_alignment(*layout, algorithm.width)) return NOT_SUPPORTED;
    }
    return OK;
}

} // namespace lt

LT_API int cublasLtMatmulAlgoGetHeuristic(Handle*, Product* product, Layout* a, Layout* b, Layout* c,
                                          Layout* d, Preference* preference, int wanted,
                                          HeuristicResult* results, int* count) {
    const Operation o{product, a, b, c, d};
    *count = 0;
    if (const Result result = check(o)) return result;
    if (product->epilogue == EPILOGUE_BIAS && product->bias == 0) {
        fake::complain("an algorithm with a bias is looked for before the bias has an address");
        return INVALID_VALUE;
    }
    // Where they are larger, some versions choose algorithms that fail when they run.
    for (const Layout* matrix : {a, b, c, d}) {
        if (static_cast<uint64_t>(matrix->ld) * matrix->cols > INT32_MAX) {
            fake::complain("an algorithm is looked for of a matrix whose elements 31 bits cannot count");
            return INVALID_VALUE;
        }
    }
    const uint32_t width = widest(o, *preference);
    if (width == 0) return NOT_SUPPORTED;
    const bool split = (preference->reductions & 2) != 0 && preference->workspace >= SPLIT_WORKSPACE;
    const bool few = size_of(o).n < FEW_COLUMNS;
    const auto offer = [&](uint32_t order, int32_t parts, int32_t state, uint32_t reduction = 0,
                           uint64_t tile = 0) {
        if (*count >= wanted) return;
        const uint64_t workspace = parts > 1 ? SPLIT_WORKSPACE : 0;
        const Algorithm algorithm{ALGORITHM_MAGIC, order, width, parts, reduction, workspace, tile, {}};
        results[(*count)++] = {algorithm, workspace, state, 1.0f, {}};
    };
    // A result whose state is not success must be passed over.
    offer(few ? 1 : 0, 1, NOT_SUPPORTED);
    // What is preferred is not what each result is: its settings tell.
    offer(0, 4, OK, 1);
    offer(0, 1, OK, 1);
    if (split || size_of(o).k >= LONG_SUM) offer(0, 4, OK, 2);
    offer(few ? 1 : 0, 1, OK);
    // Of few columns there are two of other tiles whose sums are the same: the slow one comes first.
    if (few) offer(0, 1, OK, 0, SLOW_TILE);
    if (few) offer(0, 1, OK, 0, SMALL_TILE);
    offer(few ? 0 : 1, 1, OK);
    return OK;
}

// "The algo will fail if, for example, the buffers are not correctly aligned": addresses are not
// looked at here.
LT_API int cublasLtMatmulAlgoCheck(Handle*, Product* product, Layout* a, Layout* b, Layout* c, Layout* d,
                                   const Algorithm* algorithm, HeuristicResult* result) {
    const Operation o{product, a, b, c, d};
    // As newer GPUs are said to do with algorithms that were chosen for another size.
    const char* refused = std::getenv("SAR_FAKE_REFUSED_ROWS");
    if (refused && size_of(o).n == std::strtoull(refused, nullptr, 10)) return NOT_SUPPORTED;
    // Some take one product at a time.
    const char* alone = std::getenv("SAR_FAKE_ONE_PRODUCT");
    if (alone && d->batch > 1 && algorithm->order == std::strtoull(alone, nullptr, 10)) return NOT_SUPPORTED;
    const Result outcome = fits(o, *algorithm);
    if (outcome == OK) *result = {*algorithm, algorithm->workspace, OK, 1.0f, {}};
    return outcome;
}

LT_API int cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int attribute, void* value,
                                                size_t bytes, size_t* written) {
    if (algorithm->magic != ALGORITHM_MAGIC || bytes != 4) return INVALID_VALUE;
    switch (attribute) {
    case 2: std::memcpy(value, &algorithm->split_k, 4); break;   // SPLITK_NUM
    case 3: std::memcpy(value, &algorithm->reduction, 4); break; // REDUCTION_SCHEME
    default: return INVALID_VALUE;
    }
    *written = 4;
    return OK;
}
