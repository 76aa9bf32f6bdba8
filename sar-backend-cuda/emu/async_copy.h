// cp.async: 16 bytes from global to shared memory, in groups.
//
// The destination holds poison until the thread waits for the group, and the source is read only
// then: whoever reads too early, or overwrites the source, sees it.
#pragma once
#include "shared_memory.h"
#include <cstring>

inline void cp_async16(void* to, const void* from, emu::Site site = emu::Site::here()) {
    emu::Fiber& self = *emu::current;
    if (!emu::is_shared(to)) emu::fault(site, "cp.async: the destination is not shared memory");
    if (emu::is_shared(from)) emu::fault(site, "cp.async: the source is shared memory");
    if (!emu::is_aligned16(to) || !emu::is_aligned16(from)) {
        emu::fault(site, "cp.async: %p or %p is not 16-byte aligned", to, from);
    }
    std::memset(to, emu::POISON, 16);
    self.copies.push_back({to, from, self.committed_groups});
}

inline void cp_commit() { emu::current->committed_groups++; }

// Waits until at most N of the latest groups are pending.
template <int N> inline void cp_wait() {
    emu::Fiber& self = *emu::current;
    size_t done = 0;
    for (const emu::AsyncCopy& copy : self.copies) {
        // Copies lie in the order of their groups; those of the open group have no number below it.
        if (copy.group + N >= self.committed_groups) break;
        std::memcpy(copy.to, copy.from, 16);
        done++;
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<long>(done));
}
