//! `sar sample`: a grid, one file per image, and a strip that shows every scale.

use super::models::LoadedGenerator;
use super::train::settings;
use crate::backend::Compute;
use crate::cli::{GlobalArgs, SampleArgs};
use crate::config::Config;
use crate::data::grid::{self, Images};
use crate::run::Progress;
use crate::sample::{Painter, columns};
use anyhow::Context as _;
use sar_math::guidance::Guidance;
use std::time::Instant;

/// Images whose every scale the strip shows, at most.
const STRIP: usize = 8;

/// Samples images and writes them.
///
/// # Errors
/// A checkpoint that cannot be used, a class out of range, a folder that cannot be written.
pub fn run<B: Compute>(backend: &B, args: &SampleArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let generator = LoadedGenerator::open(&args.generator, args.ema)?;
    let tokenizer = generator.tokenizer(backend, args.tokenizer.as_deref())?;
    let config = configuration(args, generator.run_config()?.unwrap_or_default())?;
    let classes = generator.section.classes;
    let count = config.sample.count;
    let labels = labels(&args.classes, classes, count)?;
    let settings = settings(&config, config.sample.seed);
    let schedule = config.sample.schedule.unwrap_or(generator.section.schedule);
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
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("{}: the folder cannot be made", args.out.display()))?;
    let mut progress = Progress::new("sampling", count as u64, 0, global.quiet);
    let start = Instant::now();
    let mut all = Vec::new();
    let (height, width) = painter.size(schedule.len() - 1);
    for (n, part) in labels.chunks(batch).enumerate() {
        let first = (n * batch) as u64;
        let painted = painter.paint(&params, part, first, &settings, n == 0)?;
        if n == 0 {
            let strips: Vec<Images<'_>> = painted
                .scales
                .iter()
                .enumerate()
                .map(|(scale, images)| {
                    let (height, width) = painter.size(scale);
                    let shown = STRIP.min(part.len()) * 3 * height * width;
                    Images { images_b3hw: images.get(..shown).unwrap_or(images), height, width }
                })
                .collect();
            grid::save_strips(&args.out.join("scales.png"), &strips)?;
        }
        let images = Images { images_b3hw: &painted.images, height, width };
        grid::save_each(&args.out, images, first)?;
        all.extend(painted.images);
        progress.update(first + part.len() as u64, "");
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    let per_row = if args.classes.is_empty() { columns(classes) } else { count.min(10) };
    let images = Images { images_b3hw: &all, height, width };
    grid::save_grid(&args.out.join("grid.png"), images, per_row)?;
    progress.finish(&format!("{count} images, {rate:.0} images/s"));
    if !global.quiet {
        println!("{}", args.out.join("grid.png").display());
    }
    Ok(())
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

/// The classes asked for, or all, in turn.
fn labels(asked: &[u32], classes: usize, count: usize) -> anyhow::Result<Vec<u32>> {
    if let Some(bad) = asked.iter().find(|&&c| c as usize >= classes) {
        anyhow::bail!("class {bad} does not exist: the generator has {classes}, counted from 0");
    }
    let all: Vec<u32> =
        if asked.is_empty() { (0..classes as u32).collect() } else { asked.to_vec() };
    Ok(all.iter().copied().cycle().take(count).collect())
}
