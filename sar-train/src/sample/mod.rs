//! Sampling and editing: codes of an image scale by scale, all of them or around given ones, and pictures of
//! them.

mod editor;
mod grid;
mod mask;
mod painter;
mod recordings;
mod sampler;

pub(crate) use editor::MASKED_SHARE;
pub use editor::{Edit, Editor, Hole};
pub(crate) use grid::{columns, grid_labels};
pub use mask::Mask;
pub use painter::{Decoder, Painted, Painter, SampleSettings};
pub use sampler::{Decoding, Given, Model, Sampler};
