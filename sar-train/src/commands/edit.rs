//! `sar edit`: parts of an image drawn anew by a generator, the rest of its codes kept.

use super::classes::{asked_classes, known_classes};
use super::models::{open_to_draw, tokenizer_of, tokenizer_path};
use super::painting::{Batch, Painting, Target};
use super::room::drawing_fits;
use super::samples::{EditRecord, GIVEN, SampleFolder, SampleRecord, as_text};
use crate::backend::Compute;
use crate::cli::{EditArgs, GlobalArgs};
use crate::config::SampleConfig;
use crate::data::decode::Picture;
use crate::data::grid::{self, Images};
use crate::data::{Augment, ImageFile};
use crate::files::absolute;
use crate::hash::sha256_of;
use crate::sample::{Edit, Editor, Hole, MASKED_SHARE, Mask};
use crate::trained::TrainedTokenizer;
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use std::fs;
use std::path::Path;

/// Draws variants of an image and writes them.
///
/// # Errors
/// A checkpoint, an image or a mask cannot be used; the flags leave nothing to keep or to draw; a
/// class is out of range; a folder cannot be written.
pub fn run<B: Compute>(backend: &B, args: &EditArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let mut generator = open_to_draw(&args.generator, args.ema, global.quiet)?;
    let tokenizer = tokenizer_of(&generator, backend, args.tokenizer.as_deref())?;
    let run = generator.run_config()?.unwrap_or_default();
    let settings =
        args.sampler.settings(run.sample, Some(args.count), args.guidance, &args.filter)?;
    let schedule = generator.schedule(settings.schedule)?;
    anyhow::ensure!(
        !args.classes.is_empty() || generator.section.classes == 1,
        "name what to draw by --classes; {}",
        known_classes(&generator)
    );
    let classes = asked_classes(&args.classes, &generator)?;
    check(args, &schedule)?;
    let edit = read(args, &schedule, &tokenizer, run.data.max_pixels)?;
    note_large(&edit, &schedule);
    let path = tokenizer_path(&generator, args.tokenizer.as_deref())?;
    let (from, by) = ((&tokenizer, path.as_path()), global.computed());
    let record = SampleRecord {
        edit: Some(EditRecord {
            image: as_text(&absolute(&args.image)),
            mask: args.mask.as_deref().map(|mask| as_text(&absolute(mask))),
            pixels_sha256: fingerprint(&edit),
            keep_scales: edit.keep_scales,
            passes: edit.passes,
            decoded: edit.decoded,
        }),
        ..SampleRecord::new(&generator, from, &schedule, &settings, &classes, by)
    };
    let (batch, side) = (record.batch(), side(&schedule, &tokenizer));
    let drawn = SampleConfig { batch, schedule: Some(schedule), ..settings.clone() };
    drawing_fits(&generator.section, tokenizer.tokenizer.config(), &drawn, global)?;
    let mut editor = Editor::new(backend, tokenizer.decoder(), &schedule, edit, batch)?;
    let params = generator.hand_over(backend)?;
    let mut painting = Painting::new(backend, &generator, &tokenizer, &schedule, &record)?;
    let folder = SampleFolder::open(&args.place, &record)?;
    let per_row = record.labels.len().min(10);
    let target = Target { folder: &folder, array: None, part: None, per_row, quiet: global.quiet };
    let settings = record.settings.settings(record.settings.seed);
    // Recorded before the first file is written: what the folder is for.
    folder.keep(&record)?;
    grid::save_grid(&folder.path().join(GIVEN), Images::square(&editor.shown(), side), 1)?;
    painting.paint(record, target, |painter, batch| {
        let &Batch { labels, first_image, strips } = batch;
        editor.paint(painter, &params, labels, first_image, &settings, strips)
    })
}

/// Notes if nothing of the image is left in its coarsest code.
fn note_large(edit: &Edit, schedule: &ScaleSchedule) {
    let Some(hole) = edit.hole.as_ref().filter(|_| edit.keep_scales == 0) else { return };
    if hole.mask.kept(schedule, MASKED_SHARE).first() == Some(&0) {
        eprintln!(
            "note: more than half of the image is masked, so its coarsest code is drawn anew, and what is drawn may \
             not match the rest; --keep-scales 1 takes that code from the image, what is masked included"
        );
    }
}

