// The table of kernels.
#pragma once
#include "../registry.h"
#include <map>

namespace emu {

static std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> table;
    return table;
}

bool enter_kernel(const char* key, void (*invoke)(void** args), const int* parameter_bytes) {
    const auto [entry, is_new] = kernels().insert({key, Kernel{invoke, parameter_bytes, false}});
    // The same file compiled twice under one EMU_VARIANT: a launch of it would be ambiguous.
    if (!is_new) entry->second.registered_twice = true;
    return is_new;
}

static const Kernel* find_kernel(const char* key) {
    const auto entry = kernels().find(key);
    return entry == kernels().end() ? nullptr : &entry->second;
}

} // namespace emu

extern "C" const int* sar_emu_parameters(const char* key) {
    const emu::Kernel* kernel = emu::find_kernel(key);
    return kernel ? kernel->parameter_bytes : nullptr;
}

extern "C" int sar_emu_kernel_count() { return static_cast<int>(emu::kernels().size()); }

extern "C" const char* sar_emu_kernel_name(int index) {
    if (index < 0 || index >= sar_emu_kernel_count()) return nullptr;
    return std::next(emu::kernels().begin(), index)->first.c_str();
}
