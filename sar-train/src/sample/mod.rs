//! Sampling: codes of an image, scale by scale.

mod sampler;

pub use sampler::{Decoding, Given, Sampler};
