//! The measures that papers report, in the features of the published Inception network: Inception
//! Score, Fréchet distance (FID), spatial Fréchet distance (sFID), precision and recall, as
//! computed from `.npz` files by the evaluator of openai/guided-diffusion.
//!
//! For precision and recall, that evaluator compares vectors in half precision as far as possible;
//! here they are compared in f64, which may change the third digit.

use super::NEIGHBOURS;
use crate::data::DataError;
use crate::data::npz::{MOST_NUMBERS, NpzReader, Numbers, save_numbers};
use crate::metrics::{
    Features, Gaussian, MetricsError, Moments, PrecisionRecall, inception_score, precision_recall,
};
use crate::model::inception::{Inception, InceptionError, Seen};
use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Number of images in each part of an Inception Score, as published.
const SCORE_PART: usize = 5000;

/// Name under which [`Reference::save`] stores the features of a reference's images.
const FEATURES: &str = "features";
/// Name for the number of images and their height and width; 0 means unknown.
const IMAGES: &str = "images";
/// Name for the first four bytes of the SHA-256 of the network's weights.
const NETWORK: &str = "network";

/// Why images cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishedError {
    /// The network failed.
    #[error(transparent)]
    Inception(#[from] InceptionError),
    /// A measure cannot be computed.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A file of statistics cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Statistics of another network's features.
    #[error(
        "its features are of other weights: their SHA-256 begins with {found:08x}, not {expected:08x}"
    )]
    Network {
        /// Of the network in use.
        expected: u32,
        /// Of the network that produced the reference.
        found: u32,
    },
    /// Statistics of a different number of features.
    #[error("{array} is of {found} features, expected {expected}, those of the network")]
    Width {
        /// Name of the array.
        array: &'static str,
        /// Number of features of the network.
        expected: usize,
        /// Number of features of the statistics.
        found: usize,
    },
}

/// Features of a set of images, collected batch by batch.
#[derive(Debug)]
pub struct Sight {
    /// Features `[n, 2048]`, in the type that the measures take.
    features: Vec<f64>,
    moments: Option<(Moments, Moments)>,
    dims: usize,
}

impl Sight {
    /// Creates an empty set with room for `count` images.
    pub fn new(inception: &Inception, count: usize) -> Self {
        let dims = inception.feature_dims();
        // Reserving all memory at once avoids copying while the vector grows.
        let mut features = Vec::new();
        let _ = features.try_reserve_exact(count.saturating_mul(dims));
        Self { features, moments: None, dims }
    }

    /// Number of images seen.
    pub fn count(&self) -> usize {
        self.features.len() / self.dims
    }

    /// Adds the features of further images.
    ///
    /// # Errors
    /// The features are not finite.
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
        self.features.extend(seen.features.iter().map(|&v| f64::from(v)));
        Ok(())
    }

    /// Computes mean and covariance of the pooled features, and of the spatial ones.
    ///
    /// # Errors
    /// There are fewer than two images.
    pub fn statistics(&self) -> Result<Statistics, MetricsError> {
        let metric = "frechet_distance";
        let none = MetricsError::TooFewSamples { metric, needed: 2, found: 0 };
        let (pooled, spatial) = self.moments.clone().ok_or(none)?;
        Ok(Statistics { pooled: pooled.gaussian()?, spatial: Some(spatial.gaussian()?) })
    }

    /// Reads what [`Reference::save`] stored for a network with this number of features; `None` if
    /// the file has none.
    ///
    /// # Errors
    /// The array has another shape, or values are not finite.
    pub fn of_file(file: &mut NpzReader, dims: usize) -> Result<Option<Self>, PublishedError> {
        if !file.has(FEATURES) {
            return Ok(None);
        }
        let (shape, features) = file.numbers(FEATURES)?;
        match shape.as_slice() {
            [_, found] if *found == dims => Ok(Some(Self { features, moments: None, dims })),
            shape => {
                let found = shape.last().copied().unwrap_or(0);
                Err(PublishedError::Width { array: FEATURES, expected: dims, found })
            }
        }
    }

    fn into_features(self) -> Result<Features, MetricsError> {
        Features::new(self.features, self.dims)
    }
}

