//! Compiles kernels to machine code for one architecture, through NVRTC; needs no GPU and no driver.

use crate::error::CudaError;
use crate::kernels::{HEADERS, Source, options};
use crate::libraries::Library;
use cudarc::nvrtc::{result, sys};
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::OnceLock;

/// The output of a compilation.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code, to be loaded by the driver.
    pub cubin: Vec<u8>,
    /// The code of NVIDIA's virtual machine (PTX) that the machine code was made from.
    pub ptx: String,
    /// The compiler's log: registers, shared memory and spills of every kernel.
    pub log: String,
}

/// The compiler, which has been loaded.
#[derive(Clone, Copy, Debug)]
pub struct Nvrtc {
    /// Major and minor version, part of the key of cached kernels.
    pub version: (i32, i32),
}

impl Nvrtc {
    /// Loads the compiler; its version stays the same for the life of the process.
    ///
    /// # Errors
    /// [`CudaError::Library`] if it is missing.
    pub fn load() -> Result<Self, CudaError> {
        static VERSION: OnceLock<(i32, i32)> = OnceLock::new();
        if let Some(&version) = VERSION.get() {
            return Ok(Self { version });
        }
        Library::Nvrtc.open()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is open, so this function of every version of it is found.
        let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        status.result().map_err(|e| CudaError::device("nvrtcVersion", e))?;
        Ok(Self { version: *VERSION.get_or_init(|| (major, minor)) })
    }

    /// Compiles a file for `arch` (as in `sm_90`).
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the compiler's log.
    pub fn compile(
        &self,
        source: Source,
        variant: &str,
        arch: &str,
    ) -> Result<Compiled, CudaError> {
        let failed = |log: String| CudaError::Compile {
            file: source.stem,
            target: format!("{arch}, {variant}"),
            log,
        };
        let text = CString::new(source.text).map_err(|e| failed(e.to_string()))?;
        let name =
            CString::new(format!("{}.cu", source.stem)).map_err(|e| failed(e.to_string()))?;
        let program = Program::new(&text, &name).map_err(|e| failed(e.to_string()))?;
        // SAFETY: the program has been created and not yet destroyed; likewise below.
        let outcome =
            unsafe { result::compile_program(program.0, &options(source.stem, variant, arch)) };
        let log = program.log();
        outcome.map_err(|e| failed(format!("{e}\n{log}")))?;
        let cubin = program.cubin().map_err(|e| failed(e.to_string()))?;
        let ptx = program.ptx().map_err(|e| failed(e.to_string()))?;
        Ok(Compiled { cubin, ptx, log })
    }
}

/// The text up to its terminating null.
fn text(raw: &[c_char]) -> String {
    let bytes: Vec<u8> = raw.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program of NVRTC's, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(text: &CStr, name: &CStr) -> Result<Self, String> {
        let owned: Result<Vec<(CString, CString)>, _> = HEADERS
            .iter()
            .map(|(name, text)| {
                Ok::<_, std::ffi::NulError>((CString::new(*name)?, CString::new(*text)?))
            })
            .collect();
        let owned = owned.map_err(|e| e.to_string())?;
        let names: Vec<*const c_char> = owned.iter().map(|(name, _)| name.as_ptr()).collect();
        let texts: Vec<*const c_char> = owned.iter().map(|(_, text)| text.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings end in a null and outlive the call, which copies them.
        let status = unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        status.result().map_err(|e| e.to_string())?;
        Ok(Self(program))
    }

    fn log(&self) -> String {
        // SAFETY: the program is alive.
        unsafe { result::get_program_log(self.0) }.map(|raw| text(&raw)).unwrap_or_default()
    }

    fn ptx(&self) -> Result<String, result::NvrtcError> {
        // SAFETY: the program is alive and compiled.
        unsafe { result::get_ptx(self.0) }.map(|raw| text(&raw))
    }

    fn cubin(&self) -> Result<Vec<u8>, result::NvrtcError> {
        let mut len = 0;
        // SAFETY: the program is alive and compiled; the buffer has the size that NVRTC reports.
        unsafe {
            sys::nvrtcGetCUBINSize(self.0, &mut len).result()?;
            let mut cubin = vec![0u8; len];
            sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()).result()?;
            Ok(cubin)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once. Nothing can be done about a failure to free.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
