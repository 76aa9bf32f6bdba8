// Start-up, devices, and the primary context.
#include "state.h"
#include <cstring>

using namespace fake;

namespace {

thread_local Context* current = nullptr;

int devices() { return static_cast<int>(setting("SAR_FAKE_DEVICES", 1)); }

Status known(int device) {
    if (!state().initialised) return NOT_INITIALIZED;
    return device >= 0 && device < devices() ? SUCCESS : INVALID_DEVICE;
}

// The last release resets the context: what is in it goes with it.
void destroy(Context* context) {
    State& all = state();
    for (Stream* stream : std::set<Stream*>(all.streams.all())) {
        if (stream->context != context) continue;
        complain("a stream is left when its context goes");
        all.streams.remove(stream);
    }
    for (Event* event : std::set<Event*>(all.events.all())) {
        if (event->context != context) continue;
        complain("an event is left when its context goes");
        all.events.remove(event);
    }
    for (Module* module : std::set<Module*>(all.modules.all())) {
        if (module->context == context) all.modules.remove(module);
    }
    for (Function* function : std::set<Function*>(all.functions.all())) {
        if (function->module->context == context) all.functions.remove(function);
    }
    release_memory(context->sticky == SUCCESS);
    all.contexts.remove(context);
}

} // namespace

namespace fake {

Context* current_context() { return state().contexts.find(current); }

bool has_current_context() {
    const auto guard = lock();
    return current_context() != nullptr;
}

} // namespace fake

CUDA_API int cuInit(unsigned flags) {
    const auto guard = lock();
    if (flags != 0) return INVALID_VALUE;
    if (const Status status = static_cast<Status>(setting("SAR_FAKE_INIT", SUCCESS))) return status;
    if (devices() == 0) return NO_DEVICE;
    state().initialised = true;
    return SUCCESS;
}

CUDA_API int cuDriverGetVersion(int* version) {
    *version = static_cast<int>(setting("SAR_FAKE_DRIVER_VERSION", 12080));
    return SUCCESS;
}

CUDA_API int cuDeviceGetCount(int* count) {
    const auto guard = lock();
    if (!state().initialised) return NOT_INITIALIZED;
    *count = devices();
    return SUCCESS;
}

CUDA_API int cuDeviceGet(int* device, int ordinal) {
    const auto guard = lock();
    if (const Status status = known(ordinal)) return status;
    *device = ordinal;
    return SUCCESS;
}

CUDA_API int cuDeviceGetName(char* name, int length, int device) {
    const auto guard = lock();
    if (const Status status = known(device)) return status;
    std::strncpy(name, "Fake A100", static_cast<size_t>(length));
    name[length - 1] = 0;
    return SUCCESS;
}

CUDA_API int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    const auto guard = lock();
    if (const Status status = known(device)) return status;
    *bytes = static_cast<size_t>(setting("SAR_FAKE_MEMORY", 8ll << 30));
    return SUCCESS;
}

CUDA_API int cuDeviceGetAttribute(int* value, int attribute, int device) {
    const auto guard = lock();
    if (const Status status = known(device)) return status;
    const int capability = static_cast<int>(setting("SAR_FAKE_CAPABILITY", 80));
    switch (attribute) {
    case 16: *value = 108; return SUCCESS;             // MULTIPROCESSOR_COUNT
    case 75: *value = capability / 10; return SUCCESS; // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = capability % 10; return SUCCESS; // COMPUTE_CAPABILITY_MINOR
    case 97: *value = static_cast<int>(most_shared()); return SUCCESS; // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 115: *value = 1; return SUCCESS;              // MEMORY_POOLS_SUPPORTED
    default: complain("attribute " + std::to_string(attribute) + " is not modelled"); return INVALID_VALUE;
    }
}

CUDA_API int cuDevicePrimaryCtxRetain(Context** context, int device) {
    const auto guard = lock();
    if (const Status status = known(device)) return status;
    State& all = state();
    if (all.retained[device]++ == 0) all.primary[device] = all.contexts.add(new Context{device});
    *context = all.primary[device];
    return SUCCESS;
}

CUDA_API int cuDevicePrimaryCtxRelease_v2(int device) {
    const auto guard = lock();
    if (const Status status = known(device)) return status;
    if (state().retained[device] == 0) return INVALID_CONTEXT;
    if (--state().retained[device] == 0) destroy(state().primary[device]);
    return SUCCESS;
}

CUDA_API int cuCtxSetCurrent(Context* context) {
    const auto guard = lock();
    if (!state().initialised) return NOT_INITIALIZED;
    if (context != nullptr && state().contexts.find(context) == nullptr) return CONTEXT_IS_DESTROYED;
    current = context;
    return SUCCESS;
}

CUDA_API int cuCtxGetCurrent(Context** context) {
    const auto guard = lock();
    if (!state().initialised) return NOT_INITIALIZED;
    *context = current;
    return SUCCESS;
}

CUDA_API int cuCtxSynchronize() {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    if (const Status status = unsafe_in_capture("cuCtxSynchronize")) return status;
    for (Stream* stream : state().streams.all()) {
        if (const Status status = drain(*stream)) return status;
    }
    return SUCCESS;
}
