// Placing arrays of shared memory, and looking after their red zones.
#pragma once
#include "../shared_memory.h"
#include "faults.h"
#include <cstdlib>

namespace emu {

// An array at the next free place of the buffer, poisoned, red zones before and after it.
static char* place_between_red_zones(Block& block, const char* name, size_t bytes) {
    const size_t whole = RED_ZONE + bytes + RED_ZONE;
    char* before = block.shared + block.shared_used;
    std::memset(before, POISON, whole);
    block.shared_used += (whole + SHARED_ALIGN - 1) / SHARED_ALIGN * SHARED_ALIGN;
    block.arrays.push_back({name, before + RED_ZONE, bytes});
    return before + RED_ZONE;
}

// Forgets the arrays of the last block. The launch has checked dynamic_bytes.
static void reset_shared_memory(Block& block) {
    if (block.shared == nullptr) {
        block.shared = static_cast<char*>(std::aligned_alloc(256, SHARED_BUFFER / 256 * 256 + 256));
    }
    block.shared_used = 0;
    block.static_bytes = 0;
    block.arrays.clear();
    block.dynamic_shared =
        place_between_red_zones(block, "dynamic shared memory", block.launch->dynamic_bytes);
}

void* place_array(const char* name, size_t bytes, Site site) {
    Block& block = *current->block;
    block.static_bytes += bytes;
    if (block.static_bytes > MAX_STATIC) {
        fault(site, "%zu bytes of declared shared memory; at most %zu", block.static_bytes,
              MAX_STATIC);
    }
    if (block.static_bytes + block.launch->dynamic_bytes > MAX_SHARED) {
        fault(site, "%zu bytes of shared memory; at most %zu",
              block.static_bytes + block.launch->dynamic_bytes, MAX_SHARED);
    }
    if (block.arrays.size() == MAX_ARRAYS) {
        fault(site, "more than %zu arrays of shared memory", MAX_ARRAYS);
    }
    return place_between_red_zones(block, name, bytes);
}

static bool is_poison(const char* zone) {
    u64 all = ~0ull;
    for (size_t i = 0; i < RED_ZONE; i += sizeof(u64)) {
        u64 word;
        std::memcpy(&word, zone + i, sizeof word);
        all &= word;
    }
    return all == ~0ull;
}

// Called when `warp` has stopped, and no other has run since the last check.
static void check_red_zones(Block& block, const Warp& warp) {
    for (const SharedArray& array : block.arrays) {
        const bool below = !is_poison(array.start - RED_ZONE);
        if (!below && is_poison(array.start + array.bytes)) continue;
        const Fiber& first = *warp.first;
        record_fault(block, indices("warp of thread", first.index), Site{},
                     print("write %s %s (%zu bytes)",
                           below ? "before the start of" : "past the end of", array.name,
                           array.bytes));
    }
}

} // namespace emu
