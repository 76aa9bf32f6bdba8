//! Measures a generator against validation images, and the floors to compare with.
//!
//! The features are those of a small classifier ([`crate::model::classifier`]); everything that the
//! numbers depend on is kept with them in [`EvalSettings`]. Three floors put the numbers into
//! perspective: the validation images after the tokenizer, the training images, and as many
//! training images as there are validation images (having so few samples alone increases the
//! distance).

mod prepare;
mod published;
mod result;

pub use prepare::prepare;
pub use published::{PublishedError, Reference, Scores, Sight, Statistics, scores};
pub use result::{EvalReport, EvalSettings, Floor, SamplerSettings, SweepPoint};

use crate::metrics::{Features, Gaussian, Manifold, Measured, MetricsError, class_accuracy};
use crate::model::classifier::{Classifier, ClassifierError, ClassifierOps, EXTRACTOR, Extracted};
use crate::train::HeldOutReport;
use sar_math::philox::{Purpose, Stream};
use thiserror::Error;

/// Number of neighbours k of the manifolds, as published.
pub(crate) const NEIGHBOURS: usize = 3;
/// A classifier that has come less than this part of the way from guessing to certainty is warned of.
const LEARNT: f64 = 1.0 / 3.0;
/// With fewer images than this, a manifold consists mostly of gaps.
const FEW: usize = 100;

/// Any error, boxed; the error type of a [`Generate`].
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Why an evaluation failed.
#[derive(Debug, Error)]
pub enum EvalError {
    /// The classifier failed.
    #[error(transparent)]
    Classifier(#[from] ClassifierError),
    /// A measure cannot be computed.
    #[error("evaluation: {0}")]
    Metrics(#[from] MetricsError),
    /// Images of the data set cannot be read.
    #[error("evaluation: {0}")]
    Data(#[from] crate::data::DataError),
    /// The tokenizer failed.
    #[error("evaluation: reconstructing the validation images: {0}")]
    Reconstruction(#[source] AnyError),
    /// The generator failed.
    #[error(
        "evaluation: generating {count} images of seed {seed} at guidance {guidance}: {source}"
    )]
    Generator {
        /// Number of images requested.
        count: usize,
        /// Their seed.
        seed: u64,
        /// Their guidance.
        guidance: f64,
        /// Error of the generator.
        source: AnyError,
    },
    /// There is only one class, so the classifier has nothing to learn.
    #[error(
        "evaluation: images are measured in the features of a classifier, and these are of one class; \
         name images of several with --data"
    )]
    OneClass,
    /// Sizes that do not fit.
    #[error("evaluation: {what}: expected {expected}, found {found}")]
    Shape {
        /// Which quantity.
        what: &'static str,
        /// What it should be.
        expected: usize,
        /// What it is.
        found: usize,
    },
}

/// Images `[n, channels, height, width]` in −1..1 and their labels.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// Pixels of all images.
    pub images: &'a [f32],
    /// Labels, one per image.
    pub labels: &'a [u32],
}

/// Generates images to measure; implemented by any `FnMut(labels, seed, guidance) -> images`.
pub trait Generate {
    /// One image per label, `[n, channels, height, width]` in −1..1. The same arguments give the
    /// same images.
    ///
    /// # Errors
    /// Whatever keeps it from making them.
    fn generate(&mut self, labels: &[u32], seed: u64, guidance: f64) -> Result<Vec<f32>, AnyError>;
}

impl<F: FnMut(&[u32], u64, f64) -> Result<Vec<f32>, AnyError>> Generate for F {
    fn generate(&mut self, labels: &[u32], seed: u64, guidance: f64) -> Result<Vec<f32>, AnyError> {
        self(labels, seed, guidance)
    }
}

/// What to generate for a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalOptions {
    /// Number of images per seed; rounded up to a multiple of the classes, so that each class has
    /// equally many.
    pub count: usize,
    /// Seeds of the sampler.
    pub seeds: Vec<u64>,
    /// Description of the images to compare with; like `sampler`, it is recorded with the numbers.
    pub data: String,
    /// Settings of the sampler.
    pub sampler: SamplerSettings,
}

/// Returns `count` labels, rounded up to whole rounds of all classes: 0, 1, 2, …, 0, 1, 2, …
pub fn balanced_labels(count: usize, classes: usize) -> Vec<u32> {
    let classes = classes.max(1);
    (0..count.next_multiple_of(classes)).map(|i| (i % classes) as u32).collect()
}

