//! What a file that a tokenizer made of images was made from.

use super::augment::Augment;
use serde::{Deserialize, Serialize};

/// What latents or tokens were made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// SHA-256 of the tokenizer's weights.
    pub tokenizer: String,
    /// SHA-256 of the names and labels of the images; see [`Data::fingerprint`](super::Data::fingerprint).
    pub images: String,
    /// How training images were cut.
    pub augment: Augment,
    /// Seed of the cuts.
    pub seed: u64,
}

impl Origin {
    /// Says what these were made from that `wanted` is not to be made from, seeds aside; `None` if nothing. `what` names
    /// them, and `who` the one that wants them.
    pub(super) fn difference(&self, wanted: &Self, what: &str, who: &str) -> Option<String> {
        if self.tokenizer != wanted.tokenizer {
            return Some(format!("these are {what} of another tokenizer"));
        }
        if self.images != wanted.images {
            return Some(format!(
                "these are {what} of other images, or others of them were held out"
            ));
        }
        (self.augment != wanted.augment).then(|| {
            let cut = |of: &Augment| {
                let Augment { side, crop, flip, shift } = of;
                let crop = format!("{crop:?}").to_lowercase();
                format!("data.image_side={side} crop={crop} flip={flip} shift={shift}")
            };
            let (made, wanted) = (cut(&self.augment), cut(&wanted.augment));
            let sets = wanted.replace(' ', " --set data.");
            format!("their images were cut by {made}, and {who} says {wanted}: --set {sets}")
        })
    }
}
