// Launches: checks at the door, blocks spread over OS threads.
#pragma once
#include "../emulator.h"
#include "block.h"
#include "registry.h"
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>

namespace emu {

// Blocks that no launch uses. OS threads come and go, so that they keep none themselves.
class BlockPool {
  public:
    std::unique_ptr<Block> take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_.empty()) return std::make_unique<Block>();
        std::unique_ptr<Block> block = std::move(idle_.back());
        idle_.pop_back();
        return block;
    }

    void give_back(std::unique_ptr<Block> block) {
        const std::lock_guard<std::mutex> lock(mutex_);
        idle_.push_back(std::move(block));
    }

  private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<Block>> idle_;
};

// Lives until the process ends: a launch may still run while statics are destroyed.
static BlockPool& block_pool() {
    static BlockPool* pool = new BlockPool;
    return *pool;
}

// The first fault of any block.
class FirstFault {
  public:
    void record(const std::string& what) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (what_.empty()) what_ = what;
    }

    const std::string& what() const { return what_; }

  private:
    std::mutex mutex_;
    std::string what_;
};

// A permutation of 0 .. count-1, as a function: natural, reversed, or strides that share no factor
// with count.
class BlockOrder {
  public:
    BlockOrder(u64 count, u64 seed) : count_(count) {
        if (seed == 0) return;
        Random random{seed};
        stride_ = count - 1;
        offset_ = count - 1;
        if (seed == 1) return;
        const u32 bound = static_cast<u32>(std::min<u64>(count, 1u << 31));
        offset_ = random.below(bound);
        do {
            stride_ = 1 + random.below(bound);
        } while (std::gcd(stride_, count) != 1);
    }

    u64 at(u64 i) const { return (i * stride_ + offset_) % count_; }

  private:
    u64 count_, stride_ = 1, offset_ = 0;
};

static uint3 block_index(u64 linear, dim3 grid) {
    return {static_cast<u32>(linear % grid.x), static_cast<u32>(linear / grid.x % grid.y),
            static_cast<u32>(linear / grid.x / grid.y)};
}

// Runs blocks `first`, `first + step`, .. of the order.
static void run_blocks(Launch& launch, u64 first, u64 step, FirstFault& first_fault) {
    const u64 count = static_cast<u64>(launch.grid.x) * launch.grid.y * launch.grid.z;
    const BlockOrder order(count, launch.seed);
    std::unique_ptr<Block> block = block_pool().take();
    block->launch = &launch;
    for (u64 i = first; i < count && !launch.stop.load(std::memory_order_relaxed); i += step) {
        block->index = block_index(order.at(i), launch.grid);
        run_block(*block);
        if (block->failed) {
            first_fault.record(block->fault);
            launch.stop.store(true, std::memory_order_relaxed);
        }
    }
    current = nullptr;
    block_pool().give_back(std::move(block));
}

static void run_grid(Launch& launch, u32 os_threads, FirstFault& first_fault) {
    const u64 count = static_cast<u64>(launch.grid.x) * launch.grid.y * launch.grid.z;
    const u64 workers = std::max<u64>(1, std::min<u64>(os_threads, count));
    std::vector<std::thread> others;
    for (u64 worker = 1; worker < workers; worker++) {
        others.emplace_back([&, worker] { run_blocks(launch, worker, workers, first_fault); });
    }
    run_blocks(launch, 0, workers, first_fault);
    for (std::thread& other : others) other.join();
}

// What a device refuses: see "Technical Specifications per Compute Capability" in CUDA's guide.
static std::string refusal(const Kernel* kernel, const u32 grid[3], const u32 block[3], u32 bytes) {
    if (kernel == nullptr) return "no such kernel";
    if (kernel->registered_twice) return "registered twice under this key";
    const u64 threads = static_cast<u64>(block[0]) * block[1] * block[2];
    if (threads == 0 || block[0] > 1024 || block[1] > 1024 || block[2] > 64 || threads > 1024) {
        return print("block of %u x %u x %u threads", block[0], block[1], block[2]);
    }
    const bool empty = grid[0] == 0 || grid[1] == 0 || grid[2] == 0;
    if (empty || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535) {
        return print("grid of %u x %u x %u blocks", grid[0], grid[1], grid[2]);
    }
    if (bytes > MAX_SHARED) {
        return print("%u bytes of shared memory; at most %zu", bytes, MAX_SHARED);
    }
    return "";
}

} // namespace emu

extern "C" int sar_emu_launch(const char* key, const u32 grid[3], const u32 block[3],
                              u32 smem_bytes, void** args, u32 os_threads, u64 seed, char* error,
                              size_t error_len) {
    const emu::Kernel* kernel = emu::find_kernel(key);
    emu::FirstFault first_fault;
    const std::string refusal = emu::refusal(kernel, grid, block, smem_bytes);
    if (refusal.empty()) {
        emu::Launch launch;
        launch.key = key;
        launch.kernel = kernel;
        launch.args = args;
        launch.grid = {grid[0], grid[1], grid[2]};
        launch.block = {block[0], block[1], block[2]};
        launch.dynamic_bytes = smem_bytes;
        launch.seed = seed;
        emu::run_grid(launch, os_threads, first_fault);
    } else {
        first_fault.record(emu::print("kernel %s: ", key) + refusal);
    }
    if (error != nullptr && error_len > 0) {
        std::snprintf(error, error_len, "%s", first_fault.what().c_str());
    }
    return first_fault.what().empty() ? 0 : 1;
}
