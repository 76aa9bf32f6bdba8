//! `sar sample`: a grid, one file per image, and a strip that shows every scale.

use super::classes::asked_classes;
use super::models::{open_to_draw, tokenizer_of, tokenizer_path};
use super::painting::{Painting, Target};
use super::place::ready_as;
use super::room::drawing_fits;
use super::samples::{SampleFolder, SampleRecord, as_text};
use crate::backend::Compute;
use crate::cli::{GlobalArgs, SampleArgs};
use crate::config::SampleConfig;
use crate::data::npz::NpzWriter;
use crate::files::{absolute, remove_left_behind};
use crate::sample::columns;
use std::path::Path;

/// Samples images and writes them.
///
/// # Errors
/// A checkpoint cannot be used, a class is out of range, or a folder cannot be written.
pub fn run<B: Compute>(backend: &B, args: &SampleArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let mut generator = open_to_draw(&args.generator, args.ema, global.quiet)?;
    let tokenizer = tokenizer_of(&generator, backend, args.tokenizer.as_deref())?;
    let run = generator.run_config()?.unwrap_or_default();
    let settings = args.sampler.settings(run.sample, args.count, args.guidance, &args.filter)?;
    let schedule = generator.schedule(settings.schedule)?;
    let (classes, count) = (asked_classes(&args.classes, &generator)?, settings.count);
    if args.npz.is_some() {
        note_uneven(count, classes.len());
    }
    let path = tokenizer_path(&generator, args.tokenizer.as_deref())?;
    let (from, by) = ((&tokenizer, path.as_path()), global.computed());
    let earlier = args.place.resume.then(|| SampleFolder::array_of(&args.place.out)).flatten();
    let npz = args.npz.as_deref().map(absolute);
    let own = npz.is_some() && npz.as_deref().map(as_text) == earlier;
    // The record does not name an array that is yet to be made.
    let record = SampleRecord {
        npz: earlier,
        ..SampleRecord::new(&generator, from, &schedule, &settings, &classes, by)
    };
    let drawn = SampleConfig { batch: record.batch(), schedule: Some(schedule), ..settings };
    drawing_fits(&generator.section, tokenizer.tokenizer.config(), &drawn, global)?;
    let params = generator.hand_over(backend)?;
    let mut painting = Painting::new(backend, &generator, &tokenizer, &schedule, &record)?;
    let replaces = args.place.force || own;
    if let Some(npz) = args.npz.as_deref().filter(|npz| npz.is_file() && !replaces) {
        let way = if args.place.resume { "remove it" } else { "replace it with --force" };
        anyhow::bail!("{} exists; choose another name, or {way}", npz.display());
    }
    if let Some(folder) = npz.as_deref().and_then(Path::parent).filter(|_| args.place.resume) {
        remove_left_behind(folder);
    }
    let _place = args.npz.as_deref().map(|path| ready_as(path, &["npz"])).transpose()?;
    let array =
        npz.map(|path| NpzWriter::create(&path, count, painting.size).map(|npz| (npz, path)));
    let array = array.transpose()?;
    let folder = match args.part {
        Some(_) => SampleFolder::join(&args.place, &record)?,
        None => SampleFolder::open(&args.place, &record)?,
    };
    let per_row =
        if args.classes.is_empty() { columns(generator.section.classes) } else { count.min(10) };
    let target = Target { folder: &folder, array, part: args.part, per_row, quiet: global.quiet };
    let settings = record.settings.settings(record.settings.seed);
    painting.paint(record, target, |painter, batch| {
        painter.paint(&params, batch.labels, batch.first_image, &settings, batch.strips)
    })
}

/// Notes if there is not the same number of images of each class, as there is for published numbers.
fn note_uneven(count: usize, classes: usize) {
    if !count.is_multiple_of(classes) {
        eprintln!(
            "note: {count} images are not the same number of each of {classes} classes, which published \
             numbers are of"
        );
    }
}
