// The one state of the fake, and the checks at the door.
#include "state.h"
#include <cstdio>
#include <cstdlib>

namespace fake {

State& state() {
    // Never destroyed: other threads may call while the process ends.
    static State* only = new State;
    return *only;
}

long long setting(const char* name, long long otherwise) {
    const char* value = std::getenv(name);
    return value ? std::atoll(value) : otherwise;
}

unsigned most_shared() {
    // "Technical specifications per compute capability", in KiB.
    const long long capability = setting("SAR_FAKE_CAPABILITY", 80);
    return (capability == 86 || capability == 89 ? 99u : 163u) << 10;
}

void count(const char* kind, int change) {
    const auto guard = lock();
    int& left = state().counts[kind];
    left += change;
    if (left < 0) complain(std::string(kind) + " destroyed twice");
}

void complain(const std::string& what) {
    const auto guard = lock();
    std::fprintf(stderr, "fake CUDA: %s\n", what.c_str());
    state().complaints.push_back(what);
}

Status ready() {
    if (!state().initialised) return NOT_INITIALIZED;
    const Context* context = current_context();
    if (context == nullptr) return INVALID_CONTEXT;
    return context->sticky;
}

Status ready(void* handle, Stream*& stream) {
    if (const Status status = ready(); status != SUCCESS) return status;
    stream = state().streams.find(handle);
    if (stream == nullptr) {
        complain("a stream that is destroyed or none is used");
        return INVALID_HANDLE;
    }
    return stream->context == current_context() ? SUCCESS : INVALID_HANDLE;
}

Status unsafe_in_capture(const char* call) {
    bool capturing = false;
    for (Stream* stream : state().streams.all()) {
        Capture* capture = stream->capture.get();
        if (capture == nullptr) continue;
        const bool global = capture->mode == 0;
        const bool own = capture->mode == 1 && capture->thread == std::this_thread::get_id();
        if (!global && !own) continue;
        capture->invalid = true;
        capturing = true;
    }
    if (capturing) std::fprintf(stderr, "fake CUDA: %s during capture\n", call);
    return capturing ? CAPTURE_UNSUPPORTED : SUCCESS;
}

} // namespace fake