/// A classifier, and its view of the validation images, computed once.
pub struct Evaluator<'a, B: ClassifierOps> {
    backend: &'a B,
    classifier: Classifier<B>,
    gaussian: Gaussian,
    manifold: Manifold<'static>,
    labels: Vec<u32>,
    settings: EvalSettings,
    floors: Vec<Floor>,
    held_out: Option<HeldOutReport>,
    warnings: Vec<String>,
}

impl<'a, B: ClassifierOps> Evaluator<'a, B> {
    /// Computes the features of the validation images.
    ///
    /// # Errors
    /// The images do not have the classifier's shape, there are too few of them, or labels do not
    /// match.
    pub fn new(
        backend: &'a B,
        classifier: Classifier<B>,
        validation: Labelled<'_>,
        options: &EvalOptions,
    ) -> Result<Self, EvalError> {
        let classes = classifier.config().classes;
        let seen = classifier.extract(backend, validation.images)?;
        let accuracy = class_accuracy(&seen.logits, classes, validation.labels)?;
        let gaussian = Gaussian::fit(&seen.features)?.prepared();
        let labels = balanced_labels(options.count, classes);
        let settings = EvalSettings {
            extractor: EXTRACTOR.into(),
            extractor_accuracy: accuracy,
            extractor_steps: None,
            extractor_seed: None,
            feature_dims: seen.features.dims(),
            data: options.data.clone(),
            data_fingerprint: String::new(),
            side: classifier.config().height,
            reference_count: seen.features.count(),
            count: labels.len(),
            seeds: options.seeds.clone(),
            neighbours: NEIGHBOURS,
            sampler: options.sampler.clone(),
        };
        let warnings = gaussian.warning().map(|w| format!("Validation images: {w}."));
        Ok(Self {
            backend,
            classifier,
            manifold: Manifold::new(seen.features, NEIGHBOURS)?,
            gaussian,
            labels,
            settings,
            floors: Vec::new(),
            held_out: None,
            warnings: warnings.into_iter().collect(),
        })
    }

    /// Measures the three floors: `reconstructions` of the validation images (with their `labels`),
    /// all training images, and a random subset of them of the size of the validation set.
    ///
    /// # Errors
    /// As for [`Evaluator::new`].
    pub fn measure_floors(
        &mut self,
        reconstructions: Labelled<'_>,
        training: Labelled<'_>,
    ) -> Result<(), EvalError> {
        let seen = self.classifier.extract(self.backend, reconstructions.images)?;
        let name = "validation images, reconstructed by the tokenizer";
        self.add_floor(name, &seen, reconstructions.labels)?;
        let seen = self.classifier.extract(self.backend, training.images)?;
        self.add_floor("all training images", &seen, training.labels)?;
        let few = self.settings.reference_count;
        if seen.features.count() > few {
            let (subset, labels) = self.subset(&seen, training.labels, few);
            self.add_floor("as many training images as validation images", &subset, &labels)?;
        }
        Ok(())
    }

    /// Chooses `count` images at random; the choice is always the same.
    fn subset(&self, seen: &Extracted, labels: &[u32], count: usize) -> (Extracted, Vec<u32>) {
        let classes = self.classifier.config().classes;
        let mut order: Vec<usize> = (0..seen.features.count()).collect();
        Stream::new(0, Purpose::Evaluation, 0).shuffle(&mut order);
        order.truncate(count);
        let logits = order
            .iter()
            .flat_map(|i| seen.logits.iter().skip(i * classes).take(classes))
            .copied()
            .collect();
        let labels = order.iter().filter_map(|&i| labels.get(i)).copied().collect();
        (Extracted { features: seen.features.select(&order), logits }, labels)
    }

    fn add_floor(&mut self, name: &str, seen: &Extracted, labels: &[u32]) -> Result<(), EvalError> {
        let [frechet, precision, recall] = self.compare(&seen.features)?;
        let classes = self.classifier.config().classes;
        self.floors.push(Floor {
            name: name.into(),
            count: seen.features.count(),
            frechet,
            precision,
            recall,
            class_accuracy: Some(class_accuracy(&seen.logits, classes, labels)?),
        });
        Ok(())
    }

    /// Computes Fréchet distance, precision and recall of a set against the validation images.
    fn compare(&self, features: &Features) -> Result<[f64; 3], EvalError> {
        let frechet = self.gaussian.distance(&Gaussian::fit(features)?)?;
        let precision = self.manifold.share_inside(features)?;
        let generated = Manifold::new(features.clone(), NEIGHBOURS)?;
        Ok([frechet, precision, generated.share_inside(self.manifold.features())?])
    }

