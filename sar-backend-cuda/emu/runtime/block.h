// Running one block: setting up its threads, turns of warps, ends of threads, deadlock.
#pragma once
#include "../barrier.h"
#include "../warp_ops.h"
#include "shared_memory.h"
#include "stacks.h"
#include <utility>

namespace emu {

// ---- orders

// Lehmer's generator in the form of Knuth's MMIX; quality matters little here.
struct Random {
    u64 state;

    u32 below(u32 bound) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<u32>((state >> 33) % bound);
    }
};

// 0, 1, .. count-1 for seed 0, reversed for seed 1, shuffled for others.
static void fill_order(u32* order, u32 count, u64 seed, Random& random) {
    for (u32 i = 0; i < count; i++) order[i] = seed == 1 ? count - 1 - i : i;
    if (seed <= 1) return;
    for (u32 i = count; i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
}

// The shuffles of a block depend on the seed and the block alone.
static void set_orders(Block& block) {
    const u64 seed = block.launch->seed;
    Random random{seed ^ (block.index.x + (static_cast<u64>(block.index.y) << 20) +
                          (static_cast<u64>(block.index.z) << 40))};
    fill_order(block.warp_order.data(), static_cast<u32>(block.warps.size()), seed, random);
    u32 lanes[WARP];
    fill_order(lanes, WARP, seed, random);
    block.first_lane = lanes[0];
    for (u32 i = 0; i < WARP; i++) block.next_lane[lanes[i]] = lanes[(i + 1) % WARP];
}

// ---- setting up

static bool same_shape(dim3 a, dim3 b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

// Threads and warps of a block of this shape: what does not change from one such block to the next.
static void shape_block(Block& block, dim3 shape) {
    block.shape = shape;
    block.threads = shape.x * shape.y * shape.z;
    block.fibers.resize(block.threads);
    block.warps.resize((block.threads + WARP - 1) / WARP);
    block.warp_order.resize(block.warps.size());
    u32 linear = 0;
    for (u32 z = 0; z < shape.z; z++) {
        for (u32 y = 0; y < shape.y; y++) {
            for (u32 x = 0; x < shape.x; x++, linear++) {
                Fiber& fiber = block.fibers[linear];
                fiber.warp = &block.warps[linear / WARP];
                fiber.block = &block;
                fiber.index = {x, y, z};
                fiber.lane = linear % WARP;
            }
        }
    }
}

static void set_up_warp(Block& block, u32 number) {
    Warp& warp = block.warps[number];
    const u32 lanes = block.threads - number * WARP;
    warp.first = &block.fibers[number * WARP];
    warp.ready = lanes >= WARP ? ALL_LANES : lane_bit(lanes) - 1;
    warp.gone = ~warp.ready;
    warp.at_operation = 0;
    warp.at_barrier = 0;
}

// `block.index` and `block.launch` are set; the rest is what the last block left. No thread of it
// holds a stack.
static void set_up_block(Block& block) {
    if (!same_shape(block.shape, block.launch->block)) shape_block(block, block.launch->block);
    for (u32 number = 0; number < block.warps.size(); number++) set_up_warp(block, number);
    block.alive = block.threads;
    block.barrier_arrived = 0;
    block.failed = false;
    set_orders(block);
    reset_shared_memory(block);
    block_epoch++;
}

// ---- threads

// The running thread has returned from the kernel: those that waited for it may go on.
static void leave_block(Fiber& self) {
    Block& block = *self.block;
    Warp& warp = *self.warp;
    warp.gone |= lane_bit(self.lane);
    if (warp.at_operation != 0) complete_without(warp, self.lane);
    block.alive--;
    if (block.alive > 0 && block.barrier_arrived == block.alive) release_barrier(block);
}

// `self` has returned: `next`, which has not run yet, becomes the running thread on its stack.
static void hand_stack_on(Fiber& self, Fiber& next) {
    next.stack = std::exchange(self.stack, nullptr);
    next.warp->ready &= ~lane_bit(next.lane);
    current = &next;
}

// Where every stack starts: runs one thread after another for as long as there are new ones.
[[noreturn]] static void fiber_main() {
    for (;;) {
        Fiber& self = *current;
        Block& block = *self.block;
        self.copies.clear();
        self.committed_groups = 0;
        block.launch->kernel->invoke(block.launch->args);
        leave_block(self);
        if (self.warp->ready == 0) {
            take_stack_back(self);
            sar_emu_switch(&self.sp, block.scheduler_sp);
        }
        Fiber& next = next_ready(block, *self.warp, self.lane);
        if (next.stack == nullptr) {
            hand_stack_on(self, next);
        } else {
            take_stack_back(self);
            run(&self.sp, next);
        }
    }
}

// ---- turns

static void run_warp(Block& block, Warp& warp) {
    const bool first_is_ready = warp.ready & lane_bit(block.first_lane);
    run(&block.scheduler_sp,
        first_is_ready ? warp.first[block.first_lane] : next_ready(block, warp, block.first_lane));
}

// What a thread of the block waits for, when none can run.
static void report_deadlock(Block& block) {
    const std::string at_barrier =
        print("%u of %u threads wait at __syncthreads", block.barrier_arrived, block.alive);
    for (const Warp& warp : block.warps) {
        if (warp.at_operation == 0) continue;
        const u32 lane = static_cast<u32>(__builtin_ctz(warp.at_operation));
        const Post& post = warp.post[lane];
        const u32 missing = live_lanes(warp, post.mask) & ~warp.at_operation;
        record_fault(block, indices("thread", warp.first[lane].index), post.site,
                     print("deadlock: %s waits for lanes %08x; ", post.op->name, missing) +
                         at_barrier);
    }
    record_fault(block, "all threads", block.barrier, "deadlock: " + at_barrier);
}

// Gives every warp that can run a turn. False where none can.
static bool run_warps(Block& block) {
    bool any_ran = false;
    for (u32 number : block.warp_order) {
        Warp& warp = block.warps[number];
        if (warp.ready == 0) continue;
        any_ran = true;
        run_warp(block, warp);
        check_red_zones(block, warp);
        if (block.failed) break;
    }
    return any_ran;
}

// Runs the block to its end or its first fault.
static void run_block(Block& block) {
    set_up_block(block);
    while (block.alive > 0 && !block.failed) {
        if (!run_warps(block)) report_deadlock(block);
    }
    // Threads that returned have given their stacks back; those of a failed block are abandoned.
    if (!block.failed) return;
    for (Fiber& fiber : block.fibers) take_stack_back(fiber);
}

} // namespace emu
