//! `sar tokenizer encode`: the tokens of a data set.

use super::Use;
use crate::backend::Compute;
use crate::cli::{GlobalArgs, TokenizerEncodeArgs};
use crate::commands::models::LoadedTokenizer;
use crate::commands::output;
use crate::data::Dataset;
use crate::files::write_whole;
use crate::model::tokenizer::EncoderMemory;
use crate::run::Progress;
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use sar_math::backend::LatentDims;
use std::path::Path;

/// Images encoded at a time.
const BATCH: usize = 64;

pub(super) fn run<B: Compute>(
    backend: &B,
    args: &TokenizerEncodeArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    let _place = output::ready_as(&args.out, &["safetensors"])?;
    let loaded = LoadedTokenizer::open(backend, &args.tokenizer)?;
    anyhow::ensure!(
        args.force || !args.out.is_file(),
        "{} exists; choose another name, or replace it with --force",
        args.out.display()
    );
    let (tokenizer, source) = (&loaded.tokenizer, args.data.as_deref());
    let skip = args.skip_bad_images;
    let Use { config, data } =
        Use::open(&args.tokenizer, tokenizer, source, args.image_side, skip)?;
    let schedule = args.schedule.unwrap_or(config.generator.schedule);
    let (last, latent) = (schedule.last(), tokenizer.latent_side(data.train.side()));
    anyhow::ensure!(
        last.height.max(last.width) <= latent,
        "the schedule {schedule} ends in a grid of {last}, but images of {} px have latents of \
         {latent}×{latent}; end --schedule at {latent} or less, or take larger images with \
         --image-side",
        data.train.side()
    );
    let sets = [&data.train, &data.validation];
    let total: usize = sets.iter().map(|set| set.len()).sum();
    let mut progress = Progress::new("encoding", total as u64, 0, global.quiet);
    let mut coder = Coder::new(backend, &loaded, schedule, data.train.side())?;
    let mut coded = Coded::default();
    for (set, validation) in sets.into_iter().zip([0, 1]) {
        for first in (0..set.len()).step_by(BATCH) {
            coder.code(set, first, validation, &mut coded)?;
            progress.update(coded.labels.len() as u64, "");
        }
    }
    let replaced = data.train.skipped().len() + data.validation.skipped().len();
    if replaced > 0 {
        output::note(format_args!(
            "warning: {replaced} images could not be read once they were needed; the tokens of the next \
             stand in their place"
        ));
    }
    coded.write(&args.out, schedule.tokens(), &schedule.to_string())?;
    progress.finish(&format!("{} images of {} tokens", coded.labels.len(), schedule.tokens()));
    println!("{}", args.out.display());
    Ok(())
}

/// Takes images to their codes, some at a time.
struct Coder<'a, B: Compute> {
    backend: &'a B,
    tokenizer: &'a LoadedTokenizer<B>,
    schedule: ScaleSchedule,
    side: usize,
    memory: EncoderMemory<B>,
    latents: B::Activation,
    tokens: B::Activation,
    codes: B::Ids,
}

impl<'a, B: Compute> Coder<'a, B> {
    fn new(
        backend: &'a B,
        tokenizer: &'a LoadedTokenizer<B>,
        schedule: ScaleSchedule,
        side: usize,
    ) -> Result<Self, B::Error> {
        let channels = tokenizer.tokenizer.config().latent_channels;
        let latent = tokenizer.tokenizer.latent_side(side);
        Ok(Self {
            backend,
            tokenizer,
            schedule,
            side,
            memory: tokenizer.tokenizer.encoder_memory(backend, BATCH, (side, side))?,
            latents: backend.activation(BATCH * channels * latent * latent)?,
            tokens: backend.activation(BATCH * schedule.tokens() * channels)?,
            codes: backend.ids(BATCH * schedule.tokens())?,
        })
    }

    /// Adds the codes of images `first..` of a set, a batch of them at most.
    fn code(
        &mut self,
        set: &Dataset,
        first: usize,
        validation: u32,
        coded: &mut Coded,
    ) -> anyhow::Result<()> {
        let images = set.batch(first, BATCH)?;
        let (backend, model) = (self.backend, &self.tokenizer.tokenizer);
        let (batch, size) = (images.labels_b.len(), (self.side, self.side));
        let (params, latents) = (&self.tokenizer.params, &mut self.latents);
        model.encode(backend, params, &mut self.memory, &images.images_b3hw, size, latents)?;
        let (side, t) = (model.latent_side(self.side), self.schedule.tokens());
        let (k, v) = (model.config().latent_channels, model.config().vocab);
        let dims = LatentDims { batch, channels: k, height: side, width: side };
        backend.area_tokens(dims, &self.schedule, &self.latents, &mut self.tokens)?;
        let codebook = &self.tokenizer.codebook;
        backend.nearest_code(batch * t, v, k, &self.tokens, codebook, &mut self.codes)?;
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
    /// Writes all of it as safetensors, the schedule in the metadata.
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