/// Returns the SHA-256 of the image, of what its mask leaves of it, and of the mask.
fn fingerprint(edit: &Edit) -> String {
    let mut pixels = edit.image_3hw.clone();
    if let Some(hole) = &edit.hole {
        pixels.extend(&hole.known_3hw);
        pixels.extend(hole.mask.pixels().iter().map(|drawn| f32::from(u8::from(*drawn))));
    }
    sha256_of(&pixels)
}

/// Returns the side of the images that a schedule ending in a square draws.
fn side<B: Compute>(schedule: &ScaleSchedule, tokenizer: &TrainedTokenizer<B>) -> usize {
    schedule.last().height * tokenizer.tokenizer.downsample_factor()
}

/// Fails where the flags leave nothing to keep or nothing to draw.
fn check(args: &EditArgs, schedule: &ScaleSchedule) -> anyhow::Result<()> {
    let (last, scales) = (schedule.last(), schedule.len());
    anyhow::ensure!(
        last.height == last.width,
        "an image is cut to a square, and the schedule {schedule} ends in a grid of {last}"
    );
    anyhow::ensure!(
        args.keep_scales < scales,
        "--keep-scales {} leaves nothing to draw: the schedule {schedule} has {scales} scales",
        args.keep_scales
    );
    anyhow::ensure!(
        args.mask.is_some() || args.keep_scales > 0,
        "nothing of the image is kept; give a --mask, --keep-scales, or both"
    );
    Ok(())
}

/// Reads image and mask, cut alike to what the schedule draws.
fn read<B: Compute>(
    args: &EditArgs,
    schedule: &ScaleSchedule,
    tokenizer: &TrainedTokenizer<B>,
    max_pixels: u64,
) -> anyhow::Result<Edit> {
    let open = |path: &Path| -> anyhow::Result<Picture> {
        let [file, out] = [path, &args.place.out].map(|path| fs::canonicalize(path).ok());
        anyhow::ensure!(
            out.is_none() || file.as_deref().and_then(Path::parent) != out.as_deref(),
            "{} lies in --out, where it may be written over; choose another --out",
            path.display()
        );
        let picture = ImageFile::from(path.to_path_buf()).decode(max_pixels);
        picture.with_context(|| format!("{}", path.display()))
    };
    let picture = open(&args.image)?;
    let (height, width) = (picture.height(), picture.width());
    if height != width {
        eprintln!(
            "note: {} is {width}×{height} px, and the square in its middle counts, of the mask likewise",
            args.image.display()
        );
    }
    let cut = Augment::evaluation(side(schedule, tokenizer));
    let hole = match args.mask.as_deref() {
        Some(path) => Some(hole(&cut, &picture, &open(path)?, path)?),
        None => None,
    };
    if let (Some(path), Some(hole)) = (&args.mask, &hole) {
        let kept = hole.mask.kept(schedule, 0.0);
        anyhow::ensure!(
            args.keep_scales > 0 || kept.contains(&1),
            "{}: nothing of the image is kept, since white or transparent reaches into every square of \
             {factor}×{factor} px (of the {side}×{side} that are drawn)",
            path.display(),
            factor = tokenizer.tokenizer.downsample_factor(),
            side = cut.side
        );
    }
    Ok(Edit {
        image_3hw: cut.evaluate(&picture),
        passes: if hole.is_some() { args.passes as usize } else { 1 },
        hole,
        keep_scales: args.keep_scales,
        decoded: args.decoded,
    })
}

/// Returns what a mask, read from the file at `path`, leaves of an image.
fn hole(cut: &Augment, picture: &Picture, mask: &Picture, path: &Path) -> anyhow::Result<Hole> {
    let known = cut.evaluate_known(picture, mask);
    let known = known.with_context(|| format!("{} is no mask of the image", path.display()))?;
    anyhow::ensure!(
        known.masked_hw.contains(&true),
        "{}: nothing is white in the middle square, so that nothing is drawn anew",
        path.display()
    );
    let mask = Mask::new(cut.side, cut.side, known.masked_hw)?;
    Ok(Hole { mask, known_3hw: known.image_3hw })
}
