//! The choice of the backend that the program runs on: made here, once, from the flags of every
//! command.
//!
//! Commands are generic over [`Compute`]. The macro in this file turns a name into a backend; another backend is another
//! arm there, and in the few other matches on the name that the compiler tells of.

use crate::cli::{BackendName, Dtype, GlobalArgs};
use crate::run::memory;
use sar_backend_cpu::CpuBackend;
use sar_backend_cuda::{CudaBackend, CudaError, Device, Driver, Storage, Tally};
use sar_math::backend::{Backend, BackendError as _, Buffers, ErrorKind};

/// What a command needs of a backend: all ops, f32 on the host, and figures on memory and kernel
/// time.
pub trait Compute: Backend<Host = f32> {
    /// Peak number of bytes in use so far: of the device, or of the process where the CPU is the
    /// device.
    fn peak_bytes(&self) -> Option<u64>;
    /// Starts timing every kernel.
    ///
    /// # Errors
    /// The backend has no kernel profile, as in this default implementation.
    fn begin_profile(&self) -> anyhow::Result<()> {
        anyhow::bail!("--profile needs --backend cuda: this backend has no kernels to tell apart")
    }
    /// Returns the kernel profile so far, longest time first.
    ///
    /// # Errors
    /// A device fault.
    fn end_profile(&self) -> anyhow::Result<Vec<Tally>> {
        Ok(Vec::new())
    }
    /// Returns notes for the reader of a profile on how the matrix products were chosen.
    fn product_notes(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Compute for CpuBackend<f32> {
    fn peak_bytes(&self) -> Option<u64> {
        memory::peak()
    }
}

impl<S: Storage, D: Device> Compute for CudaBackend<S, D> {
    fn peak_bytes(&self) -> Option<u64> {
        Some(self.device().peak_bytes() as u64)
    }

    fn begin_profile(&self) -> anyhow::Result<()> {
        Ok(self.device().begin_profile()?)
    }

    fn end_profile(&self) -> anyhow::Result<Vec<Tally>> {
        Ok(self.device().end_profile()?)
    }

    fn product_notes(&self) -> Vec<String> {
        self.device().product_notes()
    }
}

/// A backend choice that cannot be satisfied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChoiceError {
    /// An activation type that the backend does not store.
    #[error("--dtype {dtype} needs --backend cuda: the {backend} backend computes in f32")]
    Dtype {
        /// The requested type.
        dtype: Dtype,
        /// The requested backend.
        backend: BackendName,
    },
    /// A device that the backend does not have.
    #[error("--device {device} needs --backend cuda: the {backend} backend has device 0 alone")]
    Device {
        /// The requested device.
        device: usize,
        /// The requested backend.
        backend: BackendName,
    },
}

impl ChoiceError {
    /// Returns the kind of failure, which is always that something is not supported.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unsupported
    }
}

/// Advice for a backend that has run out of memory; shown above the backend's own message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room left on the backend; lower the images at a time: train.batch or tokenizer_train.batch (a \
     larger train.accumulate or tokenizer_train.accumulate makes up for it) or sample.batch; or keep less of each \
     block with train.recompute = \"blocks\" and fewer logits with train.head_tokens; `sar plan` says what a configuration needs"
)]
pub struct NoRoom;

/// Returns the CPU backend that the flags ask for.
///
/// # Errors
/// The flags ask for a number type or device that the CPU backend does not have.
pub fn cpu(global: &GlobalArgs) -> Result<CpuBackend<f32>, ChoiceError> {
    let backend = BackendName::Cpu;
    match (global.dtype(), global.device) {
        (Dtype::F32, 0) => Ok(CpuBackend::new()),
        (Dtype::F32, device) => Err(ChoiceError::Device { device, backend }),
        (dtype, _) => Err(ChoiceError::Dtype { dtype, backend }),
    }
}

/// Returns the GPU backend that the flags ask for, with activations stored as `S`.
///
/// # Errors
/// There is no usable GPU, driver or library, or the kernels cannot be compiled.
pub fn cuda<S: Storage>(global: &GlobalArgs) -> Result<CudaBackend<S, Driver>, CudaError> {
    CudaBackend::new(Driver::new(global.device)?)
}

/// Like [`cuda`], with advice added to the error: a GPU may be missing, or full before anything has
/// started.
///
/// # Errors
/// As for [`cuda`].
pub fn opened<S: Storage>(global: &GlobalArgs) -> anyhow::Result<CudaBackend<S, Driver>> {
    cuda::<S>(global).map_err(with_advice)
}

fn with_advice(error: CudaError) -> anyhow::Error {
    const NONE: &str = "--backend cuda needs a GPU; `sar doctor` says what was found, and `--backend cpu` needs none";
    match error {
        CudaError::NoGpu(_) => anyhow::Error::from(error).context(NONE),
        full if full.kind() == ErrorKind::OutOfMemory => anyhow::Error::from(full).context(NoRoom),
        other => other.into(),
    }
}

