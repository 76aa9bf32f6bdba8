// Shared memory: one buffer a block, arrays between red zones, everything poisoned at the start.
//
// The first thread to reach the declaration of an array places it. Red zones are checked whenever a
// warp stops, and at the end of the block.
#pragma once
#include "state.h"

namespace emu {

// Poison is 0xff in every byte: a NaN as f32, bf16 and f64, -1 as an integer.
const int POISON = 0xff;
const size_t RED_ZONE = 64;
const size_t SHARED_ALIGN = 16;
// What compilers and devices allow: 48 KiB declared, 163 KiB in all (sm_80; sm_90 has 227 KiB).
const size_t MAX_STATIC = 48 << 10;
const size_t MAX_SHARED = 163 << 10;
// The buffer also holds the red zones of as many arrays as a kernel is expected to have.
const size_t MAX_ARRAYS = 64;
const size_t SHARED_BUFFER = MAX_SHARED + MAX_ARRAYS * (2 * RED_ZONE + SHARED_ALIGN);

// Places an array in the running block; in emulator.cpp.
void* place_array(const char* name, size_t bytes, Site site);

// Where a declaration's array lies in the block that this OS thread runs, if a thread of it came
// by.
struct SharedSlot {
    u64 epoch;
    void* start;
};

inline void* shared_array(SharedSlot& slot, const char* name, size_t bytes, Site site) {
    if (slot.epoch != block_epoch) {
        slot.start = place_array(name, bytes, site);
        slot.epoch = block_epoch;
    }
    return slot.start;
}

inline bool is_shared(const void* address) {
    const char* start = current->block->shared;
    return address >= start && address < start + SHARED_BUFFER;
}

inline bool is_aligned16(const void* address) {
    return (reinterpret_cast<size_t>(address) & 15) == 0;
}

} // namespace emu
