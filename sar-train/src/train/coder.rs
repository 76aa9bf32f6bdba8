//! A stand-in for a trained tokenizer, for runs whose results do not matter.

use crate::config::Config;
use crate::model::generator::Generator;
use crate::model::tokenizer::{Quantizer, Tokenizer, directions};
use crate::params::hosted;
use crate::sample::Decoder;
use sar_math::backend::Backend;
use sar_math::philox::{Purpose, Stream};

/// An untrained tokenizer on a backend. If its codes are not the generator's, the quantizer has codes of the generator's
/// shape instead.
pub(super) struct Coder<'a, B: Backend> {
    tokenizer: &'a Tokenizer,
    params: B::Params,
    pub(super) quantizer: Quantizer<B>,
    /// Whether the tokenizer's codes have the generator's shape, so that it can encode and decode for it.
    pub(super) is_the_generators: bool,
}

impl<'a, B: Backend> Coder<'a, B> {
    /// Takes initial weights and codes of a seed, or zeros without one.
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

    /// Whether a run of `config` encodes its images with it.
    pub(super) fn encodes_for(&self, config: &Config) -> bool {
        self.is_the_generators && config.train.latents.is_none()
    }

    pub(super) fn decoder(&self) -> Decoder<'_, B> {
        let Self { tokenizer, params, quantizer, .. } = self;
        Decoder { tokenizer, params, quantizer }
    }
}
