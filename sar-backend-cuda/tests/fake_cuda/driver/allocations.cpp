// Device memory that is the host's: a region of addresses of which none is given twice, so that work
// on released memory is noticed. Every allocation is filled with NaN and stands between guards.
#include "state.h"
#include <cstring>
#include <iterator>
#include <set>
#include <sys/mman.h>

using namespace fake;

namespace {

constexpr size_t REGION = size_t{1} << 38;
constexpr size_t PAGE = 4096;
// Allocations of the driver are aligned to 256 bytes and more.
constexpr size_t GUARD = 512;
constexpr int POISON = 0xff;

struct Allocation {
    size_t bytes;
    bool held;          // in the order of the stream: between its allocation and its release
    bool freed;         // cuMemFreeAsync was called
    bool of_graph;      // allocated by a captured call
    size_t block;       // bytes that the pool took from the device for it
    unsigned char* pages;
    size_t page_bytes;
};

struct Memory {
    unsigned char* region = nullptr;
    size_t used = 0;
    size_t taken = 0;   // by the pool, from the device
    std::map<Address, Allocation> all;
    std::set<Address> held;
    std::multimap<size_t, Address> idle; // blocks that were given back to the pool, by their bytes
};

Memory& memory() {
    static Memory* only = new Memory;
    return *only;
}

bool reserve_region() {
    if (memory().region != nullptr) return true;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* region = mmap(nullptr, REGION, PROT_NONE, flags, -1, 0);
    if (region == MAP_FAILED) return false;
    memory().region = static_cast<unsigned char*>(region);
    return true;
}

// Addresses for so many bytes; memory behind them comes with `hold`.
Address reserve(size_t bytes, bool of_graph, size_t block) {
    if (!reserve_region()) return 0;
    Memory& m = memory();
    const size_t page_bytes = (bytes + 2 * GUARD + PAGE - 1) / PAGE * PAGE;
    if (m.used + page_bytes + PAGE > REGION) return 0;
    unsigned char* pages = m.region + m.used;
    m.used += page_bytes + PAGE; // one page that nobody may touch in between
    const Address start = reinterpret_cast<Address>(pages) + GUARD;
    m.all[start] = Allocation{bytes, false, false, of_graph, block, pages, page_bytes};
    return start;
}

Status hold(Address start) {
    Allocation& a = memory().all.at(start);
    if (a.held) return INVALID_VALUE; // a graph that allocates is launched again, unreleased
    if (mprotect(a.pages, a.page_bytes, PROT_READ | PROT_WRITE) != 0) return OUT_OF_MEMORY;
    std::memset(a.pages, POISON, a.page_bytes);
    a.held = true;
    memory().held.insert(start);
    return SUCCESS;
}

bool whole(const unsigned char* from, const unsigned char* to) {
    for (; from < to; from++) {
        if (*from != POISON) return false;
    }
    return true;
}

void check_guards_of(Address start, const Allocation& a) {
    const auto* first = reinterpret_cast<const unsigned char*>(start);
    const auto* end = first + a.bytes;
    const auto* last = a.pages + a.page_bytes < end + GUARD ? a.pages + a.page_bytes : end + GUARD;
    if (!whole(a.pages, first)) complain("memory before an allocation was written");
    if (!whole(end, last)) {
        complain("memory after an allocation of " + std::to_string(a.bytes) + " bytes was written");
    }
}

void let_go(Address start) {
    Allocation& a = memory().all.at(start);
    if (!a.held) return;
    check_guards_of(start, a);
    a.held = false;
    memory().held.erase(start);
    madvise(a.pages, a.page_bytes, MADV_DONTNEED);
    mprotect(a.pages, a.page_bytes, PROT_NONE);
}

// The allocation with the largest start that is not beyond the address.
const std::pair<const Address, Allocation>* allocation_at(Address address) {
    const auto& all = memory().all;
    auto next = all.upper_bound(address);
    return next == all.begin() ? nullptr : &*std::prev(next);
}

} // namespace

