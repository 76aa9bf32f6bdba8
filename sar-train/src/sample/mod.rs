//! Sampling: codes of an image scale by scale, and pictures of them.

mod grid;
mod painter;
mod recordings;
mod sampler;

pub(crate) use grid::{columns, grid_labels};
pub use painter::{Decoder, Painted, Painter, SampleSettings};
pub use sampler::{Decoding, Given, Sampler};
