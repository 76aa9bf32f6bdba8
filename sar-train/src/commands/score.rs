//! `sar score`: the measures that papers report, for images made by any program.

mod set;

use super::place;
use crate::cli::{BackendName, GlobalArgs, ScoreArgs};
use crate::data::npz::NpzReader;
use crate::eval::{NEIGHBOURS, Reference, Scores, Sight, Statistics, scores};
use crate::files::write_whole;
use crate::hash::sha256_of_file;
use crate::model::inception::{Inception, WEIGHTS};
use crate::run::{Progress, rate};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use set::{ImageSet, Images};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Number of images that go through the network together.
const BATCH: usize = 16;
/// Number of samples that published numbers are computed from.
const PUBLISHED_SAMPLES: usize = 50_000;
/// First digits of the SHA-256 of the published weights, which are a part of their name.
const PUBLISHED_SHA256: &str = "6726825d";

/// What was measured and on what, as it is written to JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ScoreReport {
    /// The program and its version.
    program: String,
    /// What was measured.
    samples: ImageSet,
    /// What it was compared with; no images where a file has statistics alone.
    reference: Option<ImageSet>,
    /// Where statistics were read, if the reference brought its own.
    reference_statistics: Option<String>,
    /// What the samples are of and the settings they were made with, if they are in a folder of `sar sample`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<Value>,
    /// The weights of the network.
    inception: String,
    /// Their SHA-256.
    inception_sha256: String,
    /// The numbers.
    scores: Scores,
    /// What to keep in mind when reading them.
    warnings: Vec<String>,
}

/// Measures samples against a reference.
///
/// # Errors
/// Images or weights cannot be used.
pub fn run(args: &ScoreArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let reference = args.save_reference.as_deref();
    let ready = |path, kind| place::ready_new(path, &[kind], args.force);
    let _reference = reference.map(|path| ready(path, "npz")).transpose()?;
    let _place = args.json.as_deref().map(|path| ready(path, "json")).transpose()?;
    let task = Task::open(args)?;
    if global.backend != BackendName::Cpu {
        eprintln!("note: `sar score` runs on the CPU");
    }
    let (report, saved) = task.measure(args.save_reference.as_deref(), global.quiet)?;
    print!("{}", text(&report));
    if let Some(json) = &args.json {
        let numbers = serde_json::to_string_pretty(&report)?;
        let written = write_whole(json, numbers.as_bytes());
        written.with_context(|| format!("{} cannot be written", json.display()))?;
    }
    saved
}

/// Everything that is measured, opened and checked as far as possible before the work begins.
struct Task {
    samples: Images,
    reference: Option<Images>,
    /// Statistics that the reference brings itself, and where they were read.
    known: Option<(String, Statistics)>,
    /// What the network saw of the reference's images, if its file has that.
    seen: Option<Sight>,
    /// What those images were, if its file says so.
    remembered: Option<ImageSet>,
    inception: Inception,
    /// The weights' file and its SHA-256.
    weights: (String, String),
}

impl Task {
    fn open(args: &ScoreArgs) -> anyhow::Result<Self> {
        let known = statistics(&args.reference)?;
        let (samples, reference) = set::open(args, known.is_some())?;
        for set in std::iter::once(&samples).chain(&reference) {
            anyhow::ensure!(
                set.about.count > NEIGHBOURS,
                "{}: {} images are too few to measure, which takes {} at least",
                set.about.source,
                set.about.count,
                NEIGHBOURS + 1
            );
        }
        let weights = args.inception.display().to_string();
        let sha256 = sha256_of_file(&args.inception).with_context(|| {
            format!("{weights}: the weights of the Inception network cannot be read")
        })?;
        let inception = Inception::load(&args.inception)?;
        let (mut seen, mut remembered) = (None, None);
        if let Some(known) = &known {
            let mut file = NpzReader::open(Path::new(&args.reference))?;
            let about =
                Statistics::images(&mut file).with_context(|| cannot_be_used(&args.reference))?;
            let source = args.reference.clone();
            let set =
                |[count, height, width]: [usize; 3]| ImageSet { source, count, height, width };
            remembered = about.filter(|about| about[1] > 0).map(set);
            Statistics::check_network(&mut file, network(&sha256))
                .and_then(|()| Sight::of_file(&mut file, inception.feature_dims()))
                .map(|found| seen = found)
                .with_context(|| cannot_be_used(&args.reference))?;
            known.fits(&inception).with_context(|| cannot_be_used(&args.reference))?;
        }
        let known = known.map(|known| (args.reference.clone(), known));
        Ok(Self {
            samples,
            reference,
            known,
            seen,
            remembered,
            inception,
            weights: (weights, sha256),
        })
    }

