//! Sampling: codes of an image scale by scale, and pictures of them.

mod painter;
mod recordings;
mod sampler;

pub use painter::{Decoder, Painted, Painter, SampleSettings};
pub use sampler::{Decoding, Given, Sampler};
