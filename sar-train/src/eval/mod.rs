//! Measures a generator against validation images, with the floors beside it.
//!
//! The features are those of a small classifier ([`crate::model::classifier`]); what the numbers
//! depend on is kept beside them in [`EvalSettings`]. Three floors say what a number means: the
//! validation images after the tokenizer, the training images, and as many training images as there
//! are validation images (so few samples alone cost some distance).

mod prepare;
mod published;
mod result;

pub use prepare::prepare;
pub use published::{PublishedError, Reference, Scores, Sight, Statistics, scores};
pub use result::{EvalReport, EvalSettings, Floor, SamplerSettings, SweepPoint};

use crate::metrics::{Features, Gaussian, Manifold, Measured, MetricsError, class_accuracy};
use crate::model::classifier::{Classifier, ClassifierError, ClassifierOps, EXTRACTOR, Extracted};
use sar_math::philox::{Purpose, Stream};
use thiserror::Error;

/// Neighbours of the manifolds, as published.
pub(crate) const NEIGHBOURS: usize = 3;
/// A manifold of fewer images is mostly gaps.
const FEW: usize = 100;

/// Any error, boxed: what a generator may fail with.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Why an evaluation failed.
#[derive(Debug, Error)]
pub enum EvalError {
    /// The classifier.
    #[error(transparent)]
    Classifier(#[from] ClassifierError),
    /// A measure.
    #[error("evaluation: {0}")]
    Metrics(#[from] MetricsError),
    /// Images of the data set.
    #[error("evaluation: {0}")]
    Data(#[from] crate::data::DataError),
    /// The tokenizer.
    #[error("evaluation: reconstructing the validation images: {0}")]
    Reconstruction(#[source] AnyError),
    /// The generator.
    #[error(
        "evaluation: generating {count} images of seed {seed} at guidance {guidance}: {source}"
    )]
    Generator {
        /// Images asked for.
        count: usize,
        /// Their seed.
        seed: u64,
        /// Their guidance.
        guidance: f64,
        /// What the generator said.
        source: AnyError,
    },
    /// There is nothing to train the classifier to tell apart.
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
    /// Flat pixels.
    pub images: &'a [f32],
    /// One per image.
    pub labels: &'a [u32],
}

/// Makes images to measure; any `FnMut(labels, seed, guidance) -> images` does.
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
    /// Images per seed; rounded up to a multiple of the classes, so that all have as many.
    pub count: usize,
    /// Seeds of the sampler.
    pub seeds: Vec<u64>,
    /// Which images are compared with, in words; as the next, to be written beside the numbers.
    pub data: String,
    /// How the sampler is set.
    pub sampler: SamplerSettings,
}

/// `count` labels, rounded up to whole rounds of all classes: 0, 1, 2, …, 0, 1, 2, …
pub fn balanced_labels(count: usize, classes: usize) -> Vec<u32> {
    let classes = classes.max(1);
    (0..count.next_multiple_of(classes)).map(|i| (i % classes) as u32).collect()
}

/// A classifier, and the validation images as it sees them, computed once.
pub struct Evaluator<'a, B: ClassifierOps> {
    backend: &'a B,
    classifier: Classifier<B>,
    gaussian: Gaussian,
    manifold: Manifold<'static>,
    labels: Vec<u32>,
    settings: EvalSettings,
    floors: Vec<Floor>,
    warnings: Vec<String>,
}

impl<'a, B: ClassifierOps> Evaluator<'a, B> {
    /// Takes the features of the validation images.
    ///
    /// # Errors
    /// Images of another shape than the classifier's, too few of them, labels that do not match.
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
            warnings: warnings.into_iter().collect(),
        })
    }

    /// Measures the three floors: `reconstructions` of the validation images (with their `labels`),
    /// all training images, and an equal-count random subset of them.
    ///
    /// # Errors
    /// As [`Evaluator::new`].
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

    /// A random choice of `count` images, the same every time.
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

    /// Fréchet distance, precision, recall of a set against the validation images.
    fn compare(&self, features: &Features) -> Result<[f64; 3], EvalError> {
        let frechet = self.gaussian.distance(&Gaussian::fit(features)?)?;
        let precision = self.manifold.share_inside(features)?;
        let generated = Manifold::new(features.clone(), NEIGHBOURS)?;
        Ok([frechet, precision, generated.share_inside(self.manifold.features())?])
    }

    /// Quality at one guidance value: mean and spread over the seeds.
    ///
    /// # Errors
    /// The generator's, images that are not one per label, no seeds, features that are not finite.
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

    /// Measures at each guidance value, in ascending order, and reports with floors and settings.
    ///
    /// # Errors
    /// As [`Evaluator::measure`].
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

    /// What was measured, with floors and settings.
    pub fn report(&self, points: Vec<SweepPoint>) -> EvalReport {
        EvalReport {
            settings: self.settings.clone(),
            floors: self.floors.clone(),
            points,
            warnings: self.warnings(),
        }
    }

    /// Everything the numbers depend on.
    pub fn settings(&self) -> &EvalSettings {
        &self.settings
    }

    /// The floors measured so far.
    pub fn floors(&self) -> &[Floor] {
        &self.floors
    }

    /// What to keep in mind when reading the numbers.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        let (count, dims) = (self.settings.count, self.settings.feature_dims);
        if count <= dims {
            warnings.push(format!(
                "Only {count} generated images for {dims} feature dimensions: Fréchet distances are \
                 biased upwards; generate more than {dims}."
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

    /// Adds a sentence to [`Evaluator::warnings`].
    pub fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}

#[cfg(test)]
mod tests;
