//! How a generator's run begins, or goes on, once its configuration is settled.

use super::classes::compare_with_generator;
use super::generator_run::{Start, Work, check};
use super::inputs::Inputs;
use super::models::open_tokenizer;
use super::ranks::Steps;
use super::resuming::{
    NOTHING_TO_RESUME, compare_classes, compare_computing, longer, not_begun, run_data,
    with_command,
};
use super::room::fits_in_memory;
use super::starting::fixed;
use super::{latents, ranks};
use crate::backend::Compute;
use crate::cli::{GlobalArgs, RanksArgs, RunArgs};
use crate::config::Config;
use crate::data::Data;
use crate::hash::sha256_of;
use crate::ranks::Meeting;
use crate::run::{Interrupt, RUN_TOKENIZER, Recorded, RunFolder};
use crate::trained::{TrainedGenerator, TrainedTokenizer};

/// What a command asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Train,
    Refine,
}

impl Task {
    /// The command's name.
    fn command(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Refine => "refine",
        }
    }

    /// Label of its progress bar.
    fn label(self) -> &'static str {
        match self {
            Self::Train => "training",
            Self::Refine => "refining",
        }
    }
}

/// A command that trains a generator, as typed.
pub(super) struct Order<'a> {
    pub(super) task: Task,
    pub(super) run: &'a RunArgs,
    pub(super) ranks: &'a RanksArgs,
    /// Where other ranks come from elsewhere, if they do.
    pub(super) listening: Option<Meeting>,
    pub(super) global: &'a GlobalArgs,
}

