//! The CPU backend with activations stored in bf16, which other backends are measured against in
//! bf16.
//!
//! Ops compute in f32 and round their activations at the end, as a kernel does when it stores them;
//! matrix products take rounded weights. Weights, statistics, losses, gradients of parameters and
//! moments stay f32. The error is therefore only that of the precision, and not that of a kernel.

mod layers;
mod steps;

use crate::{Buffer, CpuBackend, CpuError};
use half::bf16;
use sar_math::backend::{Branch, Buffers, Slot, TokenLoss};

/// Computes in f32 and rounds what it stores to bf16; every row is computed and rounded alike.
#[derive(Debug)]
pub struct NarrowCpu(CpuBackend<f32>);

type Buf = Buffer<f32>;
type Ids = Buffer<u32>;
type Done = Result<(), CpuError>;

impl Default for NarrowCpu {
    fn default() -> Self {
        Self::new()
    }
}

impl NarrowCpu {
    /// A backend on the current rayon pool.
    pub fn new() -> Self {
        Self(CpuBackend { stored: Some(rounded), ..CpuBackend::new() })
    }
}

/// Ops that run in f32 and round the activations named after the arrow.
macro_rules! rounding {
    ($($op:ident($($arg:ident: $type:ty),* $(,)?) -> [$($out:ident),*];)*) => {$(
        fn $op(&self, $($arg: $type),*) -> Done {
            self.0.$op($($arg),*)?;
            $(store($out);)*
            Ok(())
        }
    )*};
}
use rounding;

fn rounded(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

/// Rounds what an activation holds; values that are already rounded stay the same.
fn store(activation: &mut Buf) {
    activation.as_mut_slice().iter_mut().for_each(|v| *v = rounded(*v));
}

fn store_some(activation: Option<&mut Buf>) {
    activation.into_iter().for_each(store);
}

/// A copy of the parameters in which the tensors at `slots` are rounded.
fn narrowed(params: &Buf, slots: &[Slot]) -> Buf {
    let mut params = params.clone();
    for slot in slots {
        // Refusing a slot beyond the parameters is left to the op.
        let tensor = params.as_mut_slice().get_mut(slot.range());
        tensor.into_iter().flatten().for_each(|v| *v = rounded(*v));
    }
    params
}

fn branch(branch: Option<Branch<'_, NarrowCpu>>) -> Option<Branch<'_, CpuBackend<f32>>> {
    branch.map(|Branch { value_blc, gate, keep }| Branch { value_blc, gate, keep })
}

/// Runs a loss on what a [`TokenLoss`] of this backend holds.
fn with_loss(
    out: &mut TokenLoss<NarrowCpu>,
    run: impl FnOnce(&mut TokenLoss<CpuBackend<f32>>) -> Done,
) -> Done {
    use std::mem::take;
    let mut held = TokenLoss {
        loss_bl: take(&mut out.loss_bl),
        hits_bl: take(&mut out.hits_bl),
        lse_bl: take(&mut out.lse_bl),
        teacher_lse_bl: take(&mut out.teacher_lse_bl),
    };
    let done = run(&mut held);
    let TokenLoss { loss_bl, hits_bl, lse_bl, teacher_lse_bl } = held;
    *out = TokenLoss { loss_bl, hits_bl, lse_bl, teacher_lse_bl };
    done
}

fn held(loss: &TokenLoss<NarrowCpu>) -> TokenLoss<CpuBackend<f32>> {
    TokenLoss {
        loss_bl: loss.loss_bl.clone(),
        hits_bl: loss.hits_bl.clone(),
        lse_bl: loss.lse_bl.clone(),
        teacher_lse_bl: loss.teacher_lse_bl.clone(),
    }
}

impl Buffers for NarrowCpu {
    type Host = f32;
    type Activation = Buf;
    type Accum = Buf;
    type Params = Buf;
    type Ids = Ids;
    type Error = CpuError;

    fn activation(&self, len: usize) -> Result<Buf, CpuError> {
        self.0.activation(len)
    }

    fn accum(&self, len: usize) -> Result<Buf, CpuError> {
        self.0.accum(len)
    }

    fn params(&self, len: usize) -> Result<Buf, CpuError> {
        self.0.params(len)
    }

    fn ids(&self, len: usize) -> Result<Ids, CpuError> {
        self.0.ids(len)
    }

    rounding! {
        upload(host: &[f32], to: &mut Buf, offset: usize) -> [to];
        upload_accum(host: &[f32], to: &mut Buf, offset: usize) -> [];
        upload_params(host: &[f32], to: &mut Buf, offset: usize) -> [];
        upload_ids(host: &[u32], to: &mut Ids, offset: usize) -> [];
        download(from: &Buf, offset: usize, host: &mut [f32]) -> [];
        download_accum(from: &Buf, offset: usize, host: &mut [f32]) -> [];
        download_params(from: &Buf, offset: usize, host: &mut [f32]) -> [];
        download_ids(from: &Ids, offset: usize, host: &mut [u32]) -> [];
        zero_accum(accum: &mut Buf, offset: usize, len: usize) -> [];
        copy(from: &Buf, at: usize, to: &mut Buf, to_at: usize, len: usize) -> [to];
        add(from: &Buf, to: &mut Buf, len: usize) -> [to];
        synchronize() -> [];
    }

    fn replay(&self, _key: u64, work: &mut dyn FnMut() -> Done) -> Done {
        work()
    }
}
