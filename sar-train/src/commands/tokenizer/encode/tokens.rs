//! The tokens of one schedule.

use super::{Encoder, Use, progress};
use crate::backend::Compute;
use crate::cli::TokenizerEncodeArgs;
use crate::commands::tokenizer::check_grids;
use crate::data::Dataset;
use crate::files::write_whole;
use crate::model::tokenizer::QuantizerMemory;
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use std::path::Path;

/// Writes the tokens as safetensors.
pub(super) fn write<B: Compute>(
    encoder: Encoder<'_, B>,
    args: &TokenizerEncodeArgs,
    of: &Use,
    quiet: bool,
) -> anyhow::Result<()> {
    let (data, schedule) = (&of.data, args.schedule.unwrap_or(of.config.generator.schedule));
    let side = data.train.side();
    let (last, latent) = (schedule.last(), encoder.tokenizer.tokenizer.latent_side(side));
    anyhow::ensure!(
        last.height.max(last.width) <= latent,
        "the schedule {schedule} ends in a grid of {last}, but images of {side} px have latents of \
         {latent}×{latent}; end --schedule at {latent} or less, or take larger images with \
         --image-side"
    );
    check_grids(encoder.tokenizer, &schedule, side)?;
    let mut progress = progress(data.train.len() + data.validation.len(), quiet);
    let mut coder = Coder::new(encoder, schedule)?;
    let mut coded = Coded::default();
    for (set, validation) in [(&data.train, 0), (&data.validation, 1)] {
        for first in (0..set.len()).step_by(coder.encoder.batch) {
            coder.code(set, first, validation, &mut coded)?;
            progress.update(coded.labels.len() as u64, "");
        }
    }
    coded.write(&args.out, schedule.tokens(), &schedule.to_string())?;
    progress.finish(&format!("{} images of {} tokens", coded.labels.len(), schedule.tokens()));
    Ok(())
}

/// Encodes images to codes, a batch at a time.
struct Coder<'a, B: Compute> {
    encoder: Encoder<'a, B>,
    schedule: ScaleSchedule,
    coding: QuantizerMemory<B>,
    codes: B::Ids,
}

impl<'a, B: Compute> Coder<'a, B> {
    fn new(encoder: Encoder<'a, B>, schedule: ScaleSchedule) -> Result<Self, B::Error> {
        let (quantizer, batch) = (&encoder.tokenizer.quantizer, encoder.batch);
        Ok(Self {
            coding: quantizer.memory(encoder.backend, batch, &schedule)?,
            codes: encoder.backend.ids(encoder.batch * schedule.tokens())?,
            encoder,
            schedule,
        })
    }

    /// Adds the codes of images `first..` of a set, at most a batch.
    fn code(
        &mut self,
        set: &Dataset,
        first: usize,
        validation: u32,
        coded: &mut Coded,
    ) -> anyhow::Result<()> {
        let images = set.batch(first, self.encoder.batch)?;
        let dims = self.encoder.encode(&images.values_b)?;
        let (backend, tokenizer) = (self.encoder.backend, self.encoder.tokenizer);
        let (batch, t) = (dims.batch, self.schedule.tokens());
        let (latents, coding, codes) = (&self.encoder.latents, &mut self.coding, &mut self.codes);
        tokenizer.quantizer.codes(backend, coding, dims, &self.schedule, latents, codes)?;
        let done = coded.ids.len();
        coded.ids.resize(done + batch * t, 0);
        backend.download_ids(&self.codes, 0, &mut coded.ids[done..])?;
        coded.validation.extend(std::iter::repeat_n(validation, batch));
        coded.labels.extend(images.labels_b);
        Ok(())
    }
}

/// The tokens of a data set, training images first.
#[derive(Default)]
struct Coded {
    /// `[images, T]`.
    ids: Vec<u32>,
    labels: Vec<u32>,
    /// 1 for images held out for validation.
    validation: Vec<u32>,
}

impl Coded {
    /// Writes all of it as safetensors, with the schedule in the metadata.
    fn write(&self, path: &Path, tokens: usize, schedule: &str) -> anyhow::Result<()> {
        use safetensors::tensor::{Dtype, TensorView};
        let bytes = |v: &[u32]| v.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        let images = self.labels.len();
        let (ids, labels, validation) =
            (bytes(&self.ids), bytes(&self.labels), bytes(&self.validation));
        let views = [
            ("ids", TensorView::new(Dtype::U32, vec![images, tokens], &ids)?),
            ("labels", TensorView::new(Dtype::U32, vec![images], &labels)?),
            ("validation", TensorView::new(Dtype::U32, vec![images], &validation)?),
        ];
        let metadata = [("schedule".to_owned(), schedule.to_owned())].into();
        let file = safetensors::serialize(views, Some(metadata))?;
        write_whole(path, &file).with_context(|| format!("{}", path.display()))?;
        Ok(())
    }
}
