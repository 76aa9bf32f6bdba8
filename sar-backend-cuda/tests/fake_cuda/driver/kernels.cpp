// Modules, functions, and launches, which the test's launcher runs: the emulator of the kernels.
#include "state.h"
#include "../cubin.h"
#include <algorithm>
#include <cstring>
#include <sstream>

using namespace fake;

namespace {

using Launcher = int (*)(const char*, const unsigned*, const unsigned*, unsigned, void**, unsigned,
                         unsigned long long, char*, size_t);
using Parameters = const int* (*)(const char*);

Launcher launcher = nullptr;
Parameters parameters = nullptr;

// "Technical specifications per compute capability": shared memory of a block that has not been asked for.
constexpr unsigned DEFAULT_SHARED = 48u << 10;
constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
constexpr size_t LARGEST_PARAMETERS = 4096;

// Reads no further than the image is known to reach: byte by byte up to the magic's end.
bool starts_with_magic(const char* image) {
    for (size_t i = 0; i < sizeof CUBIN_MAGIC - 1; i++) {
        if (image[i] != CUBIN_MAGIC[i]) return false;
    }
    return true;
}

Status parse(const char* image, Module& module) {
    if (!starts_with_magic(image)) return INVALID_IMAGE;
    if (std::memchr(image, '\n', CUBIN_BYTES) == nullptr) return INVALID_IMAGE;
    std::istringstream line(std::string(image, std::strchr(image, '\n')));
    std::string magic, arch, kernel;
    line >> magic >> arch >> module.variant >> module.file;
    const long long capability = setting("SAR_FAKE_CAPABILITY", 80);
    if (arch != "sm_" + std::to_string(capability)) return NO_BINARY_FOR_GPU;
    while (line >> kernel) module.kernels.push_back(kernel);
    return SUCCESS;
}

bool has(const Module& module, const std::string& name) {
    return std::any_of(module.kernels.begin(), module.kernels.end(), [&](const std::string& known) {
        if (known.back() != '*') return known == name;
        return name.compare(0, known.size() - 1, known, 0, known.size() - 1) == 0;
    });
}

// Values of a launch, copied while the caller's are still there.
struct Arguments {
    std::vector<size_t> offsets;
    std::vector<int> sizes;
    alignas(16) unsigned char bytes[LARGEST_PARAMETERS];
};

std::shared_ptr<Arguments> copy_arguments(const std::string& key, void** values) {
    auto copied = std::make_shared<Arguments>();
    size_t used = 0;
    for (const int* size = parameters(key.c_str()); *size >= 0; size++) {
        const auto bytes = static_cast<size_t>(*size);
        const size_t offset = (used + 15) / 16 * 16;
        if (offset + bytes > LARGEST_PARAMETERS) return nullptr;
        std::memcpy(copied->bytes + offset, values[copied->offsets.size()], bytes);
        copied->offsets.push_back(offset);
        copied->sizes.push_back(*size);
        used = offset + bytes;
    }
    return copied;
}

// Pointers among the arguments must lead to held memory. A released one would do so on a device only
// by luck; one to the end of an allocation names no element.
Status check_pointers(const std::string& key, const Arguments& arguments) {
    for (size_t i = 0; i < arguments.sizes.size(); i++) {
        if (arguments.sizes[i] != sizeof(Address)) continue;
        Address value;
        std::memcpy(&value, arguments.bytes + arguments.offsets[i], sizeof value);
        if (!is_device_address(value)) continue;
        if (const Status status = check_range(key, {value, 0})) return status;
    }
    return SUCCESS;
}

Status launch(const std::string& key, const unsigned (&grid)[3], const unsigned (&block)[3],
              unsigned shared, Arguments& arguments) {
    if (state().fault_after == 0) {
        state().fault_after = -1;
        return ILLEGAL_ADDRESS;
    }
    if (state().fault_after > 0) state().fault_after--;
    if (const Status status = check_pointers(key, arguments)) return status;
    std::vector<void*> values;
    for (const size_t offset : arguments.offsets) values.push_back(arguments.bytes + offset);
    char error[512] = "";
    if (launcher(key.c_str(), grid, block, shared, values.data(), 1, 0, error, sizeof error) == 0) {
        return SUCCESS;
    }
    complain(key + ": " + error);
    return LAUNCH_FAILED;
}

} // namespace

// The emulator's sar_emu_launch and sar_emu_parameters.
CUDA_API void sar_fake_set_launcher(Launcher run, Parameters sizes) {
    const auto guard = lock();
    launcher = run;
    parameters = sizes;
}

CUDA_API int cuModuleLoadData(Module** handle, const void* image) {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    // Loading may synchronise the context.
    if (const Status status = unsafe_in_capture("cuModuleLoadData")) return status;
    auto module = std::make_unique<Module>();
    module->context = current_context();
    const Status status = parse(static_cast<const char*>(image), *module);
    if (status == SUCCESS) *handle = state().modules.add(module.release());
    return status;
}

CUDA_API int cuModuleUnload(void* handle) {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    Module* module = state().modules.find(handle);
    return module && state().modules.remove(module) ? SUCCESS : INVALID_HANDLE;
}

CUDA_API int cuModuleGetFunction(Function** handle, void* module_handle, const char* name) {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    Module* module = state().modules.find(module_handle);
    if (module == nullptr) return INVALID_HANDLE;
    const std::string key = module->variant + "/" + name;
    if (!has(*module, name) || parameters(key.c_str()) == nullptr) return NOT_FOUND;
    *handle = state().functions.add(new Function{module, key, DEFAULT_SHARED});
    return SUCCESS;
}

CUDA_API int cuFuncSetAttribute(void* handle, int attribute, int value) {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    Function* function = state().functions.find(handle);
    if (function == nullptr) return INVALID_HANDLE;
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0) return INVALID_VALUE;
    if (static_cast<unsigned>(value) > most_shared()) return INVALID_VALUE;
    function->allowed_shared = static_cast<unsigned>(value);
    return SUCCESS;
}

CUDA_API int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned shared, void* stream_handle, void** values, void** extra) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(stream_handle, stream)) return status;
    const Function* function = state().functions.find(handle);
    if (function == nullptr) return INVALID_HANDLE;
    const unsigned long long threads = 1ull * bx * by * bz;
    const bool empty = gx == 0 || gy == 0 || gz == 0 || threads == 0;
    const bool large = gx > 0x7fffffffu || gy > 65535 || gz > 65535 || bz > 64 || threads > 1024;
    if (empty || large || extra != nullptr) return INVALID_VALUE;
    if (shared > function->allowed_shared) return INVALID_VALUE;
    const auto arguments = copy_arguments(function->key, values);
    if (arguments == nullptr) return INVALID_VALUE;
    const auto run = [=, key = function->key] {
        return launch(key, {gx, gy, gz}, {bx, by, bz}, shared, *arguments);
    };
    return submit(stream, {function->key, {}, run});
}
