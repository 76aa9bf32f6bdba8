// Kernels by key. A kernel registers itself while the program starts.
#pragma once
#include "state.h"
#include <type_traits>
#include <utility>

namespace emu {

// Enters a kernel under its key; in emulator.cpp.
bool enter_kernel(const char* key, void (*invoke)(void** args), const int* parameter_bytes);

// Calls a kernel as cuLaunchKernel does: one pointer for each parameter.
template <auto KERNEL> struct Caller;

template <class... Parameters, void (*KERNEL)(Parameters...)> struct Caller<KERNEL> {
    static void invoke(void** args) { call(args, std::index_sequence_for<Parameters...>{}); }

    static constexpr int parameter_bytes[] = {static_cast<int>(sizeof(Parameters))..., -1};

  private:
    template <size_t... I>
    static void call([[maybe_unused]] void** args, std::index_sequence<I...>) {
        KERNEL(*static_cast<std::remove_cv_t<Parameters>*>(args[I])...);
    }
};

template <auto KERNEL> bool enter(const char* key) {
    return enter_kernel(key, Caller<KERNEL>::invoke, Caller<KERNEL>::parameter_bytes);
}

} // namespace emu
