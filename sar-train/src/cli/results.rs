//! Commands on what a run has made.

use crate::config::{ConfigError, Published, Ramp, SampleConfig};
use clap::Args;
use sar_math::ScaleSchedule;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

/// How images are sampled; what is not given is as in the generator's run.
#[derive(Clone, Debug, Args)]
pub struct SamplerArgs {
    /// Images at once; never changes them. Default: the run's (sample.batch), or 20.
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// How guidance g grows over the scales, as t of logits `(1+t)·c − t·u`; where others write `u + s·(c − u)`, s is
    /// 1 + t. Default: the run's (sample.ramp), or flexvar.
    #[arg(long)]
    pub ramp: Option<Ramp>,
    /// Grids to sample in; default: the generator's.
    #[arg(long, value_name = "1_2_4_8")]
    pub schedule: Option<ScaleSchedule>,
    /// Seed, the first of several; image k of a seed is always the same. Default: the run's
    /// (sample.seed), or 0.
    #[arg(long, value_name = "N", value_parser = super::seed)]
    pub seed: Option<u64>,
    /// Be greedy on grids outside the published sampler's fixed list, as that sampler is.
    #[arg(long)]
    pub published_greedy: bool,
    /// Guidance, ramp and filter of a published model's results, in place of the run's, and --published-greedy where its
    /// sampler is; --guidance, --ramp, --top-k and --top-p change them.
    #[arg(long, value_name = "MODEL")]
    pub published: Option<Published>,
}

impl SamplerArgs {
    /// Returns the settings of a generator's run, overridden by the flags and checked.
    pub(crate) fn settings(
        &self,
        mut run: SampleConfig,
        count: Option<usize>,
        guidance: Option<f64>,
        filter: &FilterArgs,
    ) -> Result<SampleConfig, ConfigError> {
        self.as_published(&mut run);
        run.count = count.unwrap_or(run.count);
        run.guidance = guidance.unwrap_or(run.guidance);
        run.top_k = filter.top_k.unwrap_or(run.top_k);
        run.top_p = filter.top_p.unwrap_or(run.top_p);
        self.over(&mut run);
        run.validate()?;
        Ok(run)
    }

    /// Changes a configuration to the settings of the published model that was named, if one was; returns whether.
    pub(crate) fn as_published(&self, sample: &mut SampleConfig) -> bool {
        self.published.inspect(|model| model.over(sample)).is_some()
    }

    /// Overrides a configuration with the given flags.
    pub(crate) fn over(&self, sample: &mut SampleConfig) {
        sample.batch = self.batch.unwrap_or(sample.batch);
        sample.ramp = self.ramp.unwrap_or(sample.ramp);
        sample.schedule = self.schedule.or(sample.schedule);
        sample.seed = self.seed.unwrap_or(sample.seed);
        sample.published_greedy |= self.published_greedy;
    }
}

/// Filter of the tokens that are drawn from.
#[derive(Clone, Debug, Args)]
pub struct FilterArgs {
    /// Keep the k most likely tokens; 0 is off, 1 is greedy. Default: the run's (sample.top_k), or 900.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Keep this cumulative probability; 0 is off. Default: the run's (sample.top_p), or 0.95.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
}

/// One of several parts, as equal as possible, in which images are made: `1/8` is the first of
/// eight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Number of the part, counted from 1.
    index: usize,
    of: usize,
}

