// __syncthreads.
#pragma once
#include "schedule.h"

namespace emu {

// Every waiting thread becomes ready.
inline void release_barrier(Block& block) {
    block.barrier_arrived = 0;
    for (Warp& warp : block.warps) {
        warp.ready |= warp.at_barrier;
        warp.at_barrier = 0;
    }
}

} // namespace emu

// Waits for every thread of the block that has not returned. All must wait on the same line: CUDA
// leaves a barrier in divergent code undefined.
inline void __syncthreads(emu::Site site = emu::Site::here()) {
    emu::Fiber& self = *emu::current;
    emu::Block& block = *self.block;
    if (block.barrier_arrived == 0) {
        block.barrier = site;
    } else if (block.barrier.line != site.line) {
        emu::fault(site, "divergent __syncthreads: other threads wait at line %d",
                   block.barrier.line);
    }
    if (++block.barrier_arrived == block.alive) {
        emu::release_barrier(block);
        return;
    }
    self.warp->at_barrier |= emu::lane_bit(self.lane);
    emu::wait_for_turn();
}
