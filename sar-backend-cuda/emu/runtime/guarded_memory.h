// Buffers between guards, for callers that have no guards of their own.
#pragma once
#include "../emulator.h"
#include <cstdlib>
#include <cstring>

namespace emu {

const size_t GUARD = 256;
const int GUARD_BYTE = 0xff;

// Before the first guard lies one more unit, with the buffer's size.
static char* allocation_of(const void* buffer) {
    return const_cast<char*>(static_cast<const char*>(buffer)) - 2 * GUARD;
}

static bool is_whole(const char* guard) {
    for (size_t i = 0; i < GUARD; i++) {
        if (static_cast<unsigned char>(guard[i]) != GUARD_BYTE) return false;
    }
    return true;
}

} // namespace emu

extern "C" void* sar_emu_alloc(size_t bytes) {
    using emu::GUARD;
    if (bytes > static_cast<size_t>(-1) - 4 * GUARD) return nullptr;
    const size_t total = (3 * GUARD + bytes + GUARD - 1) / GUARD * GUARD;
    char* allocation = static_cast<char*>(std::aligned_alloc(GUARD, total));
    if (allocation == nullptr) return nullptr;
    std::memset(allocation, emu::GUARD_BYTE, total);
    std::memcpy(allocation, &bytes, sizeof bytes);
    return allocation + 2 * GUARD;
}

extern "C" int sar_emu_check(const void* buffer) {
    const char* allocation = emu::allocation_of(buffer);
    size_t bytes;
    std::memcpy(&bytes, allocation, sizeof bytes);
    if (!emu::is_whole(allocation + emu::GUARD)) return 1;
    return emu::is_whole(allocation + 2 * emu::GUARD + bytes) ? 0 : 2;
}

extern "C" void sar_emu_free(void* buffer) {
    if (buffer != nullptr) std::free(emu::allocation_of(buffer));
}
