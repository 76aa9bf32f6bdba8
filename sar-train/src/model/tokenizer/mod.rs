//! The convolutional VQ tokenizer (VQ-16 of FlexVAE, and VAR's): configuration, layout, forward, backward.
//!
//! An encoder and a decoder are each a chain of layers; between them the latent's positions are
//! L2-normalised and replaced by the nearest row of the L2-normalised codebook, or, as in VAR's, by
//! codes of all scales that add up ([`Quantizer`]). Both chains are fully convolutional: any size
//! that the downsampling divides can be encoded, and any grid of codes, including a coarse one,
//! decodes to an image of its own size.

mod builder;
mod codec;
mod codes;
mod config;
mod layer;
mod layout;
mod network;
mod phi;
mod quantizer;

pub use codec::{DecoderMemory, EncoderMemory};
pub use config::{TokenizerConfig, TokenizerConfigError};
pub use layout::{IMAGE_CHANNELS, Tokenizer};
pub(crate) use layout::{directions, normalise};
pub use network::{Gradients, Network, Trace};
pub use quantizer::{Quantizer, QuantizerMemory};
