//! `sar sample`: a grid, one file per image, and a strip that shows every scale.

use super::classes::asked_classes;
use super::models::{LoadedGenerator, absolute};
use super::output::ready_as;
use super::painting::{Painting, Target};
use super::samples::{SampleFolder, SampleRecord};
use crate::backend::Compute;
use crate::cli::{GlobalArgs, SampleArgs};
use crate::config::Config;
use crate::data::npz::NpzWriter;
use crate::sample::columns;
use sar_math::ScaleSchedule;

/// Samples images and writes them.
///
/// # Errors
/// A checkpoint that cannot be used, a class out of range, a folder that cannot be written.
pub fn run<B: Compute>(backend: &B, args: &SampleArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let generator = LoadedGenerator::open(&args.generator, args.ema)?;
    let tokenizer = generator.tokenizer(backend, args.tokenizer.as_deref())?;
    let config = configuration(args, generator.run_config()?.unwrap_or_default())?;
    let schedule = config.sample.schedule.unwrap_or(generator.section.schedule);
    let record = record(args, global, &config, &generator, &schedule)?;
    let count = record.labels.len();
    let params = generator.params(backend)?;
    let mut painting = Painting::new(backend, &generator, &tokenizer, &schedule, &record)?;
    if let Some(npz) = args.npz.as_deref().filter(|npz| npz.is_file() && !args.place.force) {
        let way = if args.place.resume { "remove it" } else { "replace it with --force" };
        anyhow::bail!("{} exists; choose another name, or {way}", npz.display());
    }
    let _place = args.npz.as_deref().map(|path| ready_as(path, &["npz"])).transpose()?;
    let npz = args.npz.as_deref();
    let npz = npz.map(|path| NpzWriter::create(path, count, painting.size)).transpose()?;
    let folder = SampleFolder::open(&args.place, &record)?;
    let per_row =
        if args.classes.is_empty() { columns(generator.section.classes) } else { count.min(10) };
    let target = Target { folder: &folder, npz, per_row, quiet: global.quiet };
    let settings = record.settings.settings(record.settings.seed);
    painting.paint(record, target, |painter, batch| {
        painter.paint(&params, batch.labels, batch.first_image, &settings, batch.every_scale)
    })
}

/// What is to be sampled, of which classes.
fn record(
    args: &SampleArgs,
    global: &GlobalArgs,
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
        computed: global.computed(),
        schedule: schedule.to_string(),
        settings: config.sample.clone(),
        edit: None,
        classes: generator.classes.clone().unwrap_or_default(),
        labels: (0..count).map(|k| classes[k % classes.len()]).collect(),
    })
}

fn configuration(args: &SampleArgs, mut config: Config) -> anyhow::Result<Config> {
    let s = &mut config.sample;
    s.count = args.count.unwrap_or(s.count);
    s.guidance = args.guidance.unwrap_or(s.guidance);
    args.sampler.over(s);
    s.validate()?;
    Ok(config)
}
