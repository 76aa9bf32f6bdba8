//! Kernels loaded on the GPU, by name and variant.

use super::{failed, locked};
use crate::cache::Cache;
use crate::device::{Kernel, Launch};
use crate::error::CudaError;
use crate::kernels::{self, SOURCES, Source};
use cudarc::driver::{DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Mutex;

/// A kernel, and the dynamic shared memory that it was last allowed. How much it may have without asking
/// depends on its static shared memory, so any amount above what was last allowed is asked for.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    allowed: u32,
}

/// Modules and their kernels.
pub(super) struct Functions {
    cache: Cache,
    arch: String,
    loaded: Mutex<HashMap<(&'static str, Kernel), Function>>,
    modules: Mutex<HashMap<(&'static str, &'static str), usize>>,
}

impl Functions {
    pub(super) fn new(cache: Cache, arch: String) -> Self {
        Self { cache, arch, loaded: Mutex::default(), modules: Mutex::default() }
    }

    /// Loads every kernel file of a variant, so that no step stops to compile one. Files that are not
    /// in the cache are compiled in parallel.
    pub(super) fn prepare(&self, variant: &'static str) -> Result<(), CudaError> {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let share = SOURCES.len().div_ceil(workers);
        let (cache, arch) = (&self.cache, self.arch.as_str());
        let compile = |sources: &'static [Source]| -> Result<Vec<(Source, Vec<u8>)>, CudaError> {
            sources.iter().map(|source| Ok((*source, cache.get(*source, variant, arch)?))).collect()
        };
        let compiled: Vec<_> = std::thread::scope(|scope| {
            let compile = &compile;
            let tasks: Vec<_> =
                SOURCES.chunks(share).map(|part| scope.spawn(move || compile(part))).collect();
            let panicked = |_| Err(CudaError::device("compiling kernels", "a panic"));
            tasks.into_iter().map(|task| task.join().unwrap_or_else(panicked)).collect()
        });
        for part in compiled {
            for (source, cubin) in part? {
                self.module(variant, source, &cubin)?;
            }
        }
        Ok(())
    }

    /// The function of a launch, allowed as much shared memory as it asks for.
    pub(super) fn get(&self, launch: &Launch<'_>) -> Result<sys::CUfunction, CudaError> {
        let key = (launch.variant, launch.kernel);
        let mut loaded = locked(&self.loaded);
        let function = match loaded.get_mut(&key) {
            Some(function) => function,
            None => {
                let handle = self.find(launch.variant, launch.kernel)?;
                loaded.entry(key).or_insert(Function { handle, allowed: 0 })
            }
        };
        if launch.shared > function.allowed {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe {
                let bytes = launch.shared as i32;
                result::function::set_function_attribute(function.handle, attribute, bytes)
                    .map_err(|error| too_much_shared(launch, error))?;
            }
            function.allowed = launch.shared;
        }
        Ok(function.handle)
    }

    fn find(&self, variant: &'static str, kernel: Kernel) -> Result<sys::CUfunction, CudaError> {
        let known = locked(&self.modules).get(&(variant, kernel.file)).copied();
        let module = match known {
            Some(module) => module as sys::CUmodule,
            None => {
                let source = kernels::source(kernel.file)?;
                let cubin = self.cache.get(source, variant, &self.arch)?;
                self.module(variant, source, &cubin)?
            }
        };
        let name = CString::new(kernel.name).map_err(|e| CudaError::device(kernel.name, e))?;
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(module, name).map_err(failed(kernel.name)) }
    }

    /// Loads machine code; a file of the cache that the driver refuses is compiled anew, once.
    fn module(
        &self,
        variant: &'static str,
        source: Source,
        cubin: &[u8],
    ) -> Result<sys::CUmodule, CudaError> {
        let key = (variant, source.stem);
        if let Some(&module) = locked(&self.modules).get(&key) {
            return Ok(module as sys::CUmodule);
        }
        // SAFETY: machine code as NVRTC made it; the driver checks its header.
        let module = match unsafe { result::module::load_data(cubin.as_ptr().cast()) } {
            Ok(module) => module,
            // That the GPU is full says nothing about the code.
            Err(full) if full.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(failed("cuModuleLoadData")(full));
            }
            Err(refused) => {
                let nvrtc = crate::Nvrtc::load().map_err(|compiler| {
                    let reason = failed("is refused by cuModuleLoadData")(refused).to_string();
                    self.cache.kept(source, &self.arch, reason, compiler)
                })?;
                let compiled = self.cache.build(&nvrtc, source, variant, &self.arch)?;
                // SAFETY: as above.
                unsafe {
                    result::module::load_data(compiled.cubin.as_ptr().cast())
                        .map_err(failed("cuModuleLoadData"))?
                }
            }
        };
        locked(&self.modules).insert(key, module as usize);
        Ok(module)
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        for (_, module) in locked(&self.modules).drain() {
            // SAFETY: loaded by `module`; the device has run all launches. Nothing can be done here
            // about a failure to unload.
            let _ = unsafe { result::module::unload(module as sys::CUmodule) };
        }
    }
}

/// The error for a block that may not have as much shared memory as it needs. GPUs of one generation differ
/// in this limit: 163 KiB per block on an A100, 99 KiB on the workstation cards.
fn too_much_shared(launch: &Launch<'_>, error: DriverError) -> CudaError {
    // Any other error, such as one after a fault of earlier work, is not about the amount.
    if error.0 != sys::CUresult::CUDA_ERROR_INVALID_VALUE {
        return failed("cuFuncSetAttribute")(error);
    }
    CudaError::Unsupported {
        op: launch.kernel.name,
        what: format!(
            "a block needs {} bytes of shared memory, which this GPU does not give ({error}); \
             --dtype bf16 needs less, and so does a smaller --top-k",
            launch.shared
        ),
    }
}
