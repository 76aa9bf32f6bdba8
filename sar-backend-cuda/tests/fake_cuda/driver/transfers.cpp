// Copies and pinned host memory.
#include "state.h"
#include <cstdlib>
#include <cstring>

using namespace fake;

namespace {

// Pinned host memory by its start.
std::map<const unsigned char*, size_t>& pinned() {
    static auto* only = new std::map<const unsigned char*, size_t>;
    return *only;
}

bool is_pinned(const void* host, size_t bytes) {
    const auto* first = static_cast<const unsigned char*>(host);
    const auto next = pinned().upper_bound(first);
    if (next == pinned().begin()) return false;
    const auto& [start, length] = *std::prev(next);
    return first + bytes <= start + length;
}

// Pinned memory that pending work will read or write; such work says so in its name.
std::map<const unsigned char*, int>& awaited() {
    static auto* only = new std::map<const unsigned char*, int>;
    return *only;
}

const unsigned char* owner(const void* host) {
    return std::prev(pinned().upper_bound(static_cast<const unsigned char*>(host)))->first;
}

} // namespace

namespace fake {

size_t held_pinned() { return pinned().size(); }

} // namespace fake

CUDA_API int cuMemHostAlloc(void** host, size_t bytes, unsigned flags) {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    if (const Status status = unsafe_in_capture("cuMemHostAlloc")) return status;
    if (bytes == 0 || flags > 7) return INVALID_VALUE;
    auto* start = static_cast<unsigned char*>(std::malloc(bytes));
    if (start == nullptr) return OUT_OF_MEMORY;
    std::memset(start, 0xff, bytes);
    pinned()[start] = bytes;
    *host = start;
    return SUCCESS;
}

CUDA_API int cuMemFreeHost(void* host) {
    const auto guard = lock();
    if (current_context() == nullptr) {
        complain("pinned memory is released without a living context");
        return INVALID_CONTEXT;
    }
    const auto found = pinned().find(static_cast<unsigned char*>(host));
    if (found == pinned().end()) return INVALID_VALUE;
    if (awaited()[found->first] > 0) complain("pinned memory is released while a copy uses it");
    pinned().erase(found);
    std::free(host);
    return SUCCESS;
}

CUDA_API int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void* handle) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    if (bytes == 0) return SUCCESS;
    const auto run = [=] {
        std::memset(reinterpret_cast<void*>(to), value, bytes);
        return SUCCESS;
    };
    return submit(stream, {"cuMemsetD8Async", {{to, bytes}}, run});
}

// "API synchronization behavior" of the driver's manual: from pageable memory the stream is waited
// for, then the memory is staged before the call returns; pinned memory is read when the copy runs.
CUDA_API int cuMemcpyHtoDAsync_v2(Address to, const void* host, size_t bytes, void* handle) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    if (bytes == 0) return SUCCESS;
    const auto from_host = [=] {
        std::memcpy(reinterpret_cast<void*>(to), host, bytes);
        return SUCCESS;
    };
    if (stream->capture) return submit(stream, {"cuMemcpyHtoDAsync", {{to, bytes}}, from_host});
    if (is_pinned(host, bytes)) {
        const unsigned char* memory = owner(host);
        awaited()[memory]++;
        const auto run = [=] {
            awaited()[memory]--;
            return from_host();
        };
        return submit(stream, {"cuMemcpyHtoDAsync", {{to, bytes}}, run});
    }
    if (const Status status = drain(*stream)) return status;
    const auto* first = static_cast<const unsigned char*>(host);
    const std::vector<unsigned char> staged(first, first + bytes);
    const auto run = [=] {
        std::memcpy(reinterpret_cast<void*>(to), staged.data(), bytes);
        return SUCCESS;
    };
    return submit(stream, {"cuMemcpyHtoDAsync", {{to, bytes}}, run});
}

// To pageable memory the call returns only once the copy is done.
CUDA_API int cuMemcpyDtoHAsync_v2(void* host, Address from, size_t bytes, void* handle) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    if (bytes == 0) return SUCCESS;
    const auto run = [=] {
        std::memcpy(host, reinterpret_cast<const void*>(from), bytes);
        return SUCCESS;
    };
    if (const Status status = submit(stream, {"cuMemcpyDtoHAsync", {{from, bytes}}, run})) return status;
    if (stream->capture || is_pinned(host, bytes)) return SUCCESS;
    return drain(*stream);
}

CUDA_API int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* handle) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    if (bytes == 0) return SUCCESS;
    const bool overlap = to < from + bytes && from < to + bytes;
    if (overlap) complain("a copy within the device overlaps itself");
    const auto run = [=] {
        std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
        return SUCCESS;
    };
    return submit(stream, {"cuMemcpyDtoDAsync", {{to, bytes}, {from, bytes}}, run});
}