/// Adds [`NoRoom`] to the error of a command that failed because the backend ran out of memory.
///
/// # Errors
/// The error of `result`.
pub fn advised<B: Buffers, T>(_backend: &B, result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| match kind::<B>(&error) {
        Some(ErrorKind::OutOfMemory) => error.context(NoRoom),
        _ => error,
    })
}

/// Returns the kind of backend failure that an error comes from, if it comes from one.
fn kind<B: Buffers>(error: &anyhow::Error) -> Option<ErrorKind> {
    error.chain().find_map(|cause| Some(cause.downcast_ref::<B::Error>()?.kind()))
}

/// Runs `$body`, which gives an `anyhow::Result`, with `$backend` a reference to the backend that
/// `$global` names.
macro_rules! with_backend {
    ($global:expr, |$backend:ident| $body:expr) => {
        match $global.backend {
            $crate::cli::BackendName::Cpu => {
                let $backend = &$crate::backend::cpu($global)?;
                $crate::backend::advised($backend, $body)
            }
            $crate::cli::BackendName::Cuda => match $global.dtype() {
                $crate::cli::Dtype::F32 => {
                    let $backend = &$crate::backend::opened::<f32>($global)?;
                    $crate::backend::advised($backend, $body)
                }
                $crate::cli::Dtype::Bf16 => {
                    let $backend = &$crate::backend::opened::<sar_backend_cuda::bf16>($global)?;
                    $crate::backend::advised($backend, $body)
                }
            },
        }
    };
}
pub(crate) use with_backend;

/// Evaluates an expression in which `$storage` names the type that activations are stored as.
macro_rules! with_storage {
    ($global:expr, |$storage:ident| $body:expr) => {
        match $global.dtype() {
            $crate::cli::Dtype::F32 => {
                type $storage = f32;
                $body
            }
            $crate::cli::Dtype::Bf16 => {
                type $storage = sar_backend_cuda::bf16;
                $body
            }
        }
    };
}
pub(crate) use with_storage;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::TrainError;
    use sar_backend_cpu::CpuError;

    #[test]
    fn a_backend_is_what_the_flags_say_or_an_error() {
        let global = GlobalArgs::default();
        assert!(cpu(&global).is_ok());
        let narrow = GlobalArgs { dtype: Some(Dtype::Bf16), ..global.clone() };
        let backend = BackendName::Cpu;
        assert_eq!(cpu(&narrow).unwrap_err(), ChoiceError::Dtype { dtype: Dtype::Bf16, backend });
        let other = GlobalArgs { device: 1, ..global.clone() };
        assert_eq!(cpu(&other).unwrap_err(), ChoiceError::Device { device: 1, backend });
        let cuda = GlobalArgs { backend: BackendName::Cuda, ..global };
        assert_eq!(cuda.dtype(), Dtype::Bf16);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_says_what_is_missing() {
        let cuda = GlobalArgs { backend: BackendName::Cuda, device: 99, ..GlobalArgs::default() };
        let run = || -> anyhow::Result<()> { with_backend!(&cuda, |_backend| Ok(())) };
        let error = run().unwrap_err();
        let found = error.downcast_ref::<CudaError>().unwrap().to_string();
        assert!(found.contains("driver") || found.contains("number 99"), "{found}");
    }

    #[test]
    fn a_gpu_without_room_is_a_want_of_memory() {
        type Gpu = sar_backend_cuda::CudaBackend<f32, sar_backend_cuda::Driver>;
        let of = |error: CudaError| kind::<Gpu>(&TrainError::from(error).into());
        let full = CudaError::OutOfMemory { bytes: 1, in_use: 2 };
        assert_eq!(of(full), Some(ErrorKind::OutOfMemory));
        let pinned = CudaError::NoRoom { call: "cuMemAllocHost".to_owned() };
        assert_eq!(of(pinned), Some(ErrorKind::OutOfMemory));
        let fault = CudaError::Device { call: "a".to_owned(), reason: "b".to_owned() };
        assert_eq!(of(fault), Some(ErrorKind::Device));
    }

    #[test]
    fn a_gpu_that_cannot_be_begun_with_says_what_to_do() {
        let said = |error| format!("{:#}", with_advice(error));
        assert!(said(CudaError::NoGpu("none".to_owned())).contains("`sar doctor`"));
        let full = said(CudaError::OutOfMemory { bytes: 1, in_use: 0 });
        assert!(full.contains("train.batch") && full.contains("out of memory"), "{full}");
    }

    #[test]
    fn advice_stands_above_a_want_of_memory_alone() {
        let backend = CpuBackend::<f32>::new();
        let advice = |error: anyhow::Error| {
            let error = advised::<_, ()>(&backend, Err(error)).unwrap_err();
            error.downcast_ref::<NoRoom>().is_some()
        };
        let full = || CpuError::OutOfMemory { bytes: 1 };
        assert!(advice(full().into()));
        assert!(advice(TrainError::from(full()).into()));
        assert!(advice(anyhow::Error::from(TrainError::from(full())).context("above")));
        let shape = sar_math::backend::ShapeError { op: "a", operand: "b", expected: 1, found: 2 };
        assert!(!advice(TrainError::from(CpuError::from(shape)).into()));
        assert!(!advice(anyhow::anyhow!("something else")));
    }
}
