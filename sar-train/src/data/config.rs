//! The `[data]` section of a configuration file.

use super::{Augment, Crop, DataError, glyphs};
use crate::files::has_extension;
use documented::DocumentedFields;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the images are and how they are used; the `[data]` table of a configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// A folder, a list file, a tar archive or a glyph sheet. Exactly one of `path` and `builtin` is given.
    pub path: Option<PathBuf>,
    /// A set inside the program: `glyphs10`.
    pub builtin: Option<String>,
    /// Side of the square images, in pixels. Default 32, which the default tokenizer (a factor of 4)
    /// and schedule (up to 8×8) draw on a CPU; published: 256.
    pub image_side: usize,
    /// Share of each class held out for validation where the source names none.
    pub val_fraction: f64,
    /// Chooses the images held out. Keep it between a base and its refinement: another value lets
    /// training see what validation measures.
    pub split_seed: u64,
    /// Number of classes of the model; labels at or above it are errors. Without it: as found.
    pub num_classes: Option<usize>,
    /// Mirror half of the training images; off for anything with writing on it.
    pub flip: bool,
    /// How training images are cut: `random` as published, or `center`.
    pub crop: Crop,
    /// Shift training images by up to this many pixels each way.
    pub shift: usize,
    /// Take a folder without classes as one class.
    pub unlabelled: bool,
    /// Train on only this many images, spread evenly over the set: to try something, or to see that a model
    /// learns a few by heart. Without it: on all. `refine` and `tokenizer encode` keep it; `sar eval` does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Accept data of a single class.
    pub allow_one_class: bool,
    /// Count bad images instead of stopping at the first, and leave out class folders without images.
    pub skip_bad_images: bool,
    /// Images of more pixels are refused before anything is allocated for them.
    pub max_pixels: u64,
    /// Decoding threads; 0 picks up to 8 by the machine.
    pub workers: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: None,
            builtin: None,
            image_side: glyphs::CELL,
            val_fraction: 0.05,
            split_seed: 0,
            num_classes: None,
            flip: true,
            crop: Crop::Random,
            shift: 0,
            unlabelled: false,
            limit: None,
            allow_one_class: false,
            skip_bad_images: false,
            max_pixels: 64_000_000,
            workers: 0,
        }
    }
}

impl DataConfig {
    /// Returns the embedded ten glyph classes with the recipe of the demo: 32 px, no flip, no crop,
    /// shifted by up to a pixel each way.
    pub fn glyphs10() -> Self {
        Self { builtin: Some(glyphs::BUILTIN.into()), ..Self::glyph_recipe() }
    }

    /// Returns the configuration for a command-line argument: `builtin:glyphs10` (or just
    /// `glyphs10`) or a path.
    ///
    /// A PNG file is taken as a glyph sheet and gets the glyph recipe, everything else the
    /// published one.
    pub fn from_argument(argument: &str) -> Self {
        if argument == glyphs::BUILTIN {
            return Self::glyphs10();
        }
        if let Some(name) = argument.strip_prefix("builtin:") {
            return Self { builtin: Some(name.into()), ..Self::glyph_recipe() };
        }
        let path = PathBuf::from(argument);
        let sheet = has_extension(&path, "png");
        let recipe = if sheet { Self::glyph_recipe() } else { Self::default() };
        Self { path: Some(path), ..recipe }
    }

    /// Returns this section with other images. If nothing has been set, the recipe for `argument`
    /// is used; otherwise this section's settings are kept.
    pub fn with_source(&self, argument: &str) -> Self {
        let named = Self::from_argument(argument);
        if *self == Self::default() {
            return named;
        }
        Self { path: named.path, builtin: named.builtin, ..self.clone() }
    }

    fn glyph_recipe() -> Self {
        Self {
            image_side: glyphs::CELL,
            flip: false,
            crop: Crop::Center,
            shift: 1,
            ..Self::default()
        }
    }

    /// Returns how training images are cropped and augmented.
    pub fn augment(&self) -> Augment {
        Augment { side: self.image_side, crop: self.crop, flip: self.flip, shift: self.shift }
    }

    /// Checks only the image side, for when there are no images yet.
    ///
    /// # Errors
    /// [`DataError::Config`], which names the key.
    pub(crate) fn validate_side(&self) -> Result<(), DataError> {
        if (1..=MAX_SIDE).contains(&self.image_side) {
            return Ok(());
        }
        let reason = format!("expected 1 to {MAX_SIDE} pixels, found {}", self.image_side);
        Err(DataError::Config { key: "image_side", reason })
    }

    /// Checks the values, also against each other.
    ///
    /// # Errors
    /// [`DataError::Config`], which names the key.
    pub fn validate(&self) -> Result<(), DataError> {
        let fail = |key: &'static str, reason: String| Err(DataError::Config { key, reason });
        match (&self.path, &self.builtin) {
            (None, None) => {
                return fail(
                    "path",
                    "no data given; name a folder, list file, tar archive or glyph sheet with --data, or set \
                     `path` to it, or `builtin = \"glyphs10\"`"
                        .into(),
                );
            }
            (Some(_), Some(_)) => {
                return fail("path", "both `path` and `builtin` are given; keep one".into());
            }
            _ => {}
        }
        self.validate_side()?;
        if !(0.0..=0.9).contains(&self.val_fraction) {
            let reason = format!("expected 0 to 0.9, found {}", self.val_fraction);
            return fail("val_fraction", reason);
        }
        if self.shift >= self.image_side {
            let reason = format!(
                "expected less than the image side {}, found {}",
                self.image_side, self.shift
            );
            return fail("shift", reason);
        }
        if self.max_pixels == 0 || self.max_pixels > MAX_PIXELS {
            let reason = format!("expected 1 to {MAX_PIXELS}, found {}", self.max_pixels);
            return fail("max_pixels", reason);
        }
        if self.limit == Some(0) {
            return fail("limit", "expected 1 or more, found 0".into());
        }
        if let Some(n) = self.num_classes.filter(|n| !(1..=MAX_CLASSES).contains(n)) {
            return fail("num_classes", format!("expected 1 to {MAX_CLASSES}, found {n}"));
        }
        if self.workers > MAX_WORKERS {
            let reason = format!("expected at most {MAX_WORKERS}, found {}", self.workers);
            return fail("workers", reason);
        }
        Ok(())
    }
}

/// Largest image side; a batch of one such image takes 800 MB.
const MAX_SIDE: usize = 8192;
/// Largest `max_pixels`: 16-bit RGBA of this size takes 8 GB to decode.
const MAX_PIXELS: u64 = 1_000_000_000;
/// More classes than this are taken for a typing error.
const MAX_CLASSES: usize = 1 << 24;
/// More decoding threads than this are taken for a typing error.
const MAX_WORKERS: usize = 256;