impl Part {
    /// Returns the numbers of its images, of `count` in total.
    pub(crate) fn of(self, count: usize) -> Range<usize> {
        let [from, to] = [self.index - 1, self.index].map(|i| count as u128 * i as u128);
        let at = |of: u128| (of / self.of as u128) as usize;
        at(from)..at(to)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a part and how many there are, 1/8 to 8/8, found {text}");
        let (index, of) = text.split_once('/').ok_or_else(wrong)?;
        let [index, of] = [index, of].map(|n| n.parse::<usize>().map_err(|_| wrong()));
        let part = Self { index: index?, of: of? };
        if (1..=part.of).contains(&part.index) { Ok(part) } else { Err(wrong()) }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// A folder of images.
#[derive(Clone, Debug, Args)]
pub struct OutArgs {
    /// Folder for the images.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Continue after the images that an earlier call with the same flags left in --out, or begin
    /// if there are none. --count may be larger. Files that are named like its images are taken for
    /// them.
    #[arg(long, conflicts_with = "force")]
    pub resume: bool,
    /// Replace the images of an earlier call in --out; `sample` replaces the file of --npz, too.
    #[arg(long)]
    pub force: bool,
}

/// `sar sample`.
#[derive(Clone, Debug, Args)]
pub struct SampleArgs {
    /// The generator: a run folder, a checkpoint folder or a .safetensors file.
    pub generator: PathBuf,
    /// The tokenizer; default: the one of the generator's run.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Where the images go.
    #[command(flatten)]
    pub place: OutArgs,
    /// Classes to sample, in turn, by name or by number from 0; what is both is a name. Default: all.
    #[arg(long, value_delimiter = ',', value_name = "0,cat,…", allow_hyphen_values = true)]
    pub classes: Vec<String>,
    /// Images. Default: the run's (sample.count), or 100.
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// Guidance; 0 is off. Default: the run's (sample.guidance), or 1; published are 2.5 for FlexVAR, 2.2, 2.6 and 3.3
    /// for its refined models of depth 16, 20 and 24, and 1.5 for VAR (--ramp var, --top-p 0.96).
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// The sampler.
    #[command(flatten)]
    pub sampler: SamplerArgs,
    /// What it draws from.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Also write all images as one array, uint8 `[n, h, w, 3]`, which published evaluators read.
    #[arg(long, value_name = "FILE")]
    pub npz: Option<PathBuf>,
    /// Make only part I of N, in a folder that all parts share: as many calls at once as there are
    /// GPUs, or jobs in an array. Each continues what it has left there. Then the same with
    /// --resume in place of --part makes grid and array.
    #[arg(long, value_name = "I/N", conflicts_with_all = ["force", "npz"])]
    pub part: Option<Part>,
    /// Sample from the running average of the weights, where the checkpoint has one.
    #[arg(long)]
    pub ema: bool,
}

/// `sar edit`.
#[derive(Clone, Debug, Args)]
pub struct EditArgs {
    /// The generator: a run folder, a checkpoint folder or a .safetensors file.
    pub generator: PathBuf,
    /// The tokenizer; default: the one of the generator's run.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// The image; the largest square in its middle counts, scaled to what the generator draws.
    #[arg(long, value_name = "FILE")]
    pub image: PathBuf,
    /// Which part of it to draw anew: an image of the same size that is lighter than middle grey
    /// there (white; transparent counts as white) and darker elsewhere. In the last grid, a token
    /// is drawn anew as a whole if any of its pixels is masked; in coarser grids, from the second
    /// pass on, if more than half of them are.
    #[arg(long, value_name = "FILE")]
    pub mask: Option<PathBuf>,
    /// Take the first N grids from the image, under the mask too, so that its coarse look stays.
    /// Without --mask, everything finer is drawn anew.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub keep_scales: usize,
    /// How often to draw what is masked, each time on what was drawn before: 2 fits in better than 1. Goes with
    /// --mask.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100),
        requires = "mask")]
    pub passes: u64,
    /// Where the images go.
    #[command(flatten)]
    pub place: OutArgs,
    /// Classes to draw, in turn, by name or by number from 0; what is both is a name. There is a
    /// default only for a generator of one class.
    #[arg(long, value_delimiter = ',', value_name = "0,cat,…", allow_hyphen_values = true)]
    pub classes: Vec<String>,
    /// Images.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub count: usize,
    /// Guidance; 0 is off. Default: the run's (sample.guidance), or 1.
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// The sampler.
    #[command(flatten)]
    pub sampler: SamplerArgs,
    /// What it draws from.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Leave the pictures as decoded; default: outside the mask the image's own pixels are put back. Goes with
    /// --mask.
    #[arg(long, requires = "mask")]
    pub decoded: bool,
    /// Sample from the running average of the weights, where the checkpoint has one.
    #[arg(long)]
    pub ema: bool,
}

