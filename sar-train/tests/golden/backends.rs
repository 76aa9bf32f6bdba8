//! The backends that vectors run on, and transfers in f64 whatever they compute in.

use sar_backend_cuda::{CudaBackend, Storage, TestDevice};
use sar_math::Real;
use sar_math::backend::Buffers;

/// The CUDA backend with its kernels executed on the CPU, or what `SAR_PTX` or `SAR_REQUIRE_GPU` asks for.
pub fn emulated<S: Storage>() -> CudaBackend<S, TestDevice> {
    CudaBackend::new(TestDevice::new().unwrap()).unwrap()
}

/// Tests of one group of vectors: `$run` takes a backend and gives [`crate::compare::Findings`].
///
/// In f64 they are held to the group's tolerances; the CUDA backend's are compared with those of the
/// CPU backend at the same precision. `$narrow` is what it stores in at bf16, where that is not bf16.
macro_rules! on_backends {
    ($group:ident, $run:ident) => {
        on_backends!($group, $run, sar_backend_cuda::bf16);
    };
    ($group:ident, $run:ident, $narrow:ty) => {
        mod $group {
            use crate::{backends::emulated, compare};
            use sar_backend_cpu::{CpuBackend, NarrowCpu};

            #[test]
            fn cpu_f64() {
                super::$run(&CpuBackend::<f64>::new()).assert_recorded();
            }

            #[test]
            fn cuda_f32() {
                let reference = super::$run(&CpuBackend::<f32>::new());
                let found = super::$run(&emulated::<f32>());
                compare::assert_no_worse::<f32>(module_path!(), &found, &reference);
            }

            #[test]
            fn cuda_bf16() {
                let reference = super::$run(&NarrowCpu::new());
                let found = super::$run(&emulated::<sar_backend_cuda::bf16>());
                compare::assert_no_worse::<$narrow>(module_path!(), &found, &reference);
            }
        }
    };
}
pub(crate) use on_backends;

fn host<B: Buffers>(values: &[f64]) -> Vec<B::Host> {
    values.iter().map(|&v| B::Host::of(v)).collect()
}

fn wide<B: Buffers>(values: Vec<B::Host>) -> Vec<f64> {
    values.into_iter().map(Real::wide).collect()
}

/// Buffers made from f64, and read back as f64.
pub trait Transfers: Buffers + Sized {
    fn put(&self, values: &[f64]) -> Self::Activation {
        let mut to = self.activation(values.len()).unwrap();
        self.upload(&host::<Self>(values), &mut to, 0).unwrap();
        to
    }

    fn put_accum(&self, values: &[f64]) -> Self::Accum {
        let mut to = self.accum(values.len()).unwrap();
        self.upload_accum(&host::<Self>(values), &mut to, 0).unwrap();
        to
    }

    fn put_params(&self, values: &[f64]) -> Self::Params {
        let mut to = self.params(values.len()).unwrap();
        self.upload_params(&host::<Self>(values), &mut to, 0).unwrap();
        to
    }

    fn put_ids(&self, ids: &[u32]) -> Self::Ids {
        let mut to = self.ids(ids.len()).unwrap();
        self.upload_ids(ids, &mut to, 0).unwrap();
        to
    }

    fn get(&self, from: &Self::Activation, len: usize) -> Vec<f64> {
        let mut values = vec![Self::Host::default(); len];
        self.download(from, 0, &mut values).unwrap();
        wide::<Self>(values)
    }

    fn get_accum(&self, from: &Self::Accum, len: usize) -> Vec<f64> {
        let mut values = vec![Self::Host::default(); len];
        self.download_accum(from, 0, &mut values).unwrap();
        wide::<Self>(values)
    }

    fn get_params(&self, from: &Self::Params, len: usize) -> Vec<f64> {
        let mut values = vec![Self::Host::default(); len];
        self.download_params(from, 0, &mut values).unwrap();
        wide::<Self>(values)
    }

    fn get_ids(&self, from: &Self::Ids, len: usize) -> Vec<u32> {
        let mut ids = vec![0; len];
        self.download_ids(from, 0, &mut ids).unwrap();
        ids
    }
}

impl<B: Buffers> Transfers for B {}