namespace fake {

bool is_device_address(Address address) {
    const auto region = reinterpret_cast<Address>(memory().region);
    return region != 0 && address >= region && address < region + REGION;
}

Status check_range(const std::string& who, Range range) {
    const auto* found = allocation_at(range.start);
    const bool inside = found && range.start + range.bytes <= found->first + found->second.bytes;
    if (inside && found->second.held) return SUCCESS;
    const char* why = !inside ? "memory that was never allocated" : "memory that is released";
    complain(who + " touches " + why + " (" + std::to_string(range.bytes) + " bytes)");
    return ILLEGAL_ADDRESS;
}

void check_guards() {
    for (const Address start : memory().held) check_guards_of(start, memory().all.at(start));
}

void release_memory(bool complain_of_leaks) {
    for (auto& [start, a] : memory().all) {
        if (complain_of_leaks && a.held && !a.freed) complain("memory is left when its context goes");
        let_go(start);
    }
    memory().taken = 0;
    memory().idle.clear();
}

size_t held_allocations() {
    size_t held = 0;
    for (const auto& [start, a] : memory().all) held += a.held && !a.freed;
    return held;
}

} // namespace fake

CUDA_API int cuDeviceGetMemPool(void** pool, int) {
    if (setting("SAR_FAKE_NO_POOLS", 0) != 0) return NOT_SUPPORTED;
    *pool = &memory();
    return SUCCESS;
}

CUDA_API int cuMemPoolSetAttribute(void* pool, int attribute, void* value) {
    const auto guard = lock();
    if (pool != &memory() || value == nullptr) return INVALID_VALUE;
    return attribute == 4 ? SUCCESS : INVALID_VALUE; // RELEASE_THRESHOLD, a cuuint64_t
}

// Gives back to the device what is idle, once its release has run.
CUDA_API int cuMemPoolTrimTo(void* pool, size_t least) {
    const auto guard = lock();
    Memory& m = memory();
    if (pool != &m) return INVALID_VALUE;
    for (auto block = m.idle.begin(); block != m.idle.end();) {
        const bool goes = m.all.at(block->second).held == false && m.taken >= least + block->first;
        if (goes) m.taken -= block->first;
        block = goes ? m.idle.erase(block) : std::next(block);
    }
    return SUCCESS;
}

CUDA_API int cuMemAllocAsync(Address* address, size_t bytes, void* handle) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    if (bytes == 0 || address == nullptr) return INVALID_VALUE;
    const auto limit = static_cast<size_t>(setting("SAR_FAKE_MEMORY", 8ll << 30));
    Memory& m = memory();
    // A block of the pool that is idle serves what fits into it; nothing joins two of them.
    const auto idle = m.idle.lower_bound(bytes);
    const bool reused = idle != m.idle.end();
    if (!reused && bytes > limit - m.taken) return OUT_OF_MEMORY;
    const bool captured = stream->capture != nullptr;
    const Address start = reserve(bytes, captured, reused ? idle->first : bytes);
    if (start == 0) return OUT_OF_MEMORY;
    if (reused) {
        m.idle.erase(idle);
    } else {
        m.taken += bytes;
    }
    *address = start;
    return submit(stream, {"cuMemAllocAsync", {}, [start] { return hold(start); }});
}

CUDA_API int cuMemFreeAsync(Address start, void* handle) {
    const auto guard = lock();
    Stream* stream;
    if (const Status status = ready(handle, stream)) return status;
    const auto found = memory().all.find(start);
    if (found == memory().all.end() || found->second.freed) {
        complain("memory is released that is not held");
        return INVALID_VALUE;
    }
    // cuGraphAddMemFreeNode: only what a node of the graph allocated can be freed by one.
    if (stream->capture && !found->second.of_graph) return INVALID_VALUE;
    if (!stream->capture) {
        found->second.freed = true;
        memory().idle.emplace(found->second.block, start);
    }
    const auto release = [start] {
        let_go(start);
        return SUCCESS;
    };
    return submit(stream, {"cuMemFreeAsync", {{start, 1}}, release});
}
