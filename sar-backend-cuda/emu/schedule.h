// Handing the processor from one thread of a block to another.
//
// A thread runs until it must wait. Then the next ready lane of its warp runs, without a detour
// through the scheduler, and only when the warp has none does the scheduler pick another warp. So a
// warp runs as far ahead of the others as it may: the order in which a missing barrier shows.
#pragma once
#include "context_switch.h"
#include "state.h"

namespace emu {

inline u32 lane_bit(u32 lane) { return 1u << lane; }

// A stack for a thread that has not run yet, which enters the kernel; in emulator.cpp.
void give_stack(Fiber& fiber);

// The ready lane whose turn is next after `lane`. The warp has one.
inline Fiber& next_ready(const Block& block, const Warp& warp, u32 lane) {
    do {
        lane = block.next_lane[lane];
    } while (!(warp.ready & lane_bit(lane)));
    return warp.first[lane];
}

// Lets `next` run; returns when someone switches back to `save`.
inline void run(void** save, Fiber& next) {
    next.warp->ready &= ~lane_bit(next.lane);
    if (next.stack == nullptr) give_stack(next);
    current = &next;
    sar_emu_switch(save, next.sp);
}

// The running thread waits: returns when it has been made ready and has its turn.
inline void wait_for_turn() {
    Fiber& self = *current;
    Block& block = *self.block;
    if (self.warp->ready != 0) {
        run(&self.sp, next_ready(block, *self.warp, self.lane));
    } else {
        sar_emu_switch(&self.sp, block.scheduler_sp);
    }
}

} // namespace emu
