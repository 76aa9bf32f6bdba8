//! A tokenizer that stands in for a trained one, where what it makes of images does not matter.

use crate::model::generator::Generator;
use crate::model::tokenizer::{Quantizer, Tokenizer, directions};
use crate::params::hosted;
use crate::sample::Decoder;
use sar_math::backend::Backend;
use sar_math::philox::{Purpose, Stream};

/// A tokenizer's weights and codes; codes of the generator's alone, where the tokenizer has others.
pub(super) struct Coder<'a, B: Backend> {
    tokenizer: &'a Tokenizer,
    params: B::Params,
    pub(super) quantizer: Quantizer<B>,
    /// Whether the tokenizer's codes are the generator's.
    pub(super) is_the_generators: bool,
}

impl<'a, B: Backend> Coder<'a, B> {
    /// With new weights and codes of a seed, or all of them zero.
    pub(super) fn new(
        backend: &B,
        tokenizer: &'a Tokenizer,
        generator: &Generator,
        seed: Option<u64>,
    ) -> Result<Self, B::Error> {
        let (t, g) = (tokenizer.config(), generator.shape());
        let is_the_generators = (t.vocab, t.latent_channels) == (g.vocab, g.channels);
        let mut params = backend.params(tokenizer.layout().len())?;
        if let Some(seed) = seed {
            backend.upload_params(&hosted::<B>(&tokenizer.initial(seed)), &mut params, 0)?;
        }
        let quantizer = if is_the_generators {
            tokenizer.quantizer(backend, &params)?
        } else {
            let mut codes = vec![0.0; g.vocab * g.channels];
            if let Some(seed) = seed {
                directions(&mut codes, g.channels, &mut Stream::new(seed, Purpose::Codebook, 0));
            }
            Quantizer::direct(backend, &hosted::<B>(&codes), g.vocab)?
        };
        Ok(Self { tokenizer, params, quantizer, is_the_generators })
    }

    pub(super) fn decoder(&self) -> Decoder<'_, B> {
        let Self { tokenizer, params, quantizer, .. } = self;
        Decoder { tokenizer, params, quantizer }
    }
}
