//! What to know of a generator's run before it begins: how much work it is, and settings that may not be meant.

use super::generator_run::HELD_OUT;
use super::inputs::Inputs;
use crate::backend::Compute;
use crate::config::TrainConfig;
use crate::data::Data;
use crate::eval::NEIGHBOURS;
use sar_math::ScaleSchedule;

/// Images of a step that the published rate is of.
const PUBLISHED_BATCH: usize = 256;

/// Held-out images below which what they say is rough: the classifier that measures has 64 features.
const FEW_HELD_OUT: usize = 65;
/// So many times the share that was asked for is noted.
const FAR_MORE: f64 = 2.5;

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
        let (data, fraction) = (self.data, self.config.data.val_fraction);
        let held_out = [
            none_held_out(data),
            few_held_out(data),
            much_held_out(data, fraction),
            many_held_out(data),
        ];
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
        let what = match held_out {
            1 => "only one image is held out".to_owned(),
            many => format!("only {many} images are held out"),
        };
        let rough = match held_out > NEIGHBOURS || data.classes.len() < 2 {
            true => "which makes what is measured on them rough".to_owned(),
            false => format!("and `sar eval` measures on {} at least", NEIGHBOURS + 1),
        };
        format!(
            "{what}, {rough}; a larger data.val_fraction holds out more, and cannot be changed later"
        )
    })
}

/// What to know where classes are so small that one image of each is far more than the share to be held out.
pub(super) fn much_held_out(data: &Data, fraction: f64) -> Option<String> {
    let (held_out, all) = (data.validation.len(), data.listed + data.validation.len());
    let share = held_out as f64 / all.max(1) as f64;
    (data.drawn && fraction > 0.0 && share > FAR_MORE * fraction).then(|| {
        format!(
            "{held_out} of {all} images, {:.0} %, are held out, one of each small class at least; a val/ folder names \
             others to measure on, and data.val_fraction=0 then trains on all of these",
            100.0 * share
        )
    })
}

/// What to know where more images are held out than are measured on.
fn many_held_out(data: &Data) -> Option<String> {
    let held_out = data.validation.len();
    (held_out > HELD_OUT)
        .then(|| format!("the held-out loss is of {HELD_OUT} of the {held_out} held-out images"))
}
