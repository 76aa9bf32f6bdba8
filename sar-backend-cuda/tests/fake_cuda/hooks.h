// What the fake libcuda offers to the other fake libraries. All are built by one compiler, so C++
// types may pass between them.
#pragma once
#include "status.h"
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace fake {

// Device memory that a piece of work reads or writes.
struct Range {
    uint64_t start;
    uint64_t bytes;
};

// Work of a stream: run in the order given, not before somebody waits for it.
struct Work {
    std::string name;
    std::vector<Range> touches;
    std::function<Status()> run;
};

// Gives work to a stream; recorded, not run, where the stream is being captured.
Status submit(void* stream, Work work);

// Whether the calling thread has a living current context.
bool has_current_context();

// Counts objects of a kind that somebody made (+1) or destroyed (-1); what is left is a leak.
void count(const char* kind, int change);

// A use of the interface that NVIDIA's documentation forbids; the test fails for it.
void complain(const std::string& what);

} // namespace fake
