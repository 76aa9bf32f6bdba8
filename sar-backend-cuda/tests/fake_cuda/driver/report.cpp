// What a test asks of the fake: faults on demand, and what was wrong or is left.
#include "state.h"
#include <cstdio>
#include <sstream>

using namespace fake;

// The launch after `launches` more ones faults, as one does that reads beyond its memory.
CUDA_API void sar_fake_fault_after(int launches) {
    const auto guard = lock();
    state().fault_after = launches;
}

// Pieces of work that were given to streams and have not run yet.
CUDA_API int sar_fake_pending() {
    const auto guard = lock();
    size_t pending = 0;
    for (const Stream* stream : state().streams.all()) pending += stream->pending.size();
    return static_cast<int>(pending);
}

// Executable graphs that are alive.
CUDA_API int sar_fake_graphs() {
    const auto guard = lock();
    return static_cast<int>(state().graph_execs.all().size());
}

// Every misuse so far, and every object that is left but for what a process keeps, a line each. Returns the number of
// lines.
CUDA_API int sar_fake_report(char* text, size_t length) {
    const auto guard = lock();
    State& all = state();
    std::ostringstream lines;
    int number = 0;
    for (const std::string& complaint : all.complaints) number++, lines << complaint << "\n";
    const auto left = [&](const char* kind, size_t many) {
        if (many > 0) number++, lines << "left: " << many << " " << kind << "\n";
    };
    left("allocations", held_allocations());
    left("pieces of pinned memory", held_pinned());
    left("streams", all.streams.all().size());
    left("events", all.events.all().size());
    left("modules", all.modules.all().size());
    left("graphs", all.graphs.all().size());
    left("executable graphs", all.graph_execs.all().size());
    // A process holds each device's primary context once, to its end.
    size_t kept = 0, again = 0;
    for (const auto& [device, holds] : all.retained) {
        if (holds > 0) kept++, again += static_cast<size_t>(holds) - 1;
    }
    left("contexts", all.contexts.all().size() - kept);
    left("further holds of contexts", again);
    for (const auto& [kind, many] : all.counts) left(kind.c_str(), static_cast<size_t>(many));
    std::snprintf(text, length, "%s", lines.str().c_str());
    return number;
}
