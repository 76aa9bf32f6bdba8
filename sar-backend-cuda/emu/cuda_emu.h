// Runs CUDA C++ kernels on the CPU, thread by thread, and looks for faults while it does.
//
// Every CUDA thread is a fiber: a stack of its own, on the OS thread that runs the block. Fibers
// switch only where CUDA threads meet: __syncthreads, warp operations, return. Blocks may be spread
// over OS threads. Kernel files include this header through prelude.cuh; the program links
// emulator.cpp once, and calls the functions of emulator.h.
//
// A launch fails, with a message that names kernel, block, thread and line, on
//   - a divergent __syncthreads or warp operation, or a deadlock
//   - a warp operation whose mask lacks the calling lane, or on which lanes do not agree
//   - a write next to an array of shared memory (noticed when the warp next stops)
//   - ldmatrix or cp.async on an address that is misaligned or not in shared memory
//   - a stack that is overrun, shared memory beyond what a device has
//   - where compiled with -fsanitize=alignment,bounds,shift-exponent: a misaligned access such as a
//     uint4 at 4 bytes, an index beyond a local array, a shift by 32 and more
// A launch gives a NaN, or a result that depends on `seed`, on
//   - shared memory that is read before it is written
//   - a cp.async that is read before its wait
//   - a shuffle that reads from a lane that takes no part
//   - a missing __syncthreads or __syncwarp
//
// Not modelled
//   - memory order between blocks, and races within a block that no order of whole stretches
//     between meeting points shows; a kernel that spins for another thread never ends
//   - bounds of global memory: the caller puts guards around its buffers (sar_emu_alloc does)
//   - lanes running in step without a warp operation: code must not rely on that
//   - the last bits of tensor-core sums, ex2.approx and rsqrt.approx; -ftz, -use_fast_math
//   - __launch_bounds__, registers, bank conflicts, occupancy, speed
//   - wgmma, TMA, mbarrier, clusters, dynamic parallelism, textures, atomics on floats
//   - AddressSanitizer and ThreadSanitizer, which do not know these fibers; -fsanitize=undefined
//     works
//
// Kernels read one type through a pointer to another (uint4 from bf16), so that compilers need
// -fno-strict-aliasing; -ffp-contract=off keeps results the same on all CPUs.
#pragma once
#include "async_copy.h"
#include "barrier.h"
#include "intrinsics.h"
#include "registry.h"
#include "shared_memory.h"
#include "tensor_core.h"
#include "vector_types.h"
#include "warp_ops.h"

#ifndef EMU_VARIANT
#define EMU_VARIANT ""
#endif

#define KERNEL static
#define DEV static inline
#define REGISTER_KERNEL(name)                                                                      \
    [[maybe_unused]] static const bool name##_entered_ = ::emu::enter<name>(EMU_VARIANT "/" #name);

#define __launch_bounds__(...)

#define SMEM(T, name, n)                                                                           \
    static thread_local ::emu::SharedSlot name##_slot_;                                            \
    T* const name = static_cast<T*>(                                                               \
        ::emu::shared_array(name##_slot_, #name, sizeof(T) * (n), ::emu::Site::here()))
#define DYN_SMEM(T, name)                                                                          \
    T* const name = reinterpret_cast<T*>(::emu::current->block->dynamic_shared)

#define threadIdx (::emu::current->index)
#define blockIdx (::emu::current->block->index)
#define blockDim (::emu::current->block->launch->block)
#define gridDim (::emu::current->block->launch->grid)
