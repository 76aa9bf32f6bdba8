//! What to know of a generator's run before it begins: how much work it is, and settings that may not be meant.

use super::generator_run::HELD_OUT;
use super::inputs::Inputs;
use crate::backend::Compute;
use crate::config::TrainConfig;
use crate::data::Data;
use sar_math::ScaleSchedule;

/// Images of a step that the published rate is of.
const PUBLISHED_BATCH: usize = 256;

/// Held-out images below which what they say is rough: the classifier that measures has 64 features.
const FEW_HELD_OUT: usize = 65;

impl<B: Compute> Inputs<'_, B> {
    /// Prints what the run trains on and how long, unless it is to be quiet, and notes on its settings.
    pub(super) fn introduce(&self, quiet: bool) {
        let what = [self.data.summary.clone(), self.data.augment.described(), self.effort()];
        let latents = self.latents.map(|latents| format!("on {}", latents.describe()));
        let lines = what.into_iter().chain([self.chance()]).chain(latents);
        for line in lines.filter(|_| !quiet) {
            eprintln!("{line}");
        }
        let factor = self.tokenizer.tokenizer.downsample_factor();
        let small = small(self.data.train.side(), factor, &self.config.generator.schedule);
        let held_out =
            [none_held_out(self.data), few_held_out(self.data), many_held_out(self.data)];
        let notes = [self.slow(), small].into_iter().chain(held_out);
        for note in notes.flatten() {
            eprintln!("note: {note}");
        }
    }

    /// How much work the run is.
    fn effort(&self) -> String {
        let (t, images) = (&self.config.train, self.data.train.len());
        let each = t.batch * t.accumulate;
        let times = t.steps as f64 * each as f64 / images.max(1) as f64;
        // Published for batches of hundreds on a million images; a small run learns ten times slower by it.
        let by_rule = t.lr.is_none() && t.base_lr == TrainConfig::default().base_lr;
        let rule = match by_rule && each < PUBLISHED_BATCH {
            true => " by the published rule; small models on few images learn faster at 1e-3",
            false => "",
        };
        format!(
            "{} steps of {each} images, {times:.1} times through them, at a learning rate of {:e} \
             (train.steps, train.batch, train.lr){rule}",
            t.steps,
            t.peak_lr()
        )
    }

    /// What to know where a run ends before its learning rate has risen.
    fn slow(&self) -> Option<String> {
        let t = &self.config.train;
        (t.warmup > 0 && t.warmup >= t.steps).then(|| {
            format!(
                "train.warmup is {} steps and the run has {}, so that its learning rate rises to {:.1e} and no \
                 further; a smaller train.warmup reaches {:e}",
                t.warmup,
                t.steps,
                t.highest_lr(),
                t.peak_lr()
            )
        })
    }

    /// What losses and accuracies are to be seen beside.
    fn chance(&self) -> String {
        let codes = self.config.generator.vocab as f64;
        format!(
            "to guess one of {codes} codes has a loss of {:.3} and an accuracy of {:.2} %",
            codes.ln(),
            100.0 / codes
        )
    }
}

/// What to know where the last grid of a schedule is smaller than the latents of images of `side` px.
pub(super) fn small(side: usize, factor: usize, schedule: &ScaleSchedule) -> Option<String> {
    let last = schedule.last();
    let squeezed = if last.height == last.width { "" } else { ", the images squeezed to that" };
    (last.height.min(last.width) < side / factor).then(|| {
        format!(
            "images of {side} px have latents of {latent}×{latent}, but generator.schedule ends \
             in a grid of {last}: samples will be {}×{} px{squeezed}",
            last.height * factor,
            last.width * factor,
            latent = side / factor,
        )
    })
}

/// What to know where no image is held out.
fn none_held_out(data: &Data) -> Option<String> {
    data.validation.is_empty().then(|| {
        "no image is held out (data.val_fraction), so nothing tells what is learnt from what is learnt by heart".into()
    })
}

/// What to know where few images are held out.
pub(super) fn few_held_out(data: &Data) -> Option<String> {
    let held_out = data.validation.len();
    (data.drawn && held_out > 0 && held_out < FEW_HELD_OUT).then(|| {
        format!(
            "only {held_out} images are held out, which makes what is measured on them rough; a larger \
             data.val_fraction holds out more, and cannot be changed later"
        )
    })
}

/// What to know where more images are held out than are measured on.
fn many_held_out(data: &Data) -> Option<String> {
    let held_out = data.validation.len();
    (held_out > HELD_OUT)
        .then(|| format!("the held-out loss is of {HELD_OUT} of the {held_out} held-out images"))
}
