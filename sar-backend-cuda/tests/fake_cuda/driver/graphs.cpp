// Capture of a stream into a graph, and graphs that are launched.
#include "state.h"

using namespace fake;

CUDA_API int cuStreamBeginCapture_v2(void* handle, int mode) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    if (mode < 0 || mode > 2) return INVALID_VALUE;
    if (stream->capture) return ILLEGAL_STATE;
    stream->capture.reset(new Capture{mode, std::this_thread::get_id(), false, {}});
    return SUCCESS;
}

CUDA_API int cuStreamEndCapture(void* handle, Graph** graph) {
    const auto guard = lock();
    *graph = nullptr;
    Stream* stream = state().streams.find(handle);
    if (stream == nullptr) return INVALID_HANDLE;
    if (!stream->capture) return CAPTURE_UNMATCHED;
    const bool relaxed = stream->capture->mode == 2;
    if (!relaxed && stream->capture->thread != std::this_thread::get_id()) {
        stream->capture->invalid = true;
        return CAPTURE_WRONG_THREAD;
    }
    const std::unique_ptr<Capture> capture = std::move(stream->capture);
    if (capture->invalid) return CAPTURE_INVALIDATED;
    if (stream->context->sticky) return stream->context->sticky;
    *graph = state().graphs.add(new Graph{std::move(capture->nodes)});
    return SUCCESS;
}

CUDA_API int cuGraphInstantiateWithFlags(GraphExec** executable, Graph* graph, unsigned long long flags) {
    const auto guard = lock();
    if (const Status status = ready()) return status;
    if (state().graphs.find(graph) == nullptr || flags != 0) return INVALID_VALUE;
    *executable = state().graph_execs.add(new GraphExec{graph->nodes});
    return SUCCESS;
}

CUDA_API int cuGraphLaunch(GraphExec* executable, void* handle) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    if (state().graph_execs.find(executable) == nullptr) {
        complain("a graph is launched after it was destroyed");
        return INVALID_VALUE;
    }
    for (const Work& node : executable->nodes) {
        if (const Status status = submit(stream, node)) return status;
    }
    return SUCCESS;
}

// "If the executable graph is in-flight, it will not be terminated, but rather freed asynchronously
// on completion": pending work is a copy of its nodes.
CUDA_API int cuGraphExecDestroy(GraphExec* executable) {
    const auto guard = lock();
    if (state().graph_execs.remove(executable)) return SUCCESS;
    complain("an executable graph is destroyed twice");
    return INVALID_VALUE;
}

CUDA_API int cuGraphDestroy(Graph* graph) {
    const auto guard = lock();
    if (state().graphs.remove(graph)) return SUCCESS;
    complain("a graph is destroyed twice");
    return INVALID_VALUE;
}
