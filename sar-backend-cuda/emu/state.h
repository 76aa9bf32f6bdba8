// What exists while a block runs: threads (fibers), warps, the block, the launch it belongs to.
#pragma once
#include "vector_types.h"
#include <atomic>
#include <cstddef>
#include <string>
#include <vector>

namespace emu {

struct Block;
struct Warp;

const u32 WARP = 32;
const u32 ALL_LANES = 0xffffffffu;

// A line of a kernel, for messages. Taken as a default argument it is the caller's line.
struct Site {
    const char* file = nullptr;
    int line = 0;

    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// A kernel as it was registered.
struct Kernel {
    void (*invoke)(void** args);
    // Bytes of each parameter, ended by -1.
    const int* parameter_bytes;
    bool registered_twice;
};

// What all blocks of a launch share. Only `stop` is written while blocks run.
struct Launch {
    const char* key;
    const Kernel* kernel;
    void** args;
    dim3 grid, block;
    u32 dynamic_bytes;
    u64 seed;
    std::atomic<bool> stop{false};
};

// A cp.async that has not been waited for.
struct AsyncCopy {
    void* to;
    const void* from;
    u32 group;
};

// A CUDA thread. `stack` is null until it first runs and `sp` is valid while it does not run.
struct Fiber {
    void* sp;
    char* stack;
    Warp* warp;
    Block* block;
    uint3 index;
    u32 lane;
    std::vector<AsyncCopy> copies;
    u32 committed_groups;
};

// A kind of warp operation. `complete` runs once all its lanes have come, for all of them: it reads
// what they posted and writes their results.
struct WarpOp {
    const char* name;
    // .sync.aligned instructions: every lane of the warp must take part.
    bool whole_warp;
    void (*complete)(Warp& warp, u32 lanes);
};

// What a lane leaves for a warp operation. A lane that waits keeps its stack, so that `in` and
// `out` may point into it.
struct Post {
    const WarpOp* op;
    u32 mask;
    u32 argument;
    u64 value;
    const void* in;
    const void* in2;
    void* out;
    Site site;
};

// Sets of lanes are bit masks. A live lane is ready, runs, or is at a warp operation or a barrier.
struct Warp {
    Fiber* first;
    u32 ready;
    u32 at_operation;
    u32 at_barrier;
    // Lanes that returned, and lanes beyond the end of the block.
    u32 gone;
    Post post[WARP];
};

// An array of shared memory between its red zones.
struct SharedArray {
    const char* name;
    char* start;
    size_t bytes;
};

// A block, and everything that is kept from one block to the next so that none of it is allocated
// again: a Block is taken from a pool at the start of a launch and given back at its end.
struct Block {
    const Launch* launch = nullptr;
    uint3 index{};
    dim3 shape{0, 0, 0};
    u32 threads = 0;
    u32 alive = 0;
    u32 barrier_arrived = 0;
    Site barrier;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;

    // The order in which warps, and lanes of a warp, get their turn.
    std::vector<u32> warp_order;
    u32 first_lane = 0;
    u32 next_lane[WARP] = {};

    // Bump allocation in one buffer; see shared_memory.h.
    char* shared = nullptr;
    size_t shared_used = 0;
    size_t static_bytes = 0;
    char* dynamic_shared = nullptr;
    std::vector<SharedArray> arrays;

    std::vector<char*> free_stacks;
    void* scheduler_sp = nullptr;
    bool failed = false;
    std::string fault;
};

// The thread that runs now on this OS thread; null outside kernels.
inline thread_local Fiber* current = nullptr;
// Distinguishes the blocks that this OS thread has run.
inline thread_local u64 block_epoch = 0;

// Ends the launch with a message that names the kernel, the block and the running thread. The
// block's threads are abandoned where they stand.
[[noreturn]] void fault(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

} // namespace emu
