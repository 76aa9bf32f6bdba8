//! What this machine has: driver, GPUs, libraries. Never panics, whatever is missing.

use crate::error::CudaError;
use crate::libraries::Library;
use crate::nvrtc::Nvrtc;
use cudarc::driver::{DriverError, result, sys};
use std::fmt;
use std::path::PathBuf;

/// The oldest driver interface that works: CUDA 12.0, which came with driver 525.
pub const LEAST_DRIVER: (i32, i32) = (12, 0);
/// The oldest architecture that works: bf16 tensor cores and asynchronous copies, A100 and newer.
pub const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// A GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, counted from 0.
    pub ordinal: usize,
    /// Its name, as in `NVIDIA A100-SXM4-80GB`.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
    /// Multiprocessors.
    pub multiprocessors: i32,
}

impl Gpu {
    /// The architecture that kernels are compiled for, as in `sm_90`.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.memory as f64 / f64::from(1 << 30);
        let arch = self.arch();
        write!(f, "{}, {arch}, {gib:.0} GiB, {} multiprocessors", self.name, self.multiprocessors)
    }
}

/// The driver's interface: version and GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverInfo {
    /// The newest CUDA version that it supports.
    pub version: (i32, i32),
    /// All GPUs, usable or not.
    pub gpus: Vec<Gpu>,
}

/// Looks for the driver and asks it for its GPUs.
///
/// # Errors
/// [`CudaError::Library`] if there is no driver; [`CudaError::NoGpu`] if it cannot start.
pub fn driver() -> Result<DriverInfo, CudaError> {
    Library::Driver.open()?;
    // The text of a driver's error comes from the driver itself, which is open.
    result::init().map_err(|e| CudaError::NoGpu(format!("the driver does not start ({e})")))?;
    let asked = |call: &'static str| move |e: DriverError| CudaError::device(call, e);
    let mut version = 0;
    // SAFETY: the library is open, and every version of it has this function.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    status.result().map_err(asked("cuDriverGetVersion"))?;
    let count = result::device::get_count().map_err(asked("cuDeviceGetCount"))?;
    let gpus: Result<Vec<Gpu>, CudaError> =
        (0..count).map(|ordinal| gpu(ordinal).map_err(asked("cuDeviceGetAttribute"))).collect();
    Ok(DriverInfo { version: (version / 1000, version % 1000 / 10), gpus: gpus? })
}

fn gpu(ordinal: i32) -> Result<Gpu, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal)?;
    // SAFETY: the device is one that the driver counted.
    let attribute = |a| unsafe { result::device::get_attribute(device, a) };
    Ok(Gpu {
        ordinal: ordinal as usize,
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device)? },
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

/// Returns GPU `ordinal` after checking that driver, architecture and libraries support it.
///
/// # Errors
/// The error names what is missing or too old, and what to do about it.
pub fn usable(ordinal: usize) -> Result<Gpu, CudaError> {
    let info = driver()?;
    if info.version < LEAST_DRIVER {
        return Err(CudaError::NoGpu(format!(
            "the driver speaks CUDA {}.{}, and 12.0 is the least; install driver 525 or newer",
            info.version.0, info.version.1
        )));
    }
    let count = info.gpus.len();
    let gpu = info.gpus.into_iter().nth(ordinal).ok_or_else(|| match count {
        0 => CudaError::NoGpu("the driver sees none (is CUDA_VISIBLE_DEVICES empty?)".to_owned()),
        _ => CudaError::NoGpu(format!("number {ordinal} of {count}; they count from 0")),
    })?;
    if gpu.capability < LEAST_CAPABILITY {
        return Err(CudaError::NoGpu(format!(
            "{} is of architecture {}, and sm_80 (A100) is the least; --backend cpu runs everywhere",
            gpu.name,
            gpu.arch()
        )));
    }
    if let Ok(nvrtc) = Nvrtc::load() {
        serves(Library::Nvrtc, nvrtc.version, info.version)?;
    }
    if let Some(version) = cublaslt()?.version {
        serves(Library::CublasLt, version, info.version)?;
    }
    Ok(gpu)
}

