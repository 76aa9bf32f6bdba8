//! From a data set to an evaluator: trains the classifier, looks at the validation images, measures
//! the floors.

use super::{AnyError, EvalError, EvalOptions, Evaluator, Labelled};
use crate::data::{Batch, Data, Dataset};
use crate::model::classifier::{Classifier, ClassifierConfig, ClassifierOps, ClassifierTraining};
use sar_math::philox::{Purpose, Stream};

/// Number of channels of a data set's images.
const CHANNELS: usize = 3;
/// Maximum number of pixel values of a set held at once; of a larger set a random choice is used
/// and reported.
const MOST_VALUES: usize = 128 << 20;

/// Trains the classifier on the training images of `data` and measures the floors against its
/// validation images.
///
/// `reconstruct` takes images `[n, 3, s, s]` through the tokenizer and back. `on_step` is called
/// after each step of the classifier's training.
///
/// # Errors
/// There are no validation images, images cannot be read, or the classifier or the tokenizer fails.
pub fn prepare<'a, B: ClassifierOps>(
    backend: &'a B,
    data: &Data,
    training: &ClassifierTraining,
    options: &EvalOptions,
    reconstruct: impl FnOnce(&[f32]) -> Result<Vec<f32>, AnyError>,
    on_step: impl FnMut(u64),
) -> Result<Evaluator<'a, B>, EvalError> {
    if data.validation.is_empty() {
        let what = "validation images (set data.val_fraction)";
        return Err(EvalError::Shape { what, expected: 1, found: 0 });
    }
    if data.classes.len() < 2 {
        return Err(EvalError::OneClass);
    }
    let (train, left_out) = collect(&data.train)?;
    let side = data.train.side();
    let config = ClassifierConfig::for_images(CHANNELS, side, side, data.classes.len());
    let (images, labels) = (&train.values_b, &train.labels_b);
    let trained = Classifier::train(backend, config, training, images, labels, on_step)?;
    let (validation, left_out_validation) = collect(&data.validation)?;
    let labels = &validation.labels_b;
    let seen = Labelled { images: &validation.values_b, labels };
    let mut evaluator = Evaluator::new(backend, trained.classifier, seen, options)?;
    evaluator.settings.data_fingerprint = data.held_out_fingerprint();
    evaluator.settings.extractor_steps = Some(training.steps);
    evaluator.settings.extractor_seed = Some(training.seed);
    let found = reconstruct(&validation.values_b).map_err(EvalError::Reconstruction)?;
    let expected = validation.values_b.len();
    if found.len() != expected {
        let found = found.len();
        return Err(EvalError::Shape { what: "reconstructed pixel values", expected, found });
    }
    let reconstructions = Labelled { images: &found, labels };
    let training = Labelled { images: &train.values_b, labels: &train.labels_b };
    evaluator.measure_floors(reconstructions, training)?;
    for (name, left_out) in [("training", left_out), ("validation", left_out_validation)] {
        if left_out > 0 {
            evaluator.warn(format!("{left_out} {name} images, chosen at random, were left out."));
        }
    }
    Ok(evaluator)
}

/// Returns the images of a set, or a random choice of them, and the number of images left out.
fn collect(set: &Dataset) -> Result<(Batch, usize), EvalError> {
    let each = CHANNELS * set.side() * set.side();
    let most = (MOST_VALUES / each.max(1)).max(1);
    let mut order: Vec<usize> = (0..set.len()).collect();
    if set.len() > most {
        Stream::new(0, Purpose::Evaluation, 1).shuffle(&mut order);
        order.truncate(most);
        order.sort_unstable();
    }
    Ok((set.select(&order)?, set.len() - order.len()))
}