    /// Measures quality at one guidance value: mean and spread over the seeds.
    ///
    /// # Errors
    /// The generator fails or does not return one image per label, there are no seeds, or features
    /// are not finite.
    pub fn measure(
        &self,
        generator: &mut impl Generate,
        guidance: f64,
    ) -> Result<SweepPoint, EvalError> {
        let mut columns: [Vec<f64>; 4] = Default::default();
        for &seed in &self.settings.seeds {
            let images = self.generate(generator, seed, guidance)?;
            let seen = self.classifier.extract(self.backend, &images)?;
            let classes = self.classifier.config().classes;
            let [frechet, precision, recall] = self.compare(&seen.features)?;
            let accuracy = class_accuracy(&seen.logits, classes, &self.labels)?;
            for (column, value) in columns.iter_mut().zip([frechet, precision, recall, accuracy]) {
                column.push(value);
            }
        }
        let [frechet, precision, recall, class_accuracy] = columns;
        Ok(SweepPoint {
            guidance,
            top_k: None,
            top_p: None,
            frechet: Measured::of(frechet)?,
            precision: Measured::of(precision)?,
            recall: Measured::of(recall)?,
            class_accuracy: Measured::of(class_accuracy)?,
        })
    }

    fn generate(
        &self,
        generator: &mut impl Generate,
        seed: u64,
        guidance: f64,
    ) -> Result<Vec<f32>, EvalError> {
        let count = self.labels.len();
        let images = generator
            .generate(&self.labels, seed, guidance)
            .map_err(|source| EvalError::Generator { count, seed, guidance, source })?;
        let expected = count * self.classifier.config().image_len();
        if images.len() != expected {
            let found = images.len();
            return Err(EvalError::Shape { what: "generated pixel values", expected, found });
        }
        Ok(images)
    }

    /// Measures at each guidance value, in ascending order; returns a report with floors and
    /// settings.
    ///
    /// # Errors
    /// As for [`Evaluator::measure`].
    pub fn sweep(
        &self,
        generator: &mut impl Generate,
        guidances: &[f64],
    ) -> Result<EvalReport, EvalError> {
        let mut sorted = guidances.to_vec();
        sorted.sort_by(f64::total_cmp);
        let points = sorted.iter().map(|g| self.measure(generator, *g));
        Ok(self.report(points.collect::<Result<_, _>>()?))
    }

    /// Returns the report of these measurements, with floors and settings.
    pub fn report(&self, points: Vec<SweepPoint>) -> EvalReport {
        EvalReport {
            settings: self.settings.clone(),
            floors: self.floors.clone(),
            points,
            held_out: self.held_out.clone(),
            warnings: self.warnings(),
        }
    }

    /// Returns everything that the numbers depend on.
    pub fn settings(&self) -> &EvalSettings {
        &self.settings
    }

    /// Returns the floors measured so far.
    pub fn floors(&self) -> &[Floor] {
        &self.floors
    }

    /// Returns what to keep in mind when reading the numbers.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        let (count, dims) = (self.settings.count, self.settings.feature_dims);
        if count <= dims {
            warnings.push(format!(
                "Only {count} generated images for {dims} feature dimensions: Fréchet distances are \
                 biased upwards; generate more than {dims}."
            ));
        }
        let accuracy = self.settings.extractor_accuracy;
        let chance = 1.0 / self.classifier.config().classes as f64;
        if accuracy < chance + LEARNT * (1.0 - chance) {
            warnings.push(format!(
                "The classifier tells {:.1} % of the validation images right, and guessing {:.1} %: its features, and \
                 every number by them, say little. More images, fewer classes or a larger eval.classifier_steps in the \
                 run's config.toml may help.",
                100.0 * accuracy,
                100.0 * chance
            ));
        }
        let held_out = self.settings.reference_count;
        if held_out < FEW {
            warnings.push(format!(
                "Only {held_out} validation images: precision and recall are rough; train with a \
                 larger data.val_fraction, or name a set that has a val/ of its own with --data."
            ));
        }
        if self.settings.seeds.len() == 1 {
            warnings.push("One sampling seed: the spread is unknown.".into());
        }
        warnings
    }

    /// Adds the losses on held-out images to every report from now on.
    pub fn add_held_out(&mut self, losses: HeldOutReport) {
        self.held_out = Some(losses);
    }

    /// Adds a sentence to [`Evaluator::warnings`].
    pub fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}

#[cfg(test)]
mod tests;
