//! Parity with the published implementation, in f64, through the public API.
//!
//! `cargo test --workspace golden` runs these and no others. Every shape and setting is read from
//! the files, so vectors of other sizes can be put in `SAR_GOLDEN`.

#![allow(clippy::unwrap_used)]

mod adamw;
mod anneal;
mod filter;
mod generator;
mod metrics;
mod quantizer;
mod resample;
mod support;
mod tokenizer;
