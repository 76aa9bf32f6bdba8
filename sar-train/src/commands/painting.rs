//! Images painted into a folder: what `sar sample` and `sar edit` share.

use super::samples::{GRID, SCALES, SampleFolder, SampleRecord, as_text};
use crate::backend::Compute;
use crate::config::Positions;
use crate::data::grid::{self, Images};
use crate::data::npz::NpzWriter;
use crate::run::{Interrupt, Progress, rate};
use crate::sample::{Painted, Painter};
use crate::trained::{TrainedGenerator, TrainedTokenizer};
use sar_math::ScaleSchedule;
use sar_math::guidance::Guidance;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Images whose every scale the strip shows, at most.
const STRIPS: usize = 8;
/// Pixels that are decoded for it, at most, but for the first image: eight of FlexVAR's at 256 px, of VAR's, which
/// decode every scale at full size, two.
const STRIP_PIXELS: usize = 3 << 19;
/// Rows of images in the grid, at most.
const GRID_ROWS: usize = 10;

/// A generator and its tokenizer, ready to paint in batches.
pub(super) struct Painting<'a, B: Compute> {
    painter: Painter<'a, B>,
    /// Height and width of an image.
    pub size: (usize, usize),
    scales: usize,
    /// Images painted at once.
    batch: usize,
}

/// Images of a record that are painted at once.
pub(super) struct Batch<'r> {
    pub labels: &'r [u32],
    /// Number of the first of them.
    pub first_image: u64,
    /// How many of the first of them are wanted at every scale.
    pub strips: usize,
}

/// Where images go.
pub(super) struct Target<'a> {
    pub folder: &'a SampleFolder,
    /// Also all of them as one array, and where.
    pub array: Option<(NpzWriter, PathBuf)>,
    /// Images in a row of the grid.
    pub per_row: usize,
    pub quiet: bool,
}

impl<'a, B: Compute> Painting<'a, B> {
    /// Memory for the images of a record, some at a time.
    pub(super) fn new(
        backend: &'a B,
        generator: &'a TrainedGenerator,
        tokenizer: &'a TrainedTokenizer<B>,
        schedule: &ScaleSchedule,
        record: &SampleRecord,
    ) -> anyhow::Result<Self> {
        let settings = record.settings.settings(record.settings.seed);
        let (guided, batch) = (settings.guidance != Guidance::Off, record.batch());
        let (model, decoder) = (&generator.generator, tokenizer.decoder());
        let painter = Painter::new(backend, model, decoder, schedule, batch, guided)?;
        let size = painter.size(schedule.len() - 1);
        if *schedule != generator.section.schedule {
            let which = match generator.section.positions {
                Positions::Grid => "unseen grids may look worse",
                Positions::Levels => "what is drawn without the others may look worse",
            };
            eprintln!(
                "note: the generator was trained on {}, not on {schedule}; {which}",
                generator.section.schedule
            );
        }
        Ok(Self { painter, size, scales: schedule.len(), batch })
    }

    /// How many of so many images are shown at every scale.
    fn strips(&self, images: usize) -> usize {
        let area = |scale| {
            let (height, width) = self.painter.size(scale);
            height * width
        };
        let pixels: usize = (0..self.scales).map(area).sum();
        (STRIP_PIXELS / pixels).clamp(1, STRIPS).min(images)
    }

