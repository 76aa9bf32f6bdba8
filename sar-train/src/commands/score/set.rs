//! Images to be measured, wherever they are: in an array, a folder that `sar sample` wrote, or a source of data.

use crate::cli::ScoreArgs;
use crate::commands::samples::SampleFolder;
use crate::data::grid::{self, file_name, pixels};
use crate::data::npz::{IMAGES, NpzReader};
use crate::data::{self, Crop, DataConfig, DataError, Dataset};
use crate::files::has_extension;
use anyhow::Context as _;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

/// Description of a set of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ImageSet {
    /// Where they were read from.
    pub source: String,
    /// Number of images.
    pub count: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl fmt::Display for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, count, height, width } = self;
        write!(f, "{source}: {count} images of {height}×{width} px")
    }
}

/// Images that have yet to be read.
pub(super) struct Images {
    pub about: ImageSet,
    /// The record next to them, if `sar sample` made them.
    pub made: Option<Value>,
    source: Source,
}

enum Source {
    Array(NpzReader),
    /// A folder with `000000.png` and so on.
    Samples(PathBuf),
    /// Data sets, one after the other.
    Data(Vec<Dataset>),
}

/// Whether a file has the extension of an array.
pub(super) fn is_npz(source: &str) -> bool {
    has_extension(Path::new(source), "npz")
}

/// Opens the samples, and the reference's images unless its file has only `statistics`. Images that
/// are to be cut are cut to `--image-side`, or to the size of the other set.
pub(super) fn open(args: &ScoreArgs, statistics: bool) -> anyhow::Result<(Images, Option<Images>)> {
    let alone = statistics && !NpzReader::open(Path::new(&args.reference))?.has(IMAGES);
    let samples = as_made(&args.samples)?;
    let reference = if alone { None } else { as_made(&args.reference)? };
    anyhow::ensure!(
        args.image_side.is_none() || samples.is_none() || (reference.is_none() && !alone),
        "--image-side is for images of any size, and these have one: they are measured as they are"
    );
    let square = |images: &Images| {
        let ImageSet { height, width, .. } = images.about;
        (height == width).then_some(height)
    };
    let side = args.image_side.or([&samples, &reference].into_iter().flatten().find_map(square));
    let or_cut = |made: Option<Images>, source: &str| match made {
        Some(images) => Ok(images),
        None => cut(source, side),
    };
    let samples = or_cut(samples, &args.samples)?;
    let reference = if alone { None } else { Some(or_cut(reference, &args.reference)?) };
    Ok((samples, reference))
}

/// Opens images that have a size of their own; `None` if they are to be cut.
fn as_made(source: &str) -> anyhow::Result<Option<Images>> {
    let path = Path::new(source);
    if is_npz(source) {
        let mut reader = NpzReader::open(path)?;
        let (count, (height, width)) = {
            let images = reader.images()?;
            (images.count(), images.size())
        };
        let about = ImageSet { source: source.to_owned(), count, height, width };
        return Ok(Some(Images { about, made: None, source: Source::Array(reader) }));
    }
    anyhow::ensure!(
        !has_extension(path, "npy"),
        "{source}: an .npy file; give an .npz file with the images as `{IMAGES}`"
    );
    let Some(count) = SampleFolder::images_of(path)? else { return Ok(None) };
    // Checked before the work: a call that was interrupted has not painted all images that its record names.
    let missing = (0..count as u64).map(file_name).find(|name| !path.join(name).is_file());
    if let Some(missing) = missing {
        anyhow::bail!(
            "{source}: {missing} is missing; the call that made the folder paints the rest of its {count} images \
             with --resume"
        );
    }
    let first = image::image_dimensions(path.join("000000.png"))
        .with_context(|| format!("{source}: its first image, 000000.png, cannot be read"))?;
    let (height, width) = (first.1 as usize, first.0 as usize);
    let about = ImageSet { source: source.to_owned(), count, height, width };
    Ok(Some(Images {
        about,
        made: SampleFolder::record_of(path),
        source: Source::Samples(path.to_owned()),
    }))
}

/// Opens all images of a source of data, cut to the largest square in the middle of each.
fn cut(source: &str, side: Option<usize>) -> anyhow::Result<Images> {
    let config = DataConfig::from_argument(source);
    if let Some(path) = config.path.as_ref().filter(|path| !path.exists()) {
        return Err(DataError::Missing { path: path.clone() }.into());
    }
    let side = side.with_context(|| {
        format!("{source}: images of any size; say with --image-side to what they are cut")
    })?;
    // Everything in a folder is measured, unless a list says what is.
    let listed = Path::new(source).join("train.txt").is_file();
    let config = DataConfig {
        image_side: side,
        unlabelled: !listed,
        allow_one_class: true,
        crop: Crop::Center,
        flip: false,
        shift: 0,
        ..config
    };
    let data = data::open(&config).map_err(whole)?;
    let sets = vec![data.train, data.validation];
    let count = sets.iter().map(Dataset::len).sum();
    let about = ImageSet { source: source.to_owned(), count, height: side, width: side };
    Ok(Images { about, made: None, source: Source::Data(sets) })
}

impl Images {
    /// Calls `each` with all images in order, at most `most` at a time, as bytes `[b, h, w, 3]`.
    pub(super) fn each_batch(
        self,
        most: usize,
        mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let ImageSet { source, count, height, width } = self.about;
        match self.source {
            Source::Array(mut reader) => {
                let mut images = reader.images()?;
                loop {
                    let batch = images.next(most)?;
                    if batch.is_empty() {
                        return Ok(());
                    }
                    each(&batch)?;
                }
            }
            Source::Samples(folder) => {
                for first in (0..count).step_by(most) {
                    let load = |number: usize| {
                        let image = grid::load(&folder, number as u64, (height, width));
                        let image = image.with_context(|| {
                            let name = file_name(number as u64);
                            format!("{source}: {name} is missing, damaged or of another size")
                        })?;
                        Ok(pixels(&image, height * width).collect::<Vec<u8>>())
                    };
                    let numbers = (first..count.min(first + most)).into_par_iter();
                    let batch = numbers.map(load).collect::<anyhow::Result<Vec<_>>>()?;
                    each(&batch.concat())?;
                }
                Ok(())
            }
            Source::Data(sets) => {
                for set in sets.iter().filter(|set| !set.is_empty()) {
                    for first in (0..set.len()).step_by(most) {
                        let batch = set.batch(first, most).map_err(whole)?;
                        let images = batch.values_b.chunks_exact(3 * height * width);
                        each(
                            &images
                                .flat_map(|image| pixels(image, height * width))
                                .collect::<Vec<_>>(),
                        )?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Converts an error of the data: no image may be left out here, since the whole set is measured.
fn whole(error: DataError) -> anyhow::Error {
    match error {
        DataError::BadImage { path, reason } => {
            anyhow::anyhow!("{}: {reason}; repair or remove it", path.display())
        }
        other => other.into(),
    }
}