/// Mean and covariance of a set's features, computed from its images or read from a file.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Of the pooled features, which FID compares.
    pub pooled: Gaussian,
    /// Of the spatial ones, which sFID compares, if known.
    pub spatial: Option<Gaussian>,
}

impl Statistics {
    /// Reads the statistics that a file holds in addition to images or instead of them: `mu` and
    /// `sigma`, and `mu_s` and `sigma_s` for the spatial features. Returns `None` if it has none.
    ///
    /// # Errors
    /// Arrays have other shapes, or values are not finite.
    pub fn of_file(file: &mut NpzReader) -> Result<Option<Self>, PublishedError> {
        let count = Self::images(file)?.map(|[count, ..]| count).filter(|count| *count > 0);
        let mut pair = |mean: &str, covariance: &str| -> Result<_, PublishedError> {
            if !file.has(mean) {
                return Ok(None);
            }
            let (_, mean) = file.numbers(mean)?;
            let (shape, covariance) = file.numbers(covariance)?;
            let (rows, columns) = match shape.as_slice() {
                [rows, columns] => (*rows, *columns),
                // Its dimensions will be reported as not those of a covariance.
                _ => (covariance.len(), 1),
            };
            let covariance = DMatrix::from_row_slice(rows, columns, &covariance);
            Ok(Some(Gaussian::of(DVector::from_vec(mean), covariance, count)?))
        };
        let Some(pooled) = pair("mu", "sigma")? else { return Ok(None) };
        Ok(Some(Self { pooled, spatial: pair("mu_s", "sigma_s")? }))
    }

    /// Reads the number of images and their height and width from a file that [`Reference::save`]
    /// wrote; 0 means unknown.
    ///
    /// # Errors
    /// The array cannot be read.
    pub fn images(file: &mut NpzReader) -> Result<Option<[usize; 3]>, PublishedError> {
        if !file.has(IMAGES) {
            return Ok(None);
        }
        let (_, about) = file.numbers(IMAGES)?;
        let about: Vec<usize> = about.into_iter().map(|number| number as usize).collect();
        Ok(about.try_into().ok())
    }

    /// Checks that a file that [`Reference::save`] wrote belongs to the network whose weights have
    /// a SHA-256 beginning with `expected`. Other files do not record it and are accepted.
    ///
    /// # Errors
    /// [`PublishedError::Network`].
    pub fn check_network(file: &mut NpzReader, expected: u32) -> Result<(), PublishedError> {
        if !file.has(NETWORK) {
            return Ok(());
        }
        match file.numbers(NETWORK)?.1.first() {
            Some(&found) if found != f64::from(expected) => {
                Err(PublishedError::Network { expected, found: found as u32 })
            }
            _ => Ok(()),
        }
    }

    /// Checks that the statistics have as many features as the network.
    ///
    /// # Errors
    /// [`PublishedError::Width`].
    pub fn fits(&self, inception: &Inception) -> Result<(), PublishedError> {
        let pooled = ("mu", inception.feature_dims(), Some(&self.pooled));
        let spatial = ("mu_s", inception.spatial_dims(), self.spatial.as_ref());
        for (array, expected, of) in [pooled, spatial] {
            if let Some(found) = of.map(|of| of.mean().len()).filter(|found| *found != expected) {
                return Err(PublishedError::Width { array, expected, found });
            }
        }
        Ok(())
    }
}

/// The reference that samples are compared with.
#[derive(Debug)]
pub struct Reference {
    statistics: Statistics,
    /// Features of its images, if available; precision and recall need them.
    images: Option<Sight>,
}

impl Reference {
    /// Creates a reference from statistics, images, or both; what the statistics lack is computed
    /// from the images.
    ///
    /// # Errors
    /// There are neither, or fewer than two images.
    pub fn new(known: Option<Statistics>, images: Option<Sight>) -> Result<Self, MetricsError> {
        let metric = "frechet_distance";
        // Features read from a file have no moments: their statistics were computed when it was
        // written.
        let looked = images.as_ref().filter(|sight| sight.moments.is_some());
        let seen = looked.map(Sight::statistics).transpose()?;
        let statistics = match (known, seen) {
            (Some(known), Some(seen)) => {
                Statistics { spatial: known.spatial.or(seen.spatial), ..known }
            }
            (known, seen) => {
                known.or(seen).ok_or(MetricsError::TooFewSamples { metric, needed: 2, found: 0 })?
            }
        };
        Ok(Self { statistics, images })
    }

