// Switching from one stack to another on the same OS thread.
//
// sar_emu_switch(save, load) pushes the registers that a call must preserve, stores the stack
// pointer in *save, takes `load` as the stack pointer and pops the same registers there: some
// nanoseconds, where swapcontext makes a system call for the signal mask. Rounding modes are not
// switched: kernels do not change them.
#pragma once
#include <cstring>

#if !defined(__ELF__)
#error "emu: the context switch is written for ELF assemblers"
#endif

extern "C" __attribute__((visibility("hidden"))) void sar_emu_switch(void** save, void* load);

namespace emu {

#if defined(__x86_64__)

// rbx, rbp, r12-r15 are preserved by the System V ABI; the return address lies above them.
asm(R"(
.pushsection .text
.p2align 4
.weak sar_emu_switch
.hidden sar_emu_switch
.type sar_emu_switch, @function
sar_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size sar_emu_switch, .-sar_emu_switch
.popsection
)");

// A stack that enters `entry` when it is switched to. `top` is 16-byte aligned; at the first
// instruction of a function the stack pointer lies 8 below a multiple of 16.
inline void* prepare_stack(char* top, void (*entry)()) {
    void** slot = reinterpret_cast<void**>(top);
    *--slot = nullptr;
    *--slot = reinterpret_cast<void*>(entry);
    for (int preserved = 0; preserved < 6; preserved++) *--slot = nullptr;
    return slot;
}

#elif defined(__aarch64__)

// x19-x28, the frame pointer x29, the link register x30 and d8-d15 are preserved by AAPCS64.
asm(R"(
.pushsection .text
.p2align 4
.weak sar_emu_switch
.hidden sar_emu_switch
.type sar_emu_switch, %function
sar_emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size sar_emu_switch, .-sar_emu_switch
.popsection
)");

// A stack that enters `entry` when it is switched to. `top` is 16-byte aligned.
inline void* prepare_stack(char* top, void (*entry)()) {
    const int frame_words = 20, link_register = 11;
    void** frame = reinterpret_cast<void**>(top) - frame_words;
    std::memset(frame, 0, frame_words * sizeof(void*));
    frame[link_register] = reinterpret_cast<void*>(entry);
    return frame;
}

#else
#error "emu: no context switch for this processor"
#endif

} // namespace emu