/// `sar eval`.
#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    /// The generator: a run folder, a checkpoint folder or a .safetensors file.
    pub generator: PathBuf,
    /// The tokenizer; default: the one of the generator's run.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Images to compare with; default: the data of the generator's run.
    #[arg(long, value_name = "SOURCE")]
    pub data: Option<String>,
    /// Guidance values to sweep. Default: the run's (eval.guidance).
    #[arg(long, value_delimiter = ',', value_name = "G,…", allow_hyphen_values = true)]
    pub guidance: Vec<f64>,
    /// Keep the k most likely tokens; 0 is off, 1 is greedy. Several are swept, each at every guidance.
    #[arg(long, value_delimiter = ',', value_name = "K,…")]
    pub top_k: Vec<usize>,
    /// Keep this cumulative probability; 0 is off. Several are swept, each with every --top-k.
    #[arg(long, value_delimiter = ',', value_name = "P,…", allow_hyphen_values = true)]
    pub top_p: Vec<f64>,
    /// Samples per point of the sweep and sampling seed, rounded up so that each class has equally
    /// many. Default: the run's (eval.samples).
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Sampling seeds; their spread is reported. Default: the run's (eval.seeds).
    #[arg(long, value_name = "N")]
    pub seeds: Option<u64>,
    /// The sampler.
    #[command(flatten)]
    pub sampler: SamplerArgs,
    /// Side of the images to compare with, in pixels; default: the run's, or that of what the weights draw.
    #[arg(long, value_name = "PIXELS")]
    pub image_side: Option<usize>,
    /// Where to write the numbers as JSON, `-` for standard output; default, for a run folder measured as it
    /// was made: `eval.json` in it, where `sar report` looks for them. An evaluation that is there already stays: in the
    /// same file if it was made in the same way, otherwise beside it.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Sample and measure only the points that earlier calls have not, by the same settings, to go on after an
    /// interruption; the classifier is trained anew, to the same bits.
    #[arg(long)]
    pub resume: bool,
    /// Evaluate the running average of the weights, where the checkpoint has one.
    #[arg(long)]
    pub ema: bool,
    /// Leave out images that cannot be read, and count them, instead of stopping.
    #[arg(long)]
    pub skip_bad_images: bool,
}

/// `sar score`.
#[derive(Clone, Debug, Args)]
pub struct ScoreArgs {
    /// The images to measure, 50,000 for published numbers: an .npz file of them (`arr_0`, uint8 `[n, h, w, 3]`), a
    /// folder that `sar sample` wrote, or what --data of other commands takes.
    #[arg(value_name = "SAMPLES")]
    pub samples: String,
    /// What to compare them with: the same, or an .npz file that has statistics (`mu`, `sigma`,
    /// `mu_s`, `sigma_s`) in addition to or in place of images.
    #[arg(long, value_name = "SOURCE")]
    pub reference: String,
    /// Weights of the published Inception network: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid's releases
    /// (github.com/mseitzer/pytorch-fid), in torch-fidelity's called weights-inception-2015-12-05-6726825d.pth.
    #[arg(long, value_name = "FILE")]
    pub inception: PathBuf,
    /// Where to write the features and statistics of the reference, as an .npz file that
    /// --reference accepts the next time: looking at 50,000 images takes longer than all the rest.
    #[arg(long, value_name = "FILE")]
    pub save_reference: Option<PathBuf>,
    /// Side that images of a source of any size are cut to, in pixels; default: that of the other images.
    #[arg(long, value_name = "PIXELS")]
    pub image_side: Option<usize>,
    /// Where to write the numbers, and all that they depend on, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Replace the files of --save-reference and --json if they exist.
    #[arg(long)]
    pub force: bool,
}

/// `sar report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Run folders to show side by side.
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// The HTML file; default: `report.html` in the first run folder.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `sar convert`.
#[derive(Clone, Debug, Args)]
pub struct ConvertArgs {
    /// A published `.pth` file, or a `.safetensors` file.
    pub from: PathBuf,
    /// The `.safetensors` file to write.
    pub to: PathBuf,
    /// Grids that the generator was trained on, which weights do not say; default: those of its
    /// mask if its positions are of one schedule (VAR), else the published ones.
    #[arg(long, value_name = "1_2_4_8")]
    pub schedule: Option<ScaleSchedule>,
    /// Groups of a tokenizer's norms (tokenizer.groups), which its weights do not say; default: 32, as published.
    #[arg(long, value_name = "N")]
    pub groups: Option<usize>,
    /// Replace the target if it exists.
    #[arg(long)]
    pub force: bool,
}
