//! One file per op.

pub(crate) mod adamw;
pub(crate) mod cross_entropy;
pub(crate) mod ema;
pub(crate) mod grad_norm;
pub(crate) mod scale_sums;
pub(crate) mod soft_cross_entropy;
