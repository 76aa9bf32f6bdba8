//! What a file that a tokenizer made of images was made from.

use super::augment::Augment;
use serde::{Deserialize, Serialize};

/// What latents or tokens were made from, and by what.
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
    /// Backend and number type, as `cpu f32`; empty if not recorded.
    #[serde(default)]
    pub computed: String,
}

impl Origin {
    /// Says in which of tokenizer, images and cuts this origin of `what` differs from the one that `who` (a run, a call)
    /// asks for; `None` if in none.
    pub(super) fn difference(&self, asked: &Self, what: &str, who: &str) -> Option<String> {
        if self.tokenizer != asked.tokenizer {
            return Some(format!("these are {what} of another tokenizer"));
        }
        if self.images != asked.images {
            return Some(format!(
                "these are {what} of other images, or others of them were held out"
            ));
        }
        let (made, asked) = (&self.augment, &asked.augment);
        (made != asked).then(|| {
            let [made, asked] = [made, asked].map(|cut| cut.settings().join(" "));
            format!("their images were cut by {made}, and {who} says {asked}")
        })
    }
}
