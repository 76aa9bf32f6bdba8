// Stacks of threads, kept for reuse. A thread that returns leaves its stack to the next one that
// starts, so that a kernel whose threads never wait needs a single stack.
#pragma once
#include "../schedule.h"
#include "faults.h"
#include <cstdlib>

namespace emu {

const size_t STACK_BYTES = 64 << 10;
// Tops of stacks must not be a multiple of the page size apart: they would share few cache sets.
const size_t STACK_STRIDE = STACK_BYTES + 17 * 64;
const size_t STACKS_AT_ONCE = 32;
// The lowest bytes of a stack, which nobody should reach.
const size_t STACK_GUARD = 64;

static void allocate_stacks(std::vector<char*>& free_stacks) {
    char* chunk = static_cast<char*>(std::aligned_alloc(64, STACKS_AT_ONCE * STACK_STRIDE));
    // The highest is used first, so that an overrun is likelier to meet a stack that is free.
    for (size_t i = 0; i < STACKS_AT_ONCE; i++) {
        std::memset(chunk + i * STACK_STRIDE, 0xff, STACK_GUARD);
        free_stacks.push_back(chunk + i * STACK_STRIDE);
    }
}

[[noreturn]] static void fiber_main();

void give_stack(Fiber& fiber) {
    std::vector<char*>& free_stacks = fiber.block->free_stacks;
    if (free_stacks.empty()) allocate_stacks(free_stacks);
    fiber.stack = free_stacks.back();
    free_stacks.pop_back();
    fiber.sp = prepare_stack(fiber.stack + STACK_STRIDE, fiber_main);
}

// False where a thread overran its stack. Whatever lay below is spoilt, but the launch fails.
static bool guard_is_whole(const char* stack) {
    for (size_t i = 0; i < STACK_GUARD; i++) {
        if (static_cast<unsigned char>(stack[i]) != 0xff) return false;
    }
    return true;
}

// From a thread that has returned or is abandoned.
static void take_stack_back(Fiber& fiber) {
    if (fiber.stack == nullptr) return;
    if (!guard_is_whole(fiber.stack)) {
        record_fault(*fiber.block, indices("thread", fiber.index), Site{},
                     print("stack of %zu bytes overrun", STACK_BYTES));
        std::memset(fiber.stack, 0xff, STACK_GUARD);
    }
    fiber.block->free_stacks.push_back(fiber.stack);
    fiber.stack = nullptr;
}

} // namespace emu
