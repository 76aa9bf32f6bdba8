//! Kernel arguments: values whose layout is that of the parameter they are given for.

use crate::memory::Address;
use core::ffi::c_void;
use sar_math::{MAX_SCALES, ScaleSchedule};

/// A value that a kernel takes as an argument.
///
/// # Safety
/// The implementing type has the size and layout of the kernel's parameter type, and no padding that
/// the kernel reads.
pub unsafe trait KernelArg {
    /// Address of the value.
    fn place(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast::<c_void>().cast_mut()
    }
    /// Size of the value.
    fn bytes(&self) -> usize {
        size_of_val(self)
    }
}

// SAFETY: `int`, `unsigned`, `unsigned long long`, `float` and `double` of every CUDA platform.
unsafe impl KernelArg for i32 {}
// SAFETY: as above.
unsafe impl KernelArg for u32 {}
// SAFETY: as above.
unsafe impl KernelArg for u64 {}
// SAFETY: as above.
unsafe impl KernelArg for f32 {}
// SAFETY: as above.
unsafe impl KernelArg for f64 {}
// SAFETY: a device pointer is 64 bits, and an `Address` is nothing else.
unsafe impl<T> KernelArg for Address<T> {}
// SAFETY: `repr(C)` of ints; `kernels/schedule.cuh` asserts the same size.
unsafe impl KernelArg for ScaleTable {}
// SAFETY: `repr(C)` of doubles; `kernels/schedule.cuh` asserts the same size.
unsafe impl KernelArg for GuidanceRamp {}
// SAFETY: `repr(C)` of floats; `kernels/schedule.cuh` asserts the same size.
unsafe impl KernelArg for ScaleWeights {}

/// A schedule as kernels take it, by value: `struct ScaleTable` of `kernels/schedule.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScaleTable {
    /// Number of scales.
    pub scales: i32,
    /// First token of each scale; from the last scale on, the number of tokens.
    pub first: [i32; MAX_SCALES + 1],
    /// Rows of each grid.
    pub height: [i32; MAX_SCALES],
    /// Columns of each grid.
    pub width: [i32; MAX_SCALES],
}

const _: () = assert!(size_of::<ScaleTable>() == 4 * (2 + 3 * MAX_SCALES) && MAX_SCALES == 32);

impl ScaleTable {
    /// The table of a schedule, which has fewer than 2³¹ tokens by construction.
    pub fn new(schedule: &ScaleSchedule) -> Self {
        let tokens = schedule.tokens() as i32;
        let mut table = Self {
            scales: schedule.len() as i32,
            first: [tokens; MAX_SCALES + 1],
            height: [0; MAX_SCALES],
            width: [0; MAX_SCALES],
        };
        for (i, scale) in schedule.scales().iter().enumerate() {
            table.first[i] = schedule.range(i).start as i32;
            table.height[i] = scale.height as i32;
            table.width[i] = scale.width as i32;
        }
        table
    }
}

/// One number for each scale of a schedule, by value: `struct GuidanceRamp` of `kernels/schedule.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GuidanceRamp {
    /// By scale; not used beyond the last.
    pub of_scale: [f64; MAX_SCALES],
}

/// How much a token of each scale counts in a gradient, by value: `struct ScaleWeights` of
/// `kernels/schedule.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScaleWeights {
    /// By scale; not used beyond the last.
    pub of_scale: [f32; MAX_SCALES],
}
