//! What can go wrong on a device, and what to do about it.

use sar_math::backend::{BackendError, ErrorKind, ShapeError};
use std::path::PathBuf;

/// An error of the CUDA backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// An operand of the wrong size.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// There is no usable GPU.
    #[error("no GPU: {0}")]
    NoGpu(String),
    /// A library that is needed was not found or lacks a function.
    #[error(
        "{library}: {reason}; set SAR_CUDA_LIB to the folder that has it, or install it: {hint}"
    )]
    Library {
        /// Its name, as in `libnvrtc`.
        library: &'static str,
        /// What is wrong with it.
        reason: String,
        /// Where it comes from.
        hint: &'static str,
    },
    /// The device has no room for a buffer.
    #[error(
        "out of memory: the device has no room for {bytes} more bytes ({in_use} are in use by this program)"
    )]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that this program holds on the device.
        in_use: usize,
    },
    /// A driver call found no room for something other than a buffer: pinned memory, machine code, a graph.
    #[error("out of memory: {call} found no room")]
    NoRoom {
        /// The function called.
        call: String,
    },
    /// A call of the driver or of a library failed.
    #[error("{call}: {reason}")]
    Device {
        /// The function called, or the kernel launched.
        call: String,
        /// What it reported.
        reason: String,
    },
    /// A kernel could not be built.
    #[error(
        "{file}: cannot be compiled for {target}: {log}\nNVRTC of another version may, found through SAR_CUDA_LIB; or \
         point SAR_CUBIN_DIR to what `sar kernels build` made elsewhere"
    )]
    Compile {
        /// The kernel's source.
        file: &'static str,
        /// The architecture.
        target: String,
        /// What the compiler said.
        log: String,
    },
    /// Cached machine code cannot be used, and cannot be compiled anew.
    #[error(
        "{file} for {arch}: the machine code kept in {} {reason}, and cannot be made anew ({compiler}); `sar kernels \
         build` makes it on any machine with a compiler",
        folder.display()
    )]
    Kept {
        /// The kernel's source.
        file: &'static str,
        /// The architecture.
        arch: String,
        /// Where machine code is kept.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// Why it cannot be compiled.
        #[source]
        compiler: Box<CudaError>,
    },
    /// A cached kernel could not be written.
    #[error(
        "the kernel cache cannot be written ({}: {source}); set SAR_CUBIN_DIR to a folder that can",
        path.display()
    )]
    Cache {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The backend cannot do this.
    #[error("{op}: {what}")]
    Unsupported {
        /// The op.
        op: &'static str,
        /// What it cannot do, and what it can.
        what: String,
    },
}

impl CudaError {
    pub(crate) fn device(call: impl Into<String>, reason: impl ToString) -> Self {
        Self::Device { call: call.into(), reason: reason.to_string() }
    }
}

impl BackendError for CudaError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Shape(_) => ErrorKind::Shape,
            Self::OutOfMemory { .. } | Self::NoRoom { .. } => ErrorKind::OutOfMemory,
            Self::Device { .. } => ErrorKind::Device,
            Self::Compile { .. } | Self::Kept { .. } | Self::Cache { .. } => ErrorKind::Compile,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::NoGpu(_) | Self::Library { .. } => ErrorKind::Other,
        }
    }
}
