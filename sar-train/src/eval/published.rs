//! The measures that papers give, in the features of the published Inception network: Inception Score, Fréchet
//! distance (FID), spatial Fréchet distance (sFID), precision and recall, as the evaluator of
//! openai/guided-diffusion takes them of `.npz` files.

use super::NEIGHBOURS;
use crate::data::DataError;
use crate::data::npz::NpzReader;
use crate::metrics::{
    Features, Gaussian, MetricsError, Moments, PrecisionRecall, inception_score, precision_recall,
};
use crate::model::inception::{Inception, InceptionError, Seen};
use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};

/// Images in each part of an Inception Score, as published.
const SCORE_PART: usize = 5000;

/// Why images cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishedError {
    /// The network failed.
    #[error(transparent)]
    Inception(#[from] InceptionError),
    /// A measure cannot be taken.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A file of statistics cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// What the network saw of a set of images, taken up batch by batch.
#[derive(Debug)]
pub struct Sight {
    /// `[n, 2048]`.
    features: Vec<f32>,
    moments: Option<(Moments, Moments)>,
    dims: usize,
}

impl Sight {
    /// Of no images as yet.
    pub fn new(inception: &Inception) -> Self {
        Self { features: Vec::new(), moments: None, dims: inception.feature_dims() }
    }

    /// Images seen.
    pub fn count(&self) -> usize {
        self.features.len() / self.dims
    }

    /// Adds what the network saw of further images.
    ///
    /// # Errors
    /// Features that are not finite.
    pub fn add(&mut self, seen: &Seen) -> Result<(), MetricsError> {
        let count = seen.features.len() / self.dims;
        if count == 0 {
            return Ok(());
        }
        let (pooled, spatial) = self.moments.get_or_insert_with(|| {
            (Moments::new(self.dims), Moments::new(seen.spatial.len() / count))
        });
        pooled.add(&seen.features)?;
        spatial.add(&seen.spatial)?;
        self.features.extend_from_slice(&seen.features);
        Ok(())
    }

    /// Mean and covariance of the pooled features, and of the spatial ones.
    ///
    /// # Errors
    /// Fewer than two images.
    pub fn statistics(&self) -> Result<Statistics, MetricsError> {
        let metric = "frechet_distance";
        let none = MetricsError::TooFewSamples { metric, needed: 2, found: 0 };
        let (pooled, spatial) = self.moments.clone().ok_or(none)?;
        Ok(Statistics { pooled: pooled.gaussian()?, spatial: Some(spatial.gaussian()?) })
    }

    fn wide(&self) -> Result<Features, MetricsError> {
        Features::new(self.features.iter().map(|&v| f64::from(v)).collect(), self.dims)
    }
}

/// Mean and covariance of a set's features: of its images, or from a file.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Of the pooled features, which FID compares.
    pub pooled: Gaussian,
    /// Of the spatial ones, which sFID compares, where they are known.
    pub spatial: Option<Gaussian>,
}

impl Statistics {
    /// Those that a file holds beside or in place of images: `mu` and `sigma`, and `mu_s` and `sigma_s` of the
    /// spatial features. `None` where it has none.
    ///
    /// # Errors
    /// Arrays of other shapes; values that are not finite.
    pub fn of_file(file: &mut NpzReader) -> Result<Option<Self>, PublishedError> {
        let mut pair = |mean: &str, covariance: &str| -> Result<_, PublishedError> {
            if !file.has(mean) {
                return Ok(None);
            }
            let (_, mean) = file.numbers(mean)?;
            let (shape, covariance) = file.numbers(covariance)?;
            let (rows, columns) = match shape.as_slice() {
                [rows, columns] => (*rows, *columns),
                // The lengths say that it is none.
                _ => (covariance.len(), 1),
            };
            let covariance = DMatrix::from_row_slice(rows, columns, &covariance);
            Ok(Some(Gaussian::of(DVector::from_vec(mean), covariance, None)?))
        };
        let Some(pooled) = pair("mu", "sigma")? else { return Ok(None) };
        Ok(Some(Self { pooled, spatial: pair("mu_s", "sigma_s")? }))
    }
}

/// The published measures of a set of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Mean over parts of 5,000 consecutive images; higher is better.
    pub inception_score: f64,
    /// Fréchet distance in the pooled features; lower is better.
    pub fid: f64,
    /// Fréchet distance in the spatial features.
    pub sfid: Option<f64>,
    /// Share of the samples in the reference's manifold, where its images are at hand.
    pub precision: Option<f64>,
    /// Share of the reference in the samples' manifold, likewise.
    pub recall: Option<f64>,
}

/// Measures samples against a reference: its statistics, and what the network saw of its images, where they are
/// at hand.
///
/// # Errors
/// Too few images; features that are not finite; statistics of another width.
pub fn scores(
    inception: &Inception,
    samples: &Sight,
    reference: &Statistics,
    reference_images: Option<&Sight>,
) -> Result<Scores, PublishedError> {
    let own = samples.statistics()?;
    let fid = reference.pooled.distance(&own.pooled)?;
    let pair = reference.spatial.as_ref().zip(own.spatial.as_ref());
    let sfid = pair.map(|(reference, own)| reference.distance(own)).transpose()?;
    let sets =
        reference_images.map(|images| Ok::<_, MetricsError>((images.wide()?, samples.wide()?)));
    let shares = match sets.transpose()? {
        Some((reference, generated)) => {
            let sets = PrecisionRecall { reference: &reference, generated: &generated };
            Some(precision_recall(sets, NEIGHBOURS)?)
        }
        None => None,
    };
    Ok(Scores {
        inception_score: score(inception, samples)?,
        fid,
        sfid,
        precision: shares.map(|(precision, _)| precision),
        recall: shares.map(|(_, recall)| recall),
    })
}

fn score(inception: &Inception, samples: &Sight) -> Result<f64, PublishedError> {
    let mut all = Vec::new();
    for part in samples.features.chunks(SCORE_PART * samples.dims) {
        let probabilities = inception.probabilities(part)?;
        all.push(inception_score(&probabilities, inception.classes(), 1)?.mean);
    }
    Ok(all.iter().sum::<f64>() / all.len().max(1) as f64)
}
