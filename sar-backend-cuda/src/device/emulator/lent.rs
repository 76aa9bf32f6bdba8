//! Lends the emulator to the fake CUDA of the tests, which runs no kernels of its own.

use super::{sar_emu_launch, sar_emu_parameters};
use crate::error::CudaError;
use crate::libraries::Library;
use core::ffi::{c_char, c_int, c_void};

/// The function by which the fake takes the emulator.
const TAKES: &[u8] = b"sar_fake_set_launcher";

type Launcher = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    *const u32,
    u32,
    *const *mut c_void,
    u32,
    u64,
    *mut c_char,
    usize,
) -> c_int;
type Parameters = unsafe extern "C" fn(*const c_char) -> *const c_int;

/// Lends the emulator to the driver's library, if it is the fake of `tests/fake_cuda`; returns whether it is. Without,
/// launches on the fake fail.
///
/// # Errors
/// There is no driver's library.
pub fn lend_emulator() -> Result<bool, CudaError> {
    let path = Library::Driver.open()?;
    // SAFETY: the library is open already, and stays so; only the fake has a function of this name, which has this type.
    unsafe {
        let Ok(library) = libloading::Library::new(&path) else { return Ok(false) };
        let takes = library.get::<extern "C" fn(Launcher, Parameters)>(TAKES);
        Ok(takes.is_ok_and(|take| {
            take(sar_emu_launch, sar_emu_parameters);
            true
        }))
    }
}
