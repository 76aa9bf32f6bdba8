//! The example backend is held against the kit, as any is.
#![cfg(feature = "conformance")]

#[path = "../examples/03_loss_on_toy_backend/toy.rs"]
mod toy;

sar_math::conformance_tests!(toy::Toy; buffers cross_entropy soft_cross_entropy scale_sums);
