// "Machine code" of the fake compiler: a text of fixed size that names what was compiled, so that the
// fake driver knows which of the emulator's kernels a module has.
#pragma once
#include <cstddef>

namespace fake {

// cuModuleLoadData is given no length, so that a real image has its own; this one has a fixed one.
constexpr size_t CUBIN_BYTES = 8192;
// "MAGIC sm_80 bf16 linear.cu kernel kernel prefix*\n", then zeros. A name that a macro makes is known
// by its beginning alone.
constexpr char CUBIN_MAGIC[] = "SAR-FAKE-CUBIN";

} // namespace fake
