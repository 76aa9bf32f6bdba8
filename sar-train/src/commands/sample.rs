//! `sar sample`: a grid, one file per image, and a strip that shows every scale.

use super::models::{LoadedGenerator, absolute};
use super::output::{self, ready_as};
use super::samples::{GRID, SCALES, SampleFolder, SampleRecord};
use crate::backend::Compute;
use crate::cli::{GlobalArgs, SampleArgs};
use crate::config::Config;
use crate::data::grid::{self, Images};
use crate::data::npz::NpzWriter;
use crate::data::some_of;
use crate::run::{Interrupt, Progress, rate};
use crate::sample::{Painter, columns};
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use sar_math::guidance::Guidance;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Images whose every scale the strip shows, at most.
const STRIP: usize = 8;
/// Rows of images in the grid, at most.
const GRID_ROWS: usize = 10;

/// Samples images and writes them.
///
/// # Errors
/// A checkpoint that cannot be used, a class out of range, a folder that cannot be written.
pub fn run<B: Compute>(backend: &B, args: &SampleArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let generator = LoadedGenerator::open(&args.generator, args.ema)?;
    let tokenizer = generator.tokenizer(backend, args.tokenizer.as_deref())?;
    let config = configuration(args, generator.run_config()?.unwrap_or_default())?;
    let schedule = config.sample.schedule.unwrap_or(generator.section.schedule);
    let mut record = record(args, &config, &generator, &schedule)?;
    let count = record.labels.len();
    let settings = config.sample.settings(config.sample.seed);
    let params = generator.params(backend)?;
    let batch = config.sample.batch.min(count);
    let guided = settings.guidance != Guidance::Off;
    let (model, decoder) = (&generator.generator, tokenizer.decoder());
    let mut painter = Painter::new(backend, model, decoder, &schedule, batch, guided)?;
    let size = painter.size(schedule.len() - 1);
    if schedule != generator.section.schedule {
        eprintln!(
            "note: the generator was trained on {}, not on {schedule}; unseen grids may look worse",
            generator.section.schedule
        );
    }
    let replaced = |npz: &&Path| npz.is_file() && !args.force;
    if let Some(npz) = args.npz.as_deref().filter(replaced) {
        anyhow::bail!("{} exists; choose another name, or replace it with --force", npz.display());
    }
    let _place = args.npz.as_deref().map(|path| ready_as(path, &["npz"])).transpose()?;
    let npz = args.npz.as_deref().map(|path| NpzWriter::create(path, count, size)).transpose()?;
    let folder = SampleFolder::open(&args.out, args.force)?;
    let interrupt = Interrupt::listen()?;
    folder.keep(&record)?;
    let mut progress = Progress::new("sampling", count as u64, 0, global.quiet);
    let start = Instant::now();
    let per_row =
        if args.classes.is_empty() { columns(generator.section.classes) } else { count.min(10) };
    let mut sheets = Sheets::new(folder.path(), size, count.min(per_row * GRID_ROWS), npz);
    let mut begun = 0;
    let mut paint = || -> anyhow::Result<()> {
        while sheets.done < count && !interrupt.is_asked() {
            let (done, first) = (sheets.done, sheets.done == 0);
            let labels = &record.labels[done..count.min(done + batch)];
            let painted = painter.paint(&params, labels, done as u64, &settings, first)?;
            begun = done + labels.len();
            if first {
                let strips = painter.strips(&painted, STRIP.min(labels.len()));
                grid::save_strips(&folder.path().join(SCALES), &strips)?;
            }
            sheets.add(&painted.images, labels.len())?;
            progress.update(sheets.done as u64, "");
        }
        Ok(())
    };
    if let Err(error) = paint() {
        // A batch may have been written in part. Where this fails too, it is by what the error tells.
        record.labels.truncate(begun);
        drop(folder.keep(&record));
        return Err(error);
    }
    let speed = sheets.done as f64 / start.elapsed().as_secs_f64();
    let done = sheets.finish(per_row, count)?;
    if done < count {
        record.labels.truncate(done);
        folder.keep(&record)?;
        return Err(SamplingInterrupted { done, path: args.out.clone() }.into());
    }
    progress.finish(&format!("{count} images, {}", rate(speed)));
    println!("{}", folder.path().join(GRID).display());
    Ok(())
}