    /// Measures; also returns whether the reference could be saved, which the numbers do not depend on.
    fn measure(
        self,
        save: Option<&Path>,
        quiet: bool,
    ) -> anyhow::Result<(ScoreReport, anyhow::Result<()>)> {
        let Self { samples, reference, known, seen, remembered, inception, .. } = self;
        let (weights, sha256) = self.weights;
        let made = samples.made.clone();
        let about = samples.about.clone();
        let about_reference = reference.as_ref().map(|set| set.about.clone()).or(remembered);
        let (source, known) = known.unzip();
        let looked = reference.map(|set| look(&inception, set, "reference", quiet)).transpose()?;
        let reference = Reference::new(known, seen.or(looked))?;
        let size = about_reference.as_ref().map(|set| (set.height, set.width));
        let saved = save.map_or(Ok(()), |path| keep(&reference, path, &sha256, size));
        let samples = look(&inception, samples, "samples", quiet)?;
        let mut warnings = warnings(&about, about_reference.as_ref(), &sha256);
        if !reference.has_images() {
            let none = "The reference has no images, which precision and recall are measured with.";
            warnings.push(none.to_owned());
        }
        warnings.extend(made.as_ref().and_then(uneven));
        warnings.extend(reference.warning().map(|w| format!("Of the reference, {w}.")));
        if !quiet {
            eprintln!("comparing");
        }
        let scores = scores(&inception, samples, reference)?;
        if scores.sfid.is_none() {
            let none = "The reference has no statistics of spatial features (mu_s) for sFID.";
            warnings.push(none.to_owned());
        }
        let report = ScoreReport {
            program: format!("sar {}", env!("CARGO_PKG_VERSION")),
            samples: about,
            reference: about_reference,
            reference_statistics: source,
            made: made.map(without_labels),
            inception: weights,
            inception_sha256: sha256,
            scores,
            warnings,
        };
        Ok((report, saved))
    }
}

/// Saves what the network saw of a reference, so that it need not look again.
fn keep(
    reference: &Reference,
    path: &Path,
    sha256: &str,
    size: Option<(usize, usize)>,
) -> anyhow::Result<()> {
    let kept = reference.save(path, network(sha256), size);
    let whole = kept.with_context(|| format!("{} cannot be written", path.display()))?;
    if !whole && reference.has_images() {
        eprintln!(
            "note: {} has statistics alone: features of so many images are too many to be read again, and \
             precision and recall need the images",
            path.display()
        );
    }
    Ok(())
}

/// The first four bytes of a SHA-256, which identify the network.
fn network(sha256: &str) -> u32 {
    sha256.get(..8).and_then(|head| u32::from_str_radix(head, 16).ok()).unwrap_or(0)
}

/// Warns if classes do not have the same number of images, as they have for published numbers.
fn uneven(made: &Value) -> Option<String> {
    let labels = made["labels"].as_array()?.iter().filter_map(Value::as_u64);
    let classes = made["classes"].as_array().map_or(0, Vec::len);
    let mut counts: BTreeMap<u64, usize> = (0..classes as u64).map(|class| (class, 0)).collect();
    labels.for_each(|label| *counts.entry(label).or_default() += 1);
    let (fewest, most) = (counts.values().min()?, counts.values().max()?);
    (fewest != most).then(|| {
        format!(
            "The {} classes have {fewest} to {most} samples each, where published numbers are of as many of each.",
            counts.len()
        )
    })
}

