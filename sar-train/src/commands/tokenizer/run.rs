//! The run of a tokenizer in its folder: everything that `sar tokenizer train` and `sar demo` share once it is settled
//! what is trained on what.

use super::held_out;
use crate::backend::Compute;
use crate::checkpoint::Kind;
use crate::commands::inputs::tokenizer_loader;
use crate::commands::ranks::gather;
use crate::commands::resuming::{compare_images, from_step, resumed, tell_empty, tell_replaced};
use crate::config::Config;
use crate::data::{Data, Dataset};
use crate::model::tokenizer::Tokenizer;
use crate::ranks::{Job, Meeting};
use crate::run::{Interrupt, Interrupted, RunFolder};
use crate::train::share;
use crate::train::tokenizer::{
    Reconstructor, TokenizerHeldOut, TokenizerProgress, TokenizerQuality, TokenizerSession,
    TokenizerTrainer, keep_quality,
};
use crate::trained::TrainedTokenizer;
use sar_math::ScaleSchedule;

/// Images that a tokenizer is measured on at a time while it trains: their memory comes on top of a step's.
const BATCH_BESIDE: usize = 8;

/// A tokenizer that has been trained in a run folder.
pub(crate) struct Trained<B: Compute> {
    pub loaded: TrainedTokenizer<B>,
    pub quality: TokenizerQuality,
}

/// A tokenizer's run with all that it needs.
pub(crate) struct TokenizerWork<'w, B: Compute> {
    pub backend: &'w B,
    pub folder: &'w RunFolder,
    pub config: &'w Config,
    pub data: &'w Data,
    /// Where other ranks come to share its steps, if there are any.
    pub meeting: Option<Meeting>,
}

impl<B: Compute> TokenizerWork<'_, B> {
    /// Trains (or goes on training) to the last step, from the weights `start` if there are any, and measures the tokenizer.
    pub(crate) fn train(
        self,
        start: Option<&[f32]>,
        interrupt: &Interrupt,
        quiet: bool,
    ) -> anyhow::Result<Trained<B>> {
        let Self { backend, folder, config, data, meeting } = self;
        compare_images(folder, data)?;
        tell_empty(data);
        let settings = &config.tokenizer_train;
        let tokenizer = Tokenizer::new(&config.tokenizer)?;
        let side = data.train.side();
        let mut trainer = TokenizerTrainer::new(backend, &tokenizer, settings, (side, side))?;
        let (kind, layout) = (Kind::Tokenizer, tokenizer.layout());
        match resumed::<TokenizerProgress>(folder, config.train.keep, kind, layout)? {
            Some(saved) => {
                let moments = [&saved.first_moment[..], &saved.second_moment[..]];
                trainer.restore(&saved.weights, moments, &saved.state)?;
                if !quiet {
                    eprintln!("{}", from_step(trainer.steps()));
                }
            }
            None => start.map_or(Ok(()), |weights| trainer.start_from(weights))?,
        }
        let mut ranks = 1;
        if let Some(meeting) = meeting {
            let (all, parameters) = (meeting.ranks(), tokenizer.layout().len());
            let (config, images) = (config.to_toml()?, data.fingerprint());
            let step = trainer.steps();
            let job = Job { model: Kind::Tokenizer, ranks: all, step, config, images };
            let steps = settings.steps;
            if let Some(others) = gather(meeting, &job, steps, &[], parameters, interrupt, quiet)? {
                trainer.share_with(Box::new(others))?;
                ranks = all;
            }
        }
        let share = share(settings.accumulate, 0, ranks);
        let mut loader = tokenizer_loader(data, settings, trainer.steps(), share)?;
        let held = if data.validation.is_empty() { &data.train } else { &data.validation };
        let schedule = &config.generator.schedule;
        let measured = settings.eval_every > 0 && trainer.steps() < settings.steps;
        let while_it_trains = || -> anyhow::Result<_> {
            let batch = BATCH_BESIDE.min(settings.batch);
            let through = Reconstructor::new(backend, &tokenizer, batch, (side, side))?;
            Ok(TokenizerHeldOut::new(through, held, schedule))
        };
        let mut beside = measured.then(while_it_trains).transpose()?;
        let session = TokenizerSession { run: folder, config, interrupt, quiet };
        let trained = session.train(&mut trainer, &mut loader, beside.as_mut());
        drop(beside);
        tell_replaced(data);
        let progress = trained?;
        let (weights, steps) = (trainer.weights()?, trainer.steps());
        // The trainer's memory is freed before that for measuring is allocated.
        drop(trainer);
        let loaded = TrainedTokenizer::new(backend, tokenizer, weights, steps)?;
        let quality = measure(backend, folder, &loaded, held, schedule, interrupt)?;
        let full = quality.scales.last().map_or(f64::NAN, |s| s.psnr);
        progress.finish(&format!(
            "PSNR {full:.2} dB, {:.0} % of the codebook used",
            100.0 * quality.codebook_used
        ));
        Ok(Trained { loaded, quality })
    }
}

/// Measures the quality at the end of a run, and keeps it and a picture in the run's folder.
fn measure<B: Compute>(
    backend: &B,
    folder: &RunFolder,
    of: &TrainedTokenizer<B>,
    held: &Dataset,
    schedule: &ScaleSchedule,
    interrupt: &Interrupt,
) -> anyhow::Result<TokenizerQuality> {
    let step = of.step;
    let mut held_out = held_out(backend, of, held, schedule)?;
    let quality = held_out.quality(&of.params, interrupt)?.ok_or(Interrupted { step })?;
    let picture = held_out.picture(&of.params)?;
    let mut log = folder.log(step)?;
    // A run that was already finished is measured again, but recorded only once.
    if !log.has(step, "eval")? {
        let mut board = folder.tensorboard(step)?;
        keep_quality(&mut log, &mut board, step, &quality)?;
        board.image("reconstructions", step, &picture)?;
    }
    folder.write_png("samples/reconstructions.png", &picture)?;
    Ok(quality)
}
