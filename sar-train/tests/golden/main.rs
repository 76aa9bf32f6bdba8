//! Parity with the published implementation, through the public API.
//!
//! What goes through a backend runs on the CPU in f64, and on the CUDA backend, its kernels executed
//! on the CPU, in f32 and bf16; errors of the latter are compared with those of the CPU backend at
//! the same precision. `-- --nocapture` prints them.
//!
//! `cargo test --workspace golden` runs these and no others. Every shape and setting is read from
//! the files, so vectors of other sizes can be put in `SAR_GOLDEN`.

#![allow(clippy::unwrap_used)]

mod adamw;
mod anneal;
mod backends;
mod compare;
mod filter;
mod generator;
mod greedy;
mod metrics;
mod quantizer;
mod resample;
mod rollout;
mod support;
mod tokenizer;
