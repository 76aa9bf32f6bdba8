//! A small convolutional classifier whose features stand in for Inception's.
//!
//! Distances between generated and real images are taken in the features before its last layer. It
//! is trained on the training images of the run itself, so its numbers compare generators *of the
//! same data set* with each other, but not with published numbers.
//!
//! Per stage: convolution 3×3 of stride 2 and one of stride 1, each followed by group norm and SiLU;
//! then the mean over all positions and one linear layer. The features are the [`FEATURES`] sums over
//! the n positions, divided by √n.

mod network;
mod train;

pub use network::{Network, Workspace};
pub use train::{ClassifierTraining, TrainedClassifier};

use crate::metrics::{Features, MetricsError};
use crate::params::Layout;
use sar_math::Real as _;
use sar_math::backend::{BackendError, LossOps, OptimizerOps, TokenizerOps, TransformerOps};
use thiserror::Error;

/// Description of the features, written wherever a number depends on them.
pub const EXTRACTOR: &str = "features of a small classifier trained on the training images; not \
                             Inception; comparable only within this data set";

/// Number of features before the last layer.
pub const FEATURES: usize = 64;

/// Channels of the first stage; later ones have [`FEATURES`]. Twice as many take 50 % more time and
/// distinguish glyphs no better.
const FIRST_STAGE: usize = 16;
/// Groups of the norms: 2 or 8 channels each.
const GROUPS: usize = 8;
/// Stages halve the map until its longer side is at most this.
const SMALLEST_SIDE: usize = 8;
/// Images per forward pass when features are extracted: enough to keep all threads busy.
const EXTRACT_BATCH: usize = 256;

/// What the classifier needs of a backend.
pub trait ClassifierOps: TransformerOps + LossOps + TokenizerOps + OptimizerOps {}

impl<T: TransformerOps + LossOps + TokenizerOps + OptimizerOps> ClassifierOps for T {}

/// Shape of the images and of the network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// Channels of an image.
    pub channels: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Number of classes to distinguish.
    pub classes: usize,
    /// Channels of each stage; the last is [`FEATURES`].
    pub stages: Vec<usize>,
    /// Groups of every norm; divides each stage's channels.
    pub groups: usize,
}

impl ClassifierConfig {
    /// Returns the network for images of this shape: stages are added until the longer side is 8 or
    /// less.
    pub fn for_images(channels: usize, height: usize, width: usize, classes: usize) -> Self {
        let mut stages = vec![FIRST_STAGE];
        let mut side = height.max(width).div_ceil(2);
        while side > SMALLEST_SIDE || stages.len() < 2 {
            stages.push(FEATURES);
            side = side.div_ceil(2);
        }
        Self { channels, height, width, classes, stages, groups: GROUPS }
    }

    /// Number of values of an image.
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Checks that the network can be built.
    ///
    /// # Errors
    /// [`ClassifierError::Config`], which names the invalid quantity.
    pub fn validate(&self) -> Result<(), ClassifierError> {
        let bad = |what: &'static str, found: usize| Err(ClassifierError::Config { what, found });
        match self {
            c if c.channels == 0 => bad("channels must be at least 1", c.channels),
            c if c.height == 0 => bad("height must be at least 1", c.height),
            c if c.width == 0 => bad("width must be at least 1", c.width),
            c if c.classes < 2 => bad("needs at least 2 classes to tell apart", c.classes),
            c if c.stages.is_empty() => bad("needs at least 1 stage", 0),
            c if c.groups == 0 => bad("groups must be at least 1", 0),
            c => match c.stages.iter().find(|s| **s == 0 || **s % c.groups != 0) {
                Some(&found) => bad("groups must divide the channels of every stage", found),
                None => Ok(()),
            },
        }
    }
}