    /// Writes the reference to an `.npz` file: `mu`, `sigma`, `mu_s` and `sigma_s`, as in published
    /// files, the features of its images for precision and recall, and an identifier of the
    /// network.
    ///
    /// `size` is height and width of the images, if known. Features are left out if they are too
    /// many to be read again; returns whether they were written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(
        &self,
        path: &Path,
        network: u32,
        size: Option<(usize, usize)>,
    ) -> Result<bool, PublishedError> {
        let Statistics { pooled, spatial } = &self.statistics;
        let mut arrays = Vec::new();
        let both = spatial.as_ref().map(|spatial| ("mu_s", "sigma_s", spatial));
        for (mean, covariance, of) in [("mu", "sigma", pooled)].into_iter().chain(both) {
            let (dims, values) = (of.mean().len(), of.mean().as_slice());
            arrays.push(Numbers { name: mean, shape: vec![dims], values, narrow: false });
            // The order does not matter for a covariance, which is its own transpose.
            let values = of.covariance().as_slice();
            arrays.push(Numbers {
                name: covariance,
                shape: vec![dims, dims],
                values,
                narrow: false,
            });
        }
        let images = self.images.as_ref().filter(|of| of.features.len() <= MOST_NUMBERS);
        if let Some(Sight { features: values, dims, .. }) = images {
            let shape = vec![values.len() / dims, *dims];
            // Stored in f32, as they were computed.
            arrays.push(Numbers { name: FEATURES, shape, values, narrow: true });
        }
        let about = [pooled.count(), size.map(|s| s.0), size.map(|s| s.1)];
        let about = about.map(|number| number.unwrap_or(0) as f64);
        arrays.push(Numbers { name: IMAGES, shape: vec![3], values: &about, narrow: false });
        let network = [f64::from(network)];
        arrays.push(Numbers { name: NETWORK, shape: vec![1], values: &network, narrow: false });
        save_numbers(path, &arrays)?;
        Ok(images.is_some())
    }

    /// Whether it has images, or at least their features.
    pub fn has_images(&self) -> bool {
        self.images.is_some()
    }

    /// Returns a warning if there are too few images for these statistics.
    pub fn warning(&self) -> Option<String> {
        self.statistics.pooled.warning()
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
    /// Share of the samples in the reference's manifold, if the features of its images are known.
    pub precision: Option<f64>,
    /// Share of the reference in the samples' manifold, under the same condition.
    pub recall: Option<f64>,
}

/// Measures samples against a reference.
///
/// # Errors
/// There are too few images, features are not finite, or the statistics have another number of
/// features.
pub fn scores(
    inception: &Inception,
    samples: Sight,
    reference: Reference,
) -> Result<Scores, PublishedError> {
    let Reference { statistics, images } = reference;
    let own = samples.statistics()?;
    let fid = statistics.pooled.distance(&own.pooled)?;
    let pair = statistics.spatial.as_ref().zip(own.spatial.as_ref());
    let sfid = pair.map(|(reference, own)| reference.distance(own)).transpose()?;
    let inception_score = score(inception, &samples)?;
    let shares = match images {
        Some(images) => {
            let (reference, generated) = (images.into_features()?, samples.into_features()?);
            let sets = PrecisionRecall { reference: &reference, generated: &generated };
            Some(precision_recall(sets, NEIGHBOURS)?)
        }
        None => None,
    };
    Ok(Scores {
        inception_score,
        fid,
        sfid,
        precision: shares.map(|(precision, _)| precision),
        recall: shares.map(|(_, recall)| recall),
    })
}

fn score(inception: &Inception, samples: &Sight) -> Result<f64, PublishedError> {
    let mut all = Vec::new();
    for part in samples.features.chunks(SCORE_PART * samples.dims) {
        // Back to f32, as they were computed.
        let part: Vec<f32> = part.iter().map(|&v| v as f32).collect();
        let probabilities = inception.probabilities(&part)?;
        all.push(inception_score(&probabilities, inception.classes(), 1)?.mean);
    }
    Ok(all.iter().sum::<f64>() / all.len().max(1) as f64)
}
