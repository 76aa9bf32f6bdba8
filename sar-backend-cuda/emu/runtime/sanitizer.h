// Handlers for code that compilers insert under -fsanitize=alignment,null,bounds,shift-exponent: in
// a kernel they are faults. Defined here, they need no runtime library; where one is linked all the
// same (-fsanitize=undefined) these take its place. The data structures are those of GCC and Clang.
#pragma once
#include "faults.h"
#include <cstdlib>

namespace emu {

struct SourceLocation {
    const char* file;
    u32 line, column;
};

struct TypeDescriptor {
    u16 kind, info;
    char name[1];
};

struct TypeMismatch {
    SourceLocation at;
    const TypeDescriptor* type;
    u8 log2_alignment, access;
};

struct OutOfBounds {
    SourceLocation at;
    const TypeDescriptor *array, *index;
};

struct ShiftOutOfBounds {
    SourceLocation at;
    const TypeDescriptor *left, *right;
};

[[noreturn]] static void sanitizer_fault(const SourceLocation& at, const std::string& what) {
    const Site site{at.file, static_cast<int>(at.line)};
    if (current == nullptr) {
        std::fprintf(stderr, "%s%s\n", place(site).c_str(), what.c_str());
        std::abort();
    }
    // The message is copied before this stack, and with it `what`, is abandoned.
    fault(site, "%s", what.c_str());
}

[[noreturn]] static void type_mismatch(const TypeMismatch* data, void* address) {
    const char* type = data->type->name;
    sanitizer_fault(data->at, address == nullptr
                                  ? print("access through a null pointer to %s", type)
                                  : print("%p is not aligned for %s (%u bytes)", address, type,
                                          1u << data->log2_alignment));
}

[[noreturn]] static void out_of_bounds(const OutOfBounds* data, void* index) {
    sanitizer_fault(data->at, print("index %lld lies outside of %s",
                                    static_cast<long long>(reinterpret_cast<size_t>(index)),
                                    data->array->name));
}

[[noreturn]] static void shift_out_of_bounds(const ShiftOutOfBounds* data, void* distance) {
    sanitizer_fault(data->at, print("shift of %s by %lld", data->left->name,
                                    static_cast<long long>(reinterpret_cast<size_t>(distance))));
}

} // namespace emu

#define SAR_EMU_HANDLER extern "C" __attribute__((weak)) void

SAR_EMU_HANDLER __ubsan_handle_type_mismatch_v1(emu::TypeMismatch* data, void* address) {
    emu::type_mismatch(data, address);
}
SAR_EMU_HANDLER __ubsan_handle_type_mismatch_v1_abort(emu::TypeMismatch* data, void* address) {
    emu::type_mismatch(data, address);
}
SAR_EMU_HANDLER __ubsan_handle_out_of_bounds(emu::OutOfBounds* data, void* index) {
    emu::out_of_bounds(data, index);
}
SAR_EMU_HANDLER __ubsan_handle_out_of_bounds_abort(emu::OutOfBounds* data, void* index) {
    emu::out_of_bounds(data, index);
}
SAR_EMU_HANDLER __ubsan_handle_shift_out_of_bounds(emu::ShiftOutOfBounds* data, void*, void* by) {
    emu::shift_out_of_bounds(data, by);
}
SAR_EMU_HANDLER __ubsan_handle_shift_out_of_bounds_abort(emu::ShiftOutOfBounds* data, void*,
                                                         void* by) {
    emu::shift_out_of_bounds(data, by);
}

#undef SAR_EMU_HANDLER
