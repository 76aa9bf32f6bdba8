// The part of the emulator that a program has once: one file to compile, of one file a concern.
#include "runtime/faults.h"
#include "runtime/shared_memory.h"
#include "runtime/stacks.h"
#include "runtime/block.h"
#include "runtime/registry.h"
#include "runtime/launch.h"
#include "runtime/guarded_memory.h"
#include "runtime/sanitizer.h"
