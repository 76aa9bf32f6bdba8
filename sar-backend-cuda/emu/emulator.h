// What a program calls: plain C, for Rust and for tests.
#pragma once
#include "vector_types.h"
#include <cstddef>

extern "C" {

// Runs a kernel to its end. `key` is "variant/name". `args` has one pointer for each parameter, as
// cuLaunchKernel's kernelParams. Blocks are spread over `os_threads` OS threads. Blocks, warps and
// lanes get their turns in natural order for seed 0, in reverse for 1, shuffled for others; no
// result of a kernel without races depends on os_threads or seed.
//
// Returns 0, or another number with a message in `error` (cut to `error_len`, always ended by a
// null). After a failure the outputs are whatever was written by then. May be called by several
// threads at once.
int sar_emu_launch(const char* key, const u32 grid[3], const u32 block[3], u32 smem_bytes,
                   void** args, u32 os_threads, u64 seed, char* error, size_t error_len);

// Bytes of each parameter of a kernel, ended by -1; null where there is no such kernel.
const int* sar_emu_parameters(const char* key);

// The registered kernels, sorted by key.
int sar_emu_kernel_count();
const char* sar_emu_kernel_name(int index);

// Memory for buffers: 256-byte aligned, every byte 0xff (a NaN), 256 guard bytes on both sides.
// Null where there is no memory.
void* sar_emu_alloc(size_t bytes);
// 0 where the guards are whole, 1 where bytes before the buffer were written, 2 after it.
int sar_emu_check(const void* buffer);
void sar_emu_free(void* buffer);
}
