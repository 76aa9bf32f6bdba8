// Proves that the emulator computes what CUDA does, and that it sees each kind of planted bug.
// Prints a line a check and fails if one fails.
//
//   g++ -std=c++17 -O2 -DEMU -fno-strict-aliasing -ffp-contract=off -Wno-unknown-pragmas
//       -fsanitize=alignment,null,bounds,shift-exponent selftest.cpp -o /tmp/selftest -pthread
//       && /tmp/selftest
#include "emulator.cpp"
#include "selftest/faults.cu"
#include "selftest/sound.cu"

namespace {

int failures = 0;

void check(const char* what, bool holds, const std::string& detail = "") {
    std::printf("%s %s%s%s\n", holds ? "ok  " : "FAIL", what, detail.empty() ? "" : ": ",
                detail.c_str());
    failures += !holds;
}

// The numbers 0 to 1 of a fixed sequence.
struct Numbers {
    emu::Random random{42};

    float next() { return static_cast<float>(random.below(1 << 24)) / (1 << 24); }
};

struct Shape {
    u32 blocks = 1, threads = 32, dynamic_bytes = 0, os_threads = 1;
    u64 seed = 0;
};

// Launches a kernel and gives the message of its failure, or nothing.
template <class... Arguments>
std::string launch(const char* name, Shape shape, Arguments... arguments) {
    void* pointers[] = {static_cast<void*>(&arguments)..., nullptr};
    const u32 grid[3] = {shape.blocks, 1, 1}, block[3] = {shape.threads, 1, 1};
    char error[512];
    const std::string key = std::string("/") + name;
    const int code = sar_emu_launch(key.c_str(), grid, block, shape.dynamic_bytes, pointers,
                                    shape.os_threads, shape.seed, error, sizeof error);
    if ((code != 0) != (error[0] != '\0')) return "code and message disagree";
    return error;
}

template <class... Arguments>
void expect_fault(const char* name, const char* message, Shape shape, Arguments... arguments) {
    const std::string error = launch(name, shape, arguments...);
    check(name, error.find(message) != std::string::npos, error.empty() ? "not caught" : error);
}

// ---- planted bugs

// Whether the results of the seeds 0 to 3 are the same.
bool same_for_all_seeds(const char* name) {
    std::vector<int> first(64), out(64);
    bool same = launch(name, {1, 64, 0, 1, 0}, first.data()).empty();
    for (u64 seed = 1; seed < 4; seed++) {
        std::fill(out.begin(), out.end(), -2);
        same = same && launch(name, {1, 64, 0, 1, seed}, out.data()).empty() && out == first;
    }
    return same;
}

void check_orders() {
    check("missing __syncthreads depends on the seed", !same_for_all_seeds("missing_barrier"));
    check("its sound twin does not", same_for_all_seeds("with_barrier"));
    check("missing __syncwarp depends on the seed", !same_for_all_seeds("missing_syncwarp"));
    check("its sound twin does not", same_for_all_seeds("with_syncwarp"));
}

size_t count_nan(const std::vector<float>& values) {
    size_t count = 0;
    for (const float value : values) count += std::isnan(value);
    return count;
}

void check_poison() {
    float* in = static_cast<float*>(sar_emu_alloc(128 * sizeof(float)));
    for (int i = 0; i < 128; i++) in[i] = static_cast<float>(i);
    std::vector<float> out(128);
    std::string error = launch("missing_cp_wait", {}, out.data(), in);
    check("missing cp_wait reads NaN", error.empty() && count_nan(out) == 128, error);
    error = launch("with_cp_wait", {}, out.data(), in);
    check("its sound twin copies", error.empty() && std::equal(out.begin(), out.end(), in), error);
    sar_emu_free(in);

    out.assign(64, 0.0f);
    error = launch("uninitialised_shared", {1, 32, 128}, out.data());
    check("uninitialised shared memory reads NaN", error.empty() && count_nan(out) == 64, error);
    out.assign(32, 0.0f);
    error = launch("shuffle_from_outside", {}, out.data());
    check("shuffle from a lane outside of the mask gives NaN",
          error.empty() && count_nan(out) == 16, error);
}

void check_red_zones() {
    expect_fault("write_shared", "past the end of s (128 bytes)", {}, 32);
    expect_fault("write_shared", "before the start of s", {}, -1);
    expect_fault("write_dynamic", "past the end of dynamic shared memory", {1, 32, 128}, 32);
    check("writes inside are fine", launch("write_shared", {}, 31).empty());
    check("writes inside are fine", launch("write_dynamic", {1, 32, 128}, 31).empty());
}

void check_meetings() {
    std::vector<float> out(64);
    std::vector<u32> words(64);
    expect_fault("divergent_barrier", "divergent __syncthreads", {1, 64});
    expect_fault("barrier_against_shuffle", "deadlock", {}, out.data());
    expect_fault("lane_not_in_mask", "thread (16,0,0): faults.cu", {}, out.data());
    expect_fault("lane_not_in_mask", "not in mask", {}, out.data());
    expect_fault("masks_disagree", "mask", {}, words.data());
    expect_fault("operations_disagree", "meets", {}, words.data());
    expect_fault("mma_of_half_a_warp", "needs all 32 lanes", {}, out.data());
}

void check_addresses() {
    alignas(16) float in[64] = {};
    alignas(16) u32 words[256];
    expect_fault("misaligned_ldmatrix", "thread (9,0,0): faults.cu", {}, words);
    expect_fault("misaligned_ldmatrix", "not 16-byte aligned", {}, words);
    expect_fault("ldmatrix_of_global", "not shared memory", {}, words);
    expect_fault("misaligned_cp_async", "not 16-byte aligned", {}, in);
    // These need -fsanitize=alignment,null,bounds,shift-exponent.
    expect_fault("misaligned_vector", "not aligned", {}, words, static_cast<const float*>(in));
    expect_fault("null_pointer", "null pointer", {}, in, static_cast<const float*>(nullptr));
    expect_fault("index_outside", "outside", {}, in, 4);
    expect_fault("shift_too_far", "shift", {}, words, 32);
}

void check_limits() {
    float out;
    u8 byte;
    expect_fault("too_much_shared", "at most 49152", {}, &out);
    expect_fault("too_much_stack", "stack", {1, 1}, &byte, 66600);
    check("a kernel runs after that", launch("write_shared", {}, 31).empty());
    expect_fault("no_such_kernel", "no such kernel", {});
    expect_fault("registered_twice", "registered twice", {});
    expect_fault("write_shared", "block of 1025", {1, 1025}, 0);
    expect_fault("write_shared", "grid of 0", {0, 32}, 0);
    expect_fault("write_dynamic", "at most 166912", {1, 32, 166913}, 0);
}

// ---- sound kernels

void check_parameters() {
    double sum = 0.0;
    launch("parameters", {}, &sum, u8{1}, 2.5f, Pair{3.25, 4}, 5);
    check("parameters by value", sum == 15.75);
    const int* bytes = sar_emu_parameters("/parameters");
    const int expected[] = {8, 1, 4, 16, 4, -1};
    check("sizes of parameters", bytes != nullptr && std::equal(expected, expected + 6, bytes));
    bool listed = false;
    for (int i = 0; i < sar_emu_kernel_count(); i++) {
        listed = listed || std::strcmp(sar_emu_kernel_name(i), "/parameters") == 0;
    }
    check("kernels are listed", listed && sar_emu_kernel_name(sar_emu_kernel_count()) == nullptr);
}

void check_indices() {
    const u32 grid[3] = {3, 2, 2}, block[3] = {5, 4, 3};
    bool right = true;
    for (u64 seed = 0; seed < 4; seed++) {
        std::vector<u32> out(3 * 2 * 2 * 60, ~0u);
        u32* pointer = out.data();
        void* arguments[] = {&pointer};
        right = right &&
                sar_emu_launch("/indices", grid, block, 0, arguments, 2, seed, nullptr, 0) == 0;
        for (u32 i = 0; i < out.size(); i++) right = right && out[i] == i;
    }
    check("indices in three dimensions, partial warps", right);
}

// What warp_operations stores for an operation and lane.
u32 expected_of_warp(int operation, u32 lane) {
    const u32 value = 1000 + lane, segment = lane & ~7u;
    switch (operation) {
    case 0: return 1005;
    case 1: return 1000 + (lane + 3) % 32;
    case 2: return 1000 + segment + 1;
    case 3: return 1000 + (lane ^ 21);
    // Eight lanes on is a later segment, where a lane keeps its own value; eight back is not.
    case 4: return lane / 8 % 2 == 0 ? value : 1000 + (lane ^ 12);
    case 5: return lane < 3 ? value : value - 3;
    case 6: return lane % 8 < 3 ? value : value - 3;
    case 7: return lane > 28 ? value : value + 3;
    case 8: return lane % 8 > 4 ? value : value + 3;
    case 9: return 0x49249249u;
    case 10: return 1;
    case 11: return 1;
    case 12: return lane < 16 ? 0xaaaau : 1000 + (lane ^ 1);
    default: return lane == 31 ? 63 : 2 * lane + 3;
    }
}

void check_warp_operations() {
    for (u64 seed = 0; seed < 4; seed++) {
        std::vector<u32> out(14 * 32);
        const std::string error = launch("warp_operations", {1, 32, 0, 1, seed}, out.data());
        int wrong = 0;
        for (u32 i = 0; i < out.size(); i++) wrong += out[i] != expected_of_warp(i / 32, i % 32);
        check("shuffles and votes", error.empty() && wrong == 0,
              emu::print("seed %llu, %d wrong", seed, wrong) + error);
    }
}

void check_returns() {
    bool right = true;
    for (u64 seed = 0; seed < 4; seed++) {
        std::vector<u32> votes(40, 0);
        const Shape shape = {1, 40, 0, 1, seed};
        right = right && launch("votes_after_return", shape, votes.data(), 36).empty();
        for (u32 i = 0; i < 40; i++) {
            right = right && votes[i] == (i < 32 ? ~0u : i < 36 ? 15u : 0u);
        }
        std::vector<int> out(64, 0);
        right = right && launch("barrier_after_return", {1, 64, 0, 1, seed}, out.data()).empty();
        for (int i = 0; i < 64; i += 2) right = right && out[i] == (i + 32) % 64 * 2;
    }
    check("threads that return early are not waited for", right);
}

// Sums of 16 products of numbers below 1: rounding of f32 sums is below this.
const double TILE_TOLERANCE = 1e-6;

void check_tile_products() {
    Numbers numbers;
    u16 a_mk[256], a_km[256], b_kn[128], b_nk[128];
    for (int m = 0; m < 16; m++) {
        for (int k = 0; k < 16; k++) {
            a_mk[m * 16 + k] = a_km[k * 16 + m] = bf16_bits(numbers.next() * 2.0f - 1.0f);
        }
    }
    for (int k = 0; k < 16; k++) {
        for (int n = 0; n < 8; n++) {
            b_kn[k * 8 + n] = b_nk[n * 16 + k] = bf16_bits(numbers.next() * 2.0f - 1.0f);
        }
    }
    std::vector<float> out(512);
    const std::string error = launch("tile_products", {}, out.data(), a_mk, a_km, b_kn, b_nk);
    const char* names[] = {"tile product, ldmatrix x4 and x2.trans", "tile product, x4 and x2",
                           "tile product, x4.trans and x2.trans", "tile product, x4.trans and x4"};
    for (int product = 0; product < 4; product++) {
        double worst = 0.0;
        for (int m = 0; m < 16; m++) {
            for (int n = 0; n < 8; n++) {
                double sum = 0.0;
                for (int k = 0; k < 16; k++) {
                    sum += static_cast<double>(to_float(bf16{a_mk[m * 16 + k]})) *
                           to_float(bf16{b_kn[k * 8 + n]});
                }
                worst = std::fmax(worst, std::fabs(sum - out[product * 128 + m * 8 + n]));
            }
        }
        check(names[product], error.empty() && worst < TILE_TOLERANCE,
              emu::print("largest difference from f64 %.1e", worst) + error);
    }
}

const int ROWS = 37, STAGES = 5;

struct Sums {
    std::string error;
    std::vector<float> sums = std::vector<float>(ROWS);
    u32 positive = 0;
};

Sums row_sums_of(const float* in, u32 os_threads, u64 seed) {
    Sums result;
    result.error = launch("row_sums", {ROWS, 64, 2048, os_threads, seed}, result.sums.data(),
                          &result.positive, in, STAGES);
    return result;
}

// Sums of 1280 numbers of -1 to 1.
const double SUM_TOLERANCE = 1e-4;

void check_row_sums() {
    const size_t count = static_cast<size_t>(ROWS) * STAGES * 256;
    float* in = static_cast<float*>(sar_emu_alloc(count * sizeof(float)));
    Numbers numbers;
    for (size_t i = 0; i < count; i++) in[i] = numbers.next() * 2.0f - 1.0f;
    const Sums first = row_sums_of(in, 1, 0);
    double worst = 0.0;
    u32 positive = 0;
    for (int row = 0; row < ROWS; row++) {
        double sum = 0.0;
        for (size_t i = 0; i < STAGES * 256; i++) {
            sum += in[static_cast<size_t>(row) * STAGES * 256 + i];
            positive += in[static_cast<size_t>(row) * STAGES * 256 + i] > 0.0f;
        }
        worst = std::fmax(worst, std::fabs(sum - first.sums[row]));
    }
    check("sums through cp.async, shuffles and shared memory",
          first.error.empty() && worst < SUM_TOLERANCE && first.positive == positive,
          emu::print("largest difference from f64 %.1e", worst) + first.error);

    bool same = true;
    for (u64 seed = 0; seed < 6; seed++) {
        for (u32 os_threads = 1; os_threads <= 4; os_threads++) {
            const Sums other = row_sums_of(in, os_threads, seed);
            same = same && other.error.empty() && other.sums == first.sums &&
                   other.positive == first.positive;
        }
    }
    check("the same bits for every seed and number of OS threads", same);

    std::atomic<int> different{0};
    std::vector<std::thread> callers;
    for (u32 caller = 0; caller < 4; caller++) {
        callers.emplace_back([&, caller] {
            for (int i = 0; i < 20; i++) {
                const Sums other = row_sums_of(in, 1 + caller % 2, caller);
                different += !other.error.empty() || other.sums != first.sums;
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    check("the same bits for launches at the same time", different == 0);
    sar_emu_free(in);
}

// Nearest bf16 by trying both neighbours in f64; ties go to the even one.
u16 nearest_bf16(float value) {
    const u32 bits = __float_as_uint(value);
    const u16 below = static_cast<u16>(bits >> 16);
    const u32 rest = bits & 0xffffu;
    const bool up = rest > 0x8000u || (rest == 0x8000u && below % 2 == 1);
    return static_cast<u16>(below + up);
}

void check_round_trip() {
    std::vector<float> in;
    emu::Random random{7};
    for (int i = 0; i < 20000; i++) {
        // Every other number is a tie.
        const u32 bits = random.below(1u << 31) << 1 ^ random.below(2);
        const float value = __uint_as_float(i % 2 ? bits : (bits & 0xffff0000u) | 0x8000u);
        if (!std::isnan(value)) in.push_back(value);
    }
    const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, 3.4e38f, 1e-45f, 1.0f, -1.0f};
    in.insert(in.end(), std::begin(special), std::end(special));
    const int n = static_cast<int>(in.size());
    std::vector<u16> single(in.size());
    std::vector<u32> packed(in.size());
    std::vector<float> back(in.size());
    const std::string error = launch("round_trip", {static_cast<u32>(n + 127) / 128, 128},
                                     single.data(), packed.data(), back.data(), in.data(), n);
    int wrong = 0;
    for (int i = 0; i < n; i++) {
        const u32 expected = nearest_bf16(in[i]), other = nearest_bf16(in[n - 1 - i]);
        wrong += single[i] != expected || packed[i] != (expected | other << 16) ||
                 __float_as_uint(back[i]) != expected << 16;
    }
    check("bf16 rounds to nearest even", error.empty() && wrong == 0,
          emu::print("%d of %d wrong", wrong, n));
    // A payload in the low half alone must not round to infinity.
    check("a NaN stays a NaN",
          std::isnan(to_float(from_float<bf16>(__uint_as_float(0x7f800001u)))));
}

void check_bit_functions() {
    std::vector<u32> out(12);
    const std::string error = launch("bit_functions", {1, 1}, out.data());
    const std::vector<u32> expected = {3,   8,  3231,        4, 0x40400000u, 0x40080000u,
                                       ~0u, 21, 0x41000000u, 0, 0x40000000u, 0xff800000u};
    check("integer functions and bit casts", error.empty() && out == expected, error);
}

void check_guarded_memory() {
    u8* buffer = static_cast<u8*>(sar_emu_alloc(100));
    const bool aligned = reinterpret_cast<size_t>(buffer) % 256 == 0;
    check("buffers are aligned, NaN and whole",
          aligned && buffer[0] == 0xff && buffer[99] == 0xff && sar_emu_check(buffer) == 0);
    buffer[100] = 0;
    check("a write past a buffer is seen", sar_emu_check(buffer) == 2);
    buffer[100] = 0xff;
    buffer[-1] = 0;
    check("a write before a buffer is seen", sar_emu_check(buffer) == 1);
    sar_emu_free(buffer);
}

} // namespace

int main() {
    check_orders();
    check_poison();
    check_red_zones();
    check_meetings();
    check_addresses();
    check_limits();
    check_parameters();
    check_indices();
    check_warp_operations();
    check_returns();
    check_tile_products();
    check_row_sums();
    check_round_trip();
    check_bit_functions();
    check_guarded_memory();
    std::printf("%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}
