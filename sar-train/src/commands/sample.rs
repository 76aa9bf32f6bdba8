//! `sar sample`: a grid, one file per image, and a strip that shows every scale.

use super::models::{LoadedGenerator, absolute};
use super::samples::{GRID, SCALES, SampleFolder, SampleRecord};
use crate::backend::Compute;
use crate::cli::{GlobalArgs, SampleArgs};
use crate::config::Config;
use crate::data::grid::{self, Images};
use crate::run::{Interrupt, Progress};
use crate::sample::{Painter, columns};
use anyhow::Context as _;
use sar_math::guidance::Guidance;
use std::path::PathBuf;
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
    let classes = asked_classes(&args.classes, &generator)?;
    let count = config.sample.count;
    let schedule = config.sample.schedule.unwrap_or(generator.section.schedule);
    let settings = config.sample.settings(config.sample.seed);
    let params = generator.params(backend)?;
    let batch = config.sample.batch.min(count);
    let guided = settings.guidance != Guidance::Off;
    let model = &generator.generator;
    let decoder = tokenizer.decoder();
    let mut painter = Painter::new(backend, model, decoder, &schedule, batch, guided)?;
    if schedule != generator.section.schedule {
        eprintln!(
            "note: the generator was trained on {}, not on {schedule}; unseen grids may look worse",
            generator.section.schedule
        );
    }
    let folder = SampleFolder::open(&args.out, args.force)?;
    let out = folder.path();
    let mut record = SampleRecord {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        generator: absolute(&generator.file),
        tokenizer: absolute(&generator.tokenizer_path(args.tokenizer.as_deref())?),
        step: generator.step,
        ema: args.ema,
        schedule: schedule.to_string(),
        settings: config.sample.clone(),
        classes: generator.classes.clone().unwrap_or_default(),
        labels: (0..count).map(|k| classes[k % classes.len()]).collect(),
    };
    let interrupt = Interrupt::listen()?;
    folder.keep(&record)?;
    let mut progress = Progress::new("sampling", count as u64, 0, global.quiet);
    let start = Instant::now();
    let (height, width) = painter.size(schedule.len() - 1);
    let per_row =
        if args.classes.is_empty() { columns(generator.section.classes) } else { count.min(10) };
    let in_grid = count.min(per_row * GRID_ROWS) * 3 * height * width;
    let mut shown = Vec::new();
    let (mut done, mut begun) = (0, 0);
    let mut paint = || -> anyhow::Result<()> {
        while done < count && !interrupt.is_asked() {
            let labels = &record.labels[done..count.min(done + batch)];
            let painted = painter.paint(&params, labels, done as u64, &settings, done == 0)?;
            begun = done + labels.len();
            if done == 0 {
                let strips = painter.strips(&painted, STRIP.min(labels.len()));
                grid::save_strips(&out.join(SCALES), &strips)?;
            }
            let images = Images { images_b3hw: &painted.images, height, width };
            grid::save_each(out, images, done as u64)?;
            let room = (in_grid - shown.len()).min(painted.images.len());
            shown.extend_from_slice(&painted.images[..room]);
            done += labels.len();
            progress.update(done as u64, "");
        }
        Ok(())
    };
    if let Err(error) = paint() {
        // A batch may have been written in part. Where this fails too, it is by what the error tells.
        record.labels.truncate(begun);
        drop(folder.keep(&record));
        return Err(error);
    }
    let rate = done as f64 / start.elapsed().as_secs_f64();
    if done > 0 {
        let images = Images { images_b3hw: &shown, height, width };
        grid::save_grid(&out.join(GRID), images, per_row)?;
    }
    if done < count {
        record.labels.truncate(done);
        folder.keep(&record)?;
        return Err(SamplingInterrupted { done, path: args.out.clone() }.into());
    }
    progress.finish(&format!("{count} images, {rate:.0} images/s"));
    if !global.quiet {
        println!("{}", out.join(GRID).display());
    }
    Ok(())
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
    s.batch = args.batch.unwrap_or(s.batch);
    s.guidance = args.guidance.unwrap_or(s.guidance);
    s.ramp = args.ramp.unwrap_or(s.ramp);
    s.top_k = args.top_k.unwrap_or(s.top_k);
    s.top_p = args.top_p.unwrap_or(s.top_p);
    s.schedule = args.schedule.or(s.schedule);
    s.seed = args.seed.unwrap_or(s.seed);
    s.published_greedy |= args.published_greedy;
    s.validate()?;
    Ok(config)
}

/// The classes asked for, or all; images have them in turn.
fn asked_classes(asked: &[String], generator: &LoadedGenerator) -> anyhow::Result<Vec<u32>> {
    let classes = generator.section.classes;
    let names = generator.classes.as_deref().unwrap_or_default();
    let index = |asked: &String| -> anyhow::Result<u32> {
        if let Ok(index) = asked.parse::<u32>() {
            anyhow::ensure!(
                (index as usize) < classes,
                "class {index} does not exist: the generator has {classes}, counted from 0"
            );
            return Ok(index);
        }
        let named = names.iter().position(|name| name == asked);
        named.map(|index| index as u32).with_context(|| match names {
            [] => format!(
                "class `{asked}` is not known: the generator's run kept no names of its {classes} \
                 classes; give their numbers"
            ),
            names => format!("class `{asked}` does not exist; there are {}", names.join(", ")),
        })
    };
    match asked {
        [] => Ok((0..classes as u32).collect()),
        asked => asked.iter().map(index).collect(),
    }
}