/// Why a classifier cannot be built, trained or run.
#[derive(Debug, Error)]
pub enum ClassifierError {
    /// The backend failed.
    #[error("classifier: {0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A network that cannot be built.
    #[error("classifier: {what}, found {found}")]
    Config {
        /// The rule.
        what: &'static str,
        /// What was given.
        found: usize,
    },
    /// Images or labels that do not fit the network or each other.
    #[error("classifier: {what}: expected {expected}, found {found}")]
    Data {
        /// Which quantity.
        what: &'static str,
        /// What it should be.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// A label that is not a class.
    #[error("classifier: label {label} of image {image} is not below the {classes} classes")]
    Label {
        /// The image.
        image: usize,
        /// Its label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// Training produced numbers that are not finite.
    #[error(
        "classifier: the loss is not finite at step {step}; check that pixels lie in -1..1, or \
         lower the learning rate"
    )]
    Diverged {
        /// The step.
        step: u64,
    },
    /// Features that are not finite.
    #[error("classifier: {0}")]
    Metrics(#[from] MetricsError),
}

impl<E: BackendError> From<E> for ClassifierError {
    fn from(error: E) -> Self {
        Self::Backend(Box::new(error))
    }
}

/// Features and logits of a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Extracted {
    /// `[n, FEATURES]`.
    pub features: Features,
    /// `[n, classes]`, row-major.
    pub logits: Vec<f64>,
}

impl Extracted {
    /// Returns the softmax of the logits, `[n, classes]`.
    pub fn probabilities(&self) -> Vec<f64> {
        let classes = self.logits.len() / self.features.count().max(1);
        let mut out = self.logits.clone();
        for row in out.chunks_exact_mut(classes.max(1)) {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|v| *v = (*v - largest).exp());
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum);
        }
        out
    }
}

/// A network with weights.
pub struct Classifier<B: ClassifierOps> {
    network: Network,
    params: B::Params,
}

impl<B: ClassifierOps> Classifier<B> {
    /// Creates a network with random weights, which are the same for the same seed.
    ///
    /// # Errors
    /// The network cannot be built, or the backend failed.
    pub fn new(backend: &B, config: ClassifierConfig, seed: u64) -> Result<Self, ClassifierError> {
        let network = Network::new(config)?;
        let host: Vec<B::Host> = network.initial(seed).into_iter().map(B::Host::of).collect();
        let mut params = backend.params(host.len())?;
        backend.upload_params(&host, &mut params, 0)?;
        Ok(Self { network, params })
    }

    /// Shape of images and network.
    pub fn config(&self) -> &ClassifierConfig {
        self.network.config()
    }

    /// Names, shapes and places of the weights.
    pub fn layout(&self) -> &Layout {
        self.network.layout()
    }

    /// Returns all weights in the order of the layout.
    ///
    /// # Errors
    /// The backend failed.
    pub fn weights(&self, backend: &B) -> Result<Vec<f64>, ClassifierError> {
        let mut host = vec![B::Host::default(); self.layout().len()];
        backend.download_params(&self.params, 0, &mut host)?;
        Ok(host.into_iter().map(|v| v.wide()).collect())
    }

    /// Returns features and logits of `images`, `[n, channels, height, width]` in −1..1.
    ///
    /// # Errors
    /// There are no images, the last one is incomplete, or values are not finite.
    pub fn extract(&self, backend: &B, images: &[f32]) -> Result<Extracted, ClassifierError> {
        let len = self.config().image_len();
        let count = whole_images(images, len)?;
        let classes = self.config().classes;
        let batch = count.min(EXTRACT_BATCH);
        let mut space = Workspace::new(backend, &self.network, batch)?;
        let mut features = Vec::with_capacity(count * FEATURES);
        let mut logits = Vec::with_capacity(count * classes);
        for chunk in images.chunks(batch * len) {
            self.network.extract(
                backend,
                &self.params,
                chunk,
                &mut space,
                &mut features,
                &mut logits,
            )?;
        }
        let dims = self.network.feature_dims();
        Ok(Extracted { features: Features::new(features, dims)?, logits })
    }

    /// Returns the share of images that are classified correctly.
    ///
    /// # Errors
    /// As for [`Classifier::extract`], or the number of labels does not match that of the images.
    pub fn accuracy(
        &self,
        backend: &B,
        images: &[f32],
        labels: &[u32],
    ) -> Result<f64, ClassifierError> {
        let found = self.extract(backend, images)?;
        Ok(crate::metrics::class_accuracy(&found.logits, self.config().classes, labels)?)
    }
}

/// Number of images of `len` values in a flat slice; at least one.
fn whole_images(images: &[f32], len: usize) -> Result<usize, ClassifierError> {
    if images.is_empty() || !images.len().is_multiple_of(len) {
        let expected = images.len().next_multiple_of(len).max(len);
        let what = "values of whole images";
        return Err(ClassifierError::Data { what, expected, found: images.len() });
    }
    Ok(images.len() / len)
}

#[cfg(test)]
mod tests;