impl Order<'_> {
    /// Begins a run of `config`, in a new folder, with new weights or those of `from`.
    pub(super) fn begin<B: Compute>(
        mut self,
        backend: &B,
        mut config: Config,
        (tokenizer, data): (&TrainedTokenizer<B>, &Data),
        from: Option<TrainedGenerator>,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(
            config.train.lr.is_none() || !self.run.sets("train", "base_lr"),
            "--set train.base_lr would change nothing beside train.lr, which is the rate itself; leave one of them out"
        );
        match &from {
            Some(from) => compare_with_generator(from, data),
            None => self.size_by(&mut config, tokenizer, data)?,
        }
        if let Some(side) = tokenizer.side.filter(|side| *side != data.train.side()) {
            eprintln!(
                "note: the tokenizer was trained on images of {side} px, and here they are {} px \
                 (data.image_side)",
                data.train.side()
            );
        }
        // The resolved configuration says what is used.
        config.tokenizer = tokenizer.tokenizer.config().clone();
        config.validate()?;
        let steps = Steps::from(&config.train);
        steps.can_begin(self.ranks)?;
        // Before the folder is made: a run that cannot start leaves none behind.
        check(&config, data, tokenizer)?;
        fits_in_memory(&config, self.ranks.here(), self.global)?;
        let latents = latents::of_run(backend, &config, data, tokenizer)?;
        // Before other processes are started, which are to end with this one.
        let interrupt = Interrupt::listen()?;
        let meeting = ranks::meeting(self.listening.take(), self.ranks, steps, self.global)?;
        let folder = RunFolder::create(&self.run.out, &config)?;
        let origin = from.as_ref().map(TrainedGenerator::origin).transpose()?;
        let start = from.map_or(Start::New, |from| Start::From(from.weights));
        let latents = latents.as_ref();
        let inputs = Inputs { backend, config: &config, data, tokenizer, latents };
        let work = Work { inputs, folder: &folder, meeting };
        let kept = origin.map_or(Ok(()), |origin| folder.keep_origin(&origin));
        let trained = kept.map_err(Into::into).and_then(|()| self.started(work, start, &interrupt));
        if let Err(error) = trained {
            // Without a checkpoint there is nothing to go on with, and the next try finds the place free.
            folder.discard();
            return Err(error);
        }
        println!("{}", folder.path().display());
        Ok(())
    }

    /// Gives a new generator the sizes that tokenizer and data ask for.
    fn size_by<B: Compute>(
        &self,
        config: &mut Config,
        tokenizer: &TrainedTokenizer<B>,
        data: &Data,
    ) -> anyhow::Result<()> {
        let (args, classes) = (self.run, data.classes.len());
        let (t, g) = (tokenizer.tokenizer.config(), &mut config.generator);
        fixed(args, "vocab", g.vocab, t.vocab, "the tokenizer has")?;
        fixed(args, "channels", g.channels, t.latent_channels, "the tokenizer has")?;
        anyhow::ensure!(
            g.classes <= classes || !args.names("generator", "classes"),
            "generator.classes is {}, but the data have {classes}; leave the key out, or say by \
             data.num_classes={} that there are classes without images",
            g.classes,
            g.classes
        );
        fixed(args, "classes", g.classes, classes, "the data have")?;
        (g.vocab, g.channels, g.classes) = (t.vocab, t.latent_channels, classes);
        Ok(())
    }

    /// Trains a run that has its folder.
    fn started<B: Compute>(
        &self,
        work: Work<'_, B>,
        start: Start,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        let folder = work.folder;
        compare_computing(folder, &self.ranks.computed(self.global))?;
        let trained = work.train(start, self.task.label(), interrupt, self.global.quiet);
        trained.map(drop).map_err(|error| self.with_command(error, folder))
    }

    /// Goes on with the run in --out. `free` are the keys that may change; `rest` applies the command's own flags, which
    /// --requeue may have.
    pub(super) fn go_on<B: Compute>(
        mut self,
        backend: &B,
        free: &[&str],
        rest: impl FnOnce(&mut Config, &Config),
    ) -> anyhow::Result<()> {
        let (folder, had) = RunFolder::open_for_resume(&self.run.out)?;
        let kept = folder.began_with()?;
        let began = kept.as_ref().unwrap_or(&had);
        let config = self.run.continued((began, &had), free, rest)?;
        let steps = Steps::from(&config.train);
        steps.can_go_on(self.ranks)?;
        let tokenizer = kept_tokenizer(backend, &folder, &config)?;
        let sum = sha256_of(&tokenizer.weights);
        anyhow::ensure!(
            folder.other(Recorded::Tokenizer, &sum)?.is_none(),
            "{} is not the tokenizer that the run began with; put that one there, or start a run from its weights with \
             --init-from",
            folder.path().join(RUN_TOKENIZER).display()
        );
        let data = run_data(&config, Some(folder.path()))?;
        compare_classes(&folder, &data)?;
        check(&config, &data, &tokenizer)?;
        fits_in_memory(&config, self.ranks.here(), self.global)?;
        let latents = latents::of_run(backend, &config, &data, &tokenizer)?;
        longer(&folder, "train.steps", config.train.steps, began.train.steps)?;
        let interrupt = Interrupt::listen()?;
        let meeting = ranks::meeting(self.listening.take(), self.ranks, steps, self.global)?;
        if config != had || kept.as_ref() != Some(&config) {
            // Only once nothing stands in the way of the run.
            folder.reconfigure(&config)?;
        }
        compare_computing(&folder, &self.ranks.computed(self.global))?;
        let (data, latents) = (&data, latents.as_ref());
        let inputs = Inputs { backend, config: &config, data, tokenizer: &tokenizer, latents };
        let work = Work { inputs, folder: &folder, meeting };
        let trained = work.train(Start::Resume, "resuming", &interrupt, self.global.quiet);
        trained.map_err(|error| self.with_command(not_begun(error), &folder))?;
        println!("{}", folder.path().display());
        Ok(())
    }

    /// Adds the command that goes on with the run to an error, if the user stopped it.
    fn with_command(&self, error: anyhow::Error, folder: &RunFolder) -> anyhow::Error {
        with_command(error, self.task.command(), folder, &self.ranks.typed(), self.global)
    }
}

/// Opens the tokenizer that a generator's run keeps.
fn kept_tokenizer<B: Compute>(
    backend: &B,
    folder: &RunFolder,
    config: &Config,
) -> anyhow::Result<TrainedTokenizer<B>> {
    let kept = folder.path().join(RUN_TOKENIZER);
    if kept.is_file() {
        return Ok(open_tokenizer(backend, &kept)?);
    }
    // The tokenizer is written before the first checkpoint.
    let path = folder.path().display();
    match folder.checkpoints(config.train.keep)?.latest()? {
        None => anyhow::bail!("{path}: {NOTHING_TO_RESUME}"),
        Some(_) => anyhow::bail!(
            "{path} has no {RUN_TOKENIZER}, which a generator's run keeps: put its tokenizer's \
             model.safetensors there; a tokenizer's run goes on with `sar tokenizer train --resume`"
        ),
    }
}