/// What is to be sampled, of which classes.
fn record(
    args: &SampleArgs,
    config: &Config,
    generator: &LoadedGenerator,
    schedule: &ScaleSchedule,
) -> anyhow::Result<SampleRecord> {
    let (classes, count) = (asked_classes(&args.classes, generator)?, config.sample.count);
    if args.npz.is_some() && !count.is_multiple_of(classes.len()) {
        eprintln!(
            "note: {count} images are not the same number of each of {} classes, which published numbers \
             are of",
            classes.len()
        );
    }
    Ok(SampleRecord {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        generator: absolute(&generator.file),
        tokenizer: absolute(&generator.tokenizer_path(args.tokenizer.as_deref())?),
        step: generator.step,
        ema: args.ema,
        schedule: schedule.to_string(),
        settings: config.sample.clone(),
        classes: generator.classes.clone().unwrap_or_default(),
        labels: (0..count).map(|k| classes[k % classes.len()]).collect(),
    })
}

/// What the images are written to as they come.
struct Sheets<'a> {
    folder: &'a Path,
    /// Height and width of an image.
    size: (usize, usize),
    npz: Option<NpzWriter>,
    /// Images of the grid so far, and how many values it has room for.
    shown: Vec<f32>,
    room: usize,
    /// Images written.
    done: usize,
}

impl<'a> Sheets<'a> {
    fn new(folder: &'a Path, size: (usize, usize), in_grid: usize, npz: Option<NpzWriter>) -> Self {
        Self { folder, size, npz, shown: Vec::new(), room: in_grid * 3 * size.0 * size.1, done: 0 }
    }

    fn images<'i>(&self, images_b3hw: &'i [f32]) -> Images<'i> {
        Images { images_b3hw, height: self.size.0, width: self.size.1 }
    }

    /// Writes a batch of `count` images.
    fn add(&mut self, images: &[f32], count: usize) -> anyhow::Result<()> {
        grid::save_each(self.folder, self.images(images), self.done as u64)?;
        let batch = self.images(images);
        if let Some(npz) = &mut self.npz {
            npz.write(batch)?;
        }
        let room = (self.room - self.shown.len()).min(images.len());
        self.shown.extend_from_slice(&images[..room]);
        self.done += count;
        Ok(())
    }

    /// Writes the grid, and the array where all `count` images are there; how many there are.
    fn finish(self, per_row: usize, count: usize) -> anyhow::Result<usize> {
        if self.done > 0 {
            grid::save_grid(&self.folder.join(GRID), self.images(&self.shown), per_row)?;
        }
        match self.npz {
            Some(npz) if self.done == count => npz.finish()?,
            _ => {}
        }
        Ok(self.done)
    }
}

/// Sampling that the user stopped; the exit code is 130.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; the first {done} images are in {}", path.display())]
pub(super) struct SamplingInterrupted {
    done: usize,
    path: PathBuf,
}

fn configuration(args: &SampleArgs, mut config: Config) -> anyhow::Result<Config> {
    let s = &mut config.sample;
    s.count = args.count.unwrap_or(s.count);
    s.guidance = args.guidance.unwrap_or(s.guidance);
    args.sampler.over(s);
    s.validate()?;
    Ok(config)
}

/// The classes asked for, or all; images have them in turn.
fn asked_classes(asked: &[String], generator: &LoadedGenerator) -> anyhow::Result<Vec<u32>> {
    let classes = generator.section.classes;
    let names = generator.classes.as_deref().unwrap_or_default();
    let index = |asked: &String| -> anyhow::Result<u32> {
        let asked = asked.trim();
        // Names first: a folder may be called by a number.
        if let Some(index) = names.iter().position(|name| name == asked) {
            if asked.parse().is_ok_and(|number: usize| number != index && number < classes) {
                output::note(format_args!(
                    "note: {asked} is the class of that name, number {index}; class number {asked} is {}",
                    names[asked.parse().unwrap_or(index)]
                ));
            }
            return Ok(index as u32);
        }
        let known = || match names {
            [] => {
                format!("the generator has {classes}, by numbers from 0: their names were not kept")
            }
            names => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                format!(
                    "the generator has {classes}, by number from 0 or by name: {}",
                    some_of(&names)
                )
            }
        };
        let index = asked.parse().ok().filter(|index: &u32| (*index as usize) < classes);
        index.with_context(|| format!("class {asked} does not exist: {}", known()))
    };
    match asked {
        [] => Ok((0..classes as u32).collect()),
        asked => asked.iter().map(index).collect(),
    }
}