/// A library of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it came from: a file, or a name on the loader's path.
    pub path: PathBuf,
    /// Its version; `None` if the library does not report it.
    pub version: Option<(i32, i32)>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some((major, minor)) => write!(f, "{major}.{minor}, {}", self.path.display()),
            None => write!(f, "of no known version, {}", self.path.display()),
        }
    }
}

/// The library of matrix products.
fn cublaslt() -> Result<Found, CudaError> {
    let path = Library::CublasLt.open()?;
    // SAFETY: the library is open, and every version of it has this function.
    let number = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() } as i32;
    // Encoded as in the library's header, from version 12 on: 12.9.1 is 120901.
    Ok(Found { path, version: Some((number / 10_000, number / 100 % 100)) })
}

/// The library of communication.
fn nccl() -> Result<Found, CudaError> {
    let path = Library::Nccl.open()?;
    // SAFETY: NCCL declares it as `ncclResult_t ncclGetVersion(int *)`.
    let number = unsafe { Library::ask(&path, "ncclGetVersion") };
    // Encoded as in the library's header, from version 2.9 on: 2.27.3 is 22703.
    Ok(Found { path, version: number.map(|n| (n / 10_000, n / 100 % 100)) })
}

/// Checks that a library is not of a newer major CUDA version than the driver, which would refuse its
/// machine code.
fn serves(library: Library, version: (i32, i32), driver: (i32, i32)) -> Result<(), CudaError> {
    if version.0 <= driver.0 {
        return Ok(());
    }
    Err(CudaError::Library {
        library: library.name(),
        reason: format!(
            "version {}.{} is too new for a driver of CUDA {}.{}",
            version.0, version.1, driver.0, driver.1
        ),
        hint: match library {
            Library::CublasLt => "pip install nvidia-cublas-cu12, or a newer driver",
            _ => "pip install nvidia-cuda-nvrtc-cu12, or a newer driver",
        },
    })
}

/// All that `sar doctor` prints about the machine.
#[derive(Debug)]
pub struct Probe {
    /// Driver and GPUs.
    pub driver: Result<DriverInfo, CudaError>,
    /// The compiler's version; the compiler is needed if kernels are not yet in the cache.
    pub nvrtc: Result<(i32, i32), CudaError>,
    /// The library of matrix products.
    pub cublaslt: Result<Found, CudaError>,
    /// The library of communication; not needed on one GPU.
    pub nccl: Result<Found, CudaError>,
}

/// Looks at everything, and goes on if something is missing.
pub fn probe() -> Probe {
    Probe {
        driver: driver(),
        nvrtc: Nvrtc::load().map(|nvrtc| nvrtc.version),
        cublaslt: cublaslt(),
        nccl: nccl(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_a_newer_major_version_than_the_driver_is_refused() {
        for library in [Library::Nvrtc, Library::CublasLt] {
            assert!(serves(library, (12, 9), (12, 2)).is_ok());
            assert!(serves(library, (12, 9), (13, 0)).is_ok());
            let error = serves(library, (13, 0), (12, 8)).map_err(|e| e.to_string());
            let names = |text: &str| [library.name(), "13.0", "12.8"].map(|s| text.contains(s));
            assert!(error.is_err_and(|text| names(&text) == [true; 3]));
        }
    }

    #[test]
    fn a_gpu_says_what_it_is() {
        let gpu = Gpu {
            ordinal: 0,
            name: "NVIDIA A100-SXM4-80GB".to_owned(),
            capability: (8, 0),
            memory: 80 << 30,
            multiprocessors: 108,
        };
        assert_eq!(gpu.to_string(), "NVIDIA A100-SXM4-80GB, sm_80, 80 GiB, 108 multiprocessors");
    }
}
