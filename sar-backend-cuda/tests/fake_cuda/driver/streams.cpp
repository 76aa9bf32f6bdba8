// Streams and events. Work runs as late as it may: when somebody waits for it.
#include "state.h"

using namespace fake;

namespace {

// A real stream makes the host wait once about so many launches are pending.
constexpr size_t MOST_PENDING = 1024;

Status run(Stream& stream, const Work& work) {
    for (const Range& range : work.touches) {
        if (const Status status = check_range(work.name, range)) return status;
    }
    const Status status = work.run();
    (void)stream;
    return status;
}

} // namespace

namespace fake {

Status drain(Stream& stream, uint64_t position) {
    while (stream.done < position && stream.context->sticky == SUCCESS) {
        const Work work = std::move(stream.pending.front());
        stream.pending.pop_front();
        stream.done++;
        stream.context->sticky = run(stream, work);
    }
    return stream.context->sticky;
}

Status submit(void* handle, Work work) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    if (Capture* capture = stream->capture.get()) {
        if (capture->invalid) return CAPTURE_INVALIDATED;
        capture->nodes.push_back(std::move(work));
        return SUCCESS;
    }
    stream->pending.push_back(std::move(work));
    stream->submitted++;
    if (stream->pending.size() > MOST_PENDING) drain(*stream, stream->submitted - MOST_PENDING / 2);
    return SUCCESS;
}

} // namespace fake

CUDA_API int cuStreamCreate(Stream** handle, unsigned flags) {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    if (flags > 1) return INVALID_VALUE;
    auto* stream = new Stream{};
    stream->context = current_context();
    *handle = state().streams.add(stream);
    return SUCCESS;
}

CUDA_API int cuStreamSynchronize(void* handle) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    if (stream->capture) {
        stream->capture->invalid = true;
        return CAPTURE_UNSUPPORTED;
    }
    if (const Status status = unsafe_in_capture("cuStreamSynchronize")) return status;
    const Status status = drain(*stream);
    check_guards();
    return status;
}

// "If the device is still doing work in the stream, the function returns immediately and the
// resources are released once the device has completed all work."
CUDA_API int cuStreamDestroy_v2(void* handle) {
    const auto guard = lock();
    Stream* stream = state().streams.find(handle);
    if (stream == nullptr) {
        complain("a stream is destroyed twice, or after its context");
        return INVALID_HANDLE;
    }
    drain(*stream);
    state().streams.remove(stream);
    return SUCCESS;
}

constexpr unsigned EVENT_DISABLE_TIMING = 2;

CUDA_API int cuEventCreate(Event** handle, unsigned flags) {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    if (flags > 7) return INVALID_VALUE;
    Event* event = new Event{current_context()};
    event->timed = (flags & EVENT_DISABLE_TIMING) == 0;
    *handle = state().events.add(event);
    return SUCCESS;
}

CUDA_API int cuEventRecord(void* handle, void* stream_handle) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(stream_handle, stream)) return status;
    Event* event = state().events.find(handle);
    if (event == nullptr || event->context != stream->context) return INVALID_HANDLE;
    if (stream->capture && stream->capture->invalid) return CAPTURE_INVALIDATED;
    event->captured = stream->capture != nullptr;
    event->stream = stream;
    event->position = stream->submitted;
    return SUCCESS;
}

// "Waits until the completion of all work currently captured in the event."
CUDA_API int cuEventSynchronize(void* handle) {
    const auto guard = lock();
    Event* event = state().events.find(handle);
    if (event == nullptr) {
        complain("an event that is destroyed, or whose context is, is waited for");
        return INVALID_HANDLE;
    }
    if (const Status status = ready()) return status;
    if (const Status status = unsafe_in_capture("cuEventSynchronize")) return status;
    if (event->captured) return CAPTURE_UNSUPPORTED;
    if (event->stream == nullptr || state().streams.find(event->stream) == nullptr) return SUCCESS;
    return drain(*event->stream, event->position);
}

// Milliseconds between two events that have passed: here, the number of works between them.
CUDA_API int cuEventElapsedTime(float* milliseconds, void* start_handle, void* end_handle) {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    const Event* start = state().events.find(start_handle);
    const Event* end = state().events.find(end_handle);
    if (start == nullptr || end == nullptr) return INVALID_HANDLE;
    for (const Event* event : {start, end}) {
        if (!event->timed || event->stream == nullptr || event->captured) return INVALID_HANDLE;
        if (event->stream->done < event->position) return NOT_READY;
    }
    *milliseconds = static_cast<float>(end->position - start->position);
    return SUCCESS;
}

CUDA_API int cuEventDestroy_v2(void* handle) {
    const auto guard = lock();
    Event* event = state().events.find(handle);
    if (event == nullptr) {
        complain("an event is destroyed twice, or after its context");
        return INVALID_HANDLE;
    }
    state().events.remove(event);
    return SUCCESS;
}
