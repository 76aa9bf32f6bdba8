// Messages of faults, and how a fault ends a block.
#pragma once
#include "../context_switch.h"
#include "../state.h"
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace emu {

static std::string formatted(const char* format, va_list arguments) {
    char text[512];
    std::vsnprintf(text, sizeof text, format, arguments);
    return text;
}

static std::string print(const char* format, ...) __attribute__((format(printf, 1, 2)));

static std::string print(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string text = formatted(format, arguments);
    va_end(arguments);
    return text;
}

// "softmax.cu:41: ", or nothing where the line is not known.
static std::string place(Site site) {
    if (site.file == nullptr) return "";
    const char* slash = std::strrchr(site.file, '/');
    return print("%s:%d: ", slash ? slash + 1 : site.file, site.line);
}

static std::string indices(const char* what, uint3 index) {
    return print("%s (%u,%u,%u)", what, index.x, index.y, index.z);
}

// Marks the block as failed. The first fault counts.
static void record_fault(Block& block, const std::string& who, Site site, const std::string& what) {
    if (block.failed) return;
    block.failed = true;
    block.fault = print("kernel %s, ", block.launch->key) + indices("block", block.index) + ", " +
                  who + ": " + place(site) + what;
}

[[noreturn]] void fault(Site site, const char* format, ...) {
    Fiber& self = *current;
    {
        va_list arguments;
        va_start(arguments, format);
        const std::string what = formatted(format, arguments);
        va_end(arguments);
        record_fault(*self.block, indices("thread", self.index), site, what);
    }
    // Nobody comes back: the scheduler stops at a failed block and takes this stack back.
    sar_emu_switch(&self.sp, self.block->scheduler_sp);
    __builtin_unreachable();
}

} // namespace emu