/// How samples were made, without the class of each.
fn without_labels(mut made: Value) -> Value {
    if let Some(made) = made.as_object_mut() {
        made.remove("labels");
        made.remove("classes");
    }
    made
}

/// Returns the statistics that a reference's file brings, if any.
fn statistics(reference: &str) -> anyhow::Result<Option<Statistics>> {
    if !set::is_npz(reference) {
        return Ok(None);
    }
    let statistics = Statistics::of_file(&mut NpzReader::open(Path::new(reference))?);
    statistics.with_context(|| cannot_be_used(reference))
}

fn cannot_be_used(reference: &str) -> String {
    format!("{reference}: its statistics cannot be used")
}

/// Passes all images of a set through the network.
fn look(inception: &Inception, set: Images, what: &str, quiet: bool) -> anyhow::Result<Sight> {
    let ImageSet { count, height, width, .. } = set.about;
    let mut progress = Progress::new(what, count as u64, 0, quiet);
    let started = Instant::now();
    let mut sight = Sight::new(inception, count);
    set.each_batch(BATCH, |images| {
        sight.add(&inception.see(images, height, width)?)?;
        let done = sight.count();
        let per_s = rate(done as f64 / started.elapsed().as_secs_f64());
        progress.update(done as u64, &per_s);
        Ok(())
    })?;
    progress.finish("seen");
    Ok(sight)
}

fn warnings(samples: &ImageSet, reference: Option<&ImageSet>, sha256: &str) -> Vec<String> {
    let mut all = Vec::new();
    if !sha256.starts_with(PUBLISHED_SHA256) {
        all.push(format!(
            "The weights are not those of {WEIGHTS}, whose SHA-256 begins with {PUBLISHED_SHA256} and theirs \
             with {}: these are no published numbers.",
            sha256.get(..PUBLISHED_SHA256.len()).unwrap_or(sha256)
        ));
    }
    let count = samples.count;
    if count != PUBLISHED_SAMPLES {
        all.push(format!(
            "{count} samples, where published numbers are of {PUBLISHED_SAMPLES}, the same number of each \
             class: fewer give a larger distance."
        ));
    }
    let other = |r: &&ImageSet| (r.height, r.width) != (samples.height, samples.width);
    if let Some(r) = reference.filter(other) {
        all.push(format!(
            "The samples are {}×{} px, the reference {}×{} px.",
            samples.height, samples.width, r.height, r.width
        ));
    }
    all
}

/// Formats the numbers for a terminal, under the names that papers give them.
fn text(report: &ScoreReport) -> String {
    let ScoreReport { samples, reference, reference_statistics, scores, warnings, .. } = report;
    let mut lines = vec![format!("samples           {samples}")];
    let statistics = reference_statistics.as_ref().map(|_| "statistics of the file");
    let reference = match (reference, statistics) {
        (Some(images), Some(statistics)) => format!("{images}, {statistics}"),
        (Some(images), None) => images.to_string(),
        (None, statistics) => statistics.unwrap_or_default().to_owned(),
    };
    lines.push(format!("reference         {reference}"));
    let number = |value: Option<f64>, decimals: usize| match value {
        Some(value) => format!("{value:.decimals$}"),
        None => "–".to_owned(),
    };
    lines.push(format!("Inception Score   {}", number(Some(scores.inception_score), 2)));
    lines.push(format!("FID               {}", number(Some(scores.fid), 3)));
    lines.push(format!("sFID              {}", number(scores.sfid, 3)));
    lines.push(format!("Precision         {}", number(scores.precision, 4)));
    lines.push(format!("Recall            {}", number(scores.recall, 4)));
    lines.extend(warnings.iter().map(|warning| format!("note: {warning}")));
    lines.join("\n") + "\n"
}
