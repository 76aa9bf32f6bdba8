//! The tokens of one schedule.

use super::{Cut, Encoder, Use, Work, earlier, kept};
use crate::backend::Compute;
use crate::cli::{GlobalArgs, TokenizerEncodeArgs};
use crate::commands::tokenizer::check_grids;
use crate::data::{Augment, Batch, Origin, TokensWriter};
use crate::hash::sha256_of;
use crate::model::tokenizer::QuantizerMemory;
use sar_math::ScaleSchedule;

/// Writes the tokens of all images, cut in the middle; training images first.
pub(super) fn write<B: Compute>(
    encoder: Encoder<'_, B>,
    args: &TokenizerEncodeArgs,
    of: &Use,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    let quiet = global.quiet;
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
    let origin = Origin {
        tokenizer: sha256_of(&encoder.tokenizer.weights),
        images: data.fingerprint(),
        augment: Augment::evaluation(side),
        seed: 0,
        computed: global.computed(),
    };
    let labels = [data.train.labels(), data.validation.labels()];
    let writer = TokensWriter::open(&args.out, &origin, &schedule, labels, earlier(args))?;
    let Some(mut writer) = writer else { return Ok(()) };
    let mut coder = Coder::new(encoder, schedule)?;
    let work = Work::new(data, [Cut::Training].into_iter(), origin.seed);
    match coder.encode(work, &mut writer, quiet) {
        Ok(()) => Ok(writer.rows.finish()?),
        Err(error) => {
            Err(kept(error, writer.rows.kept(), "images' tokens", writer.rows.partial(), args))
        }
    }
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

    /// Encodes the images whose tokens are missing.
    fn encode(
        &mut self,
        mut work: Work<'_>,
        writer: &mut TokensWriter,
        quiet: bool,
    ) -> anyhow::Result<()> {
        let missing = work.missing(self.encoder.batch, writer.rows.done());
        writer.rows.cut(missing.0)?;
        let what = format!("images of {} tokens", self.schedule.tokens());
        work.carry_out(missing, (&what, quiet), |images| {
            writer.push(&self.code(images)?, &images.labels_b)?;
            Ok(writer.rows.done())
        })
    }

    /// Returns the codes of at most a batch of images, `[b, T]`.
    fn code(&mut self, images: &Batch) -> anyhow::Result<Vec<u32>> {
        let dims = self.encoder.encode(&images.values_b)?;
        let (backend, tokenizer) = (self.encoder.backend, self.encoder.tokenizer);
        let (latents, coding, codes) = (&self.encoder.latents, &mut self.coding, &mut self.codes);
        tokenizer.quantizer.codes(backend, coding, dims, &self.schedule, latents, codes)?;
        let mut ids = vec![0; dims.batch * self.schedule.tokens()];
        backend.download_ids(&self.codes, 0, &mut ids)?;
        Ok(ids)
    }
}