    /// Writes the images of a record as `draw` makes them, batch by batch, and says where they are.
    pub(super) fn paint(
        &mut self,
        mut record: SampleRecord,
        target: Target<'_>,
        draw: impl FnMut(&mut Painter<'a, B>, &Batch<'_>) -> Result<Painted, B::Error>,
    ) -> anyhow::Result<()> {
        let interrupt = Interrupt::listen()?;
        let (folder, count) = (target.folder, record.labels.len());
        folder.keep(&record)?;
        let in_grid = count.min(target.per_row * GRID_ROWS);
        let (npz, array) = target.array.unzip();
        let mut sheets = Sheets::new(folder.path(), self.size, in_grid, npz);
        // The strip is of the first images, which are drawn again where it may have fewer.
        let strips = self.strips(count);
        if (0..strips).all(|k| grid::load(folder.path(), k as u64, self.size).is_some()) {
            sheets.take_up(count, &interrupt)?;
        }
        let resumed = sheets.done;
        let mut progress = Progress::new("sampling", count as u64, resumed as u64, target.quiet);
        let start = Instant::now();
        let drawn =
            self.batches(&record.labels, strips, &mut sheets, &interrupt, &mut progress, draw);
        let done = sheets.done;
        let speed = (done - resumed) as f64 / start.elapsed().as_secs_f64();
        let earlier = record.npz.clone();
        if drawn.is_ok() && done == count && array.is_some() {
            // Before it is there: what is told of an array that is not yet made stops no later call.
            record.npz = array.as_deref().map(as_text);
            folder.keep(&record)?;
        }
        let finished = drawn.and_then(|()| sheets.finish(target.per_row, count));
        if finished.is_err() || done < count {
            // A batch may have been written in part, and what an earlier call left may go on behind a gap.
            record.labels.truncate(done.max(folder.present(count)));
            record.npz = earlier;
            if record.labels.is_empty() {
                // Of images that are not there: it would be another's.
                let _ = std::fs::remove_file(folder.path().join(SCALES));
            }
            let kept = folder.keep(&record);
            // If this write fails too, the error says enough.
            finished?;
            kept?;
            return Err(SamplingInterrupted { done, path: folder.path().to_owned() }.into());
        }
        progress.finish(&match count - resumed {
            0 => format!("all {count} images were there"),
            new if resumed > 0 => format!("{new} more images, {count} in all, {}", rate(speed)),
            _ => format!("{count} images, {}", rate(speed)),
        });
        println!("{}", folder.path().join(GRID).display());
        Ok(())
    }

    /// Draws and writes the images that are not there yet, until the user stops it; the first `strips` at every scale.
    fn batches(
        &mut self,
        labels: &[u32],
        strips: usize,
        sheets: &mut Sheets<'_>,
        interrupt: &Interrupt,
        progress: &mut Progress,
        mut draw: impl FnMut(&mut Painter<'a, B>, &Batch<'_>) -> Result<Painted, B::Error>,
    ) -> anyhow::Result<()> {
        let mut shown = Painted::default();
        while sheets.done < labels.len() && !interrupt.is_asked() {
            let done = sheets.done;
            let labels = &labels[done..labels.len().min(done + self.batch)];
            let strips = strips.saturating_sub(done).min(labels.len());
            let batch = Batch { labels, first_image: done as u64, strips };
            let painted = draw(&mut self.painter, &batch)?;
            if strips > 0 {
                shown.scales.resize(painted.scales.len(), Vec::new());
                for (shown, more) in shown.scales.iter_mut().zip(&painted.scales) {
                    shown.extend_from_slice(more);
                }
                let strips = self.painter.strips(&shown);
                grid::save_strips(&sheets.folder.join(SCALES), &strips)?;
            }
            sheets.add(&painted.images, labels.len())?;
            progress.update(sheets.done as u64, "");
        }
        Ok(())
    }
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

    /// Takes the images that are in the folder already, from the first to one that is not there or not whole.
    fn take_up(&mut self, most: usize, interrupt: &Interrupt) -> anyhow::Result<()> {
        while self.done < most
            && !interrupt.is_asked()
            && let Some(image) = grid::load(self.folder, self.done as u64, self.size)
        {
            self.show(&image, 1)?;
        }
        Ok(())
    }

    /// Writes a batch of `count` images.
    fn add(&mut self, images: &[f32], count: usize) -> anyhow::Result<()> {
        grid::save_each(self.folder, self.images(images), self.done as u64)?;
        self.show(images, count)
    }

    /// Adds `count` images of the folder to the grid and the array.
    fn show(&mut self, images: &[f32], count: usize) -> anyhow::Result<()> {
        let batch = self.images(images);
        if let Some(npz) = &mut self.npz {
            npz.write(batch)?;
        }
        let room = (self.room - self.shown.len()).min(images.len());
        self.shown.extend_from_slice(&images[..room]);
        self.done += count;
        Ok(())
    }

    /// Writes the grid, and the array where all `count` images are there.
    fn finish(self, per_row: usize, count: usize) -> anyhow::Result<()> {
        if self.done > 0 {
            grid::save_grid(&self.folder.join(GRID), self.images(&self.shown), per_row)?;
        }
        match self.npz {
            Some(npz) if self.done == count => npz.finish()?,
            _ => {}
        }
        Ok(())
    }
}

/// Sampling that the user stopped; the exit code is 130.
#[derive(Debug, thiserror::Error)]
#[error(
    "interrupted; the first {done} images are in {}; go on with --resume, the other flags as they were",
    path.display()
)]
pub(super) struct SamplingInterrupted {
    done: usize,
    path: PathBuf,
}
