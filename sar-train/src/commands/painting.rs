//! Images painted into a folder: what `sar sample` and `sar edit` share.

use super::samples::{GRID, SCALES, SampleFolder, SampleRecord, as_text};
use crate::backend::Compute;
use crate::cli::Part;
use crate::config::Positions;
use crate::data::grid::{self, Images};
use crate::data::npz::NpzWriter;
use crate::run::{Interrupt, Progress, rate};
use crate::sample::{Painted, Painter};
use crate::trained::{TrainedGenerator, TrainedTokenizer};
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use sar_math::guidance::Guidance;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Largest number of images whose every scale the strip shows.
const STRIPS: usize = 8;
/// Largest number of pixels decoded for the strip, unless its first image alone has more: enough for
/// eight of FlexVAR's images at 256 px, and for two of VAR's, which decode every scale at full size.
const STRIP_PIXELS: usize = 3 << 19;
/// Largest number of rows of images in the grid.
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
    /// Number of the first image.
    pub first_image: u64,
    /// How many images, from the first on, are wanted at every scale.
    pub strips: usize,
}

/// Where images go.
pub(super) struct Target<'a> {
    pub folder: &'a SampleFolder,
    /// An array that all images are also written to, and its path.
    pub array: Option<(NpzWriter, PathBuf)>,
    /// Which of the images are made, if not all.
    pub part: Option<Part>,
    /// Images in a row of the grid.
    pub per_row: usize,
    pub quiet: bool,
}

impl<'a, B: Compute> Painting<'a, B> {
    /// Allocates memory to paint the images of a record, a batch at a time.
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

    /// Returns how many of `images` images are shown at every scale.
    fn strips(&self, images: usize) -> usize {
        let area = |scale| {
            let (height, width) = self.painter.size(scale);
            height * width
        };
        let pixels: usize = (0..self.scales).map(area).sum();
        (STRIP_PIXELS / pixels).clamp(1, STRIPS).min(images)
    }

    /// Writes the images of a record, or a part of them, batch by batch as `draw` makes them, and
    /// prints where they are.
    pub(super) fn paint(
        &mut self,
        mut record: SampleRecord,
        target: Target<'_>,
        draw: impl FnMut(&mut Painter<'a, B>, &Batch<'_>) -> Result<Painted, B::Error>,
    ) -> anyhow::Result<()> {
        let interrupt = Interrupt::listen()?;
        if let Some(part) = target.part {
            return self.paint_part(&record, part, &target, &interrupt, draw);
        }
        let (folder, count) = (target.folder, record.labels.len());
        folder.keep(&record)?;
        let in_grid = count.min(target.per_row * GRID_ROWS);
        let (npz, array) = target.array.unzip();
        let mut sheets = Sheets::new(folder.path(), self.size, in_grid, npz);
        let (strips, quiet) = (self.strips(count), target.quiet);
        let drawn = self.draw_missing(&record.labels, &mut sheets, strips, &interrupt, quiet, draw);
        let done = sheets.done;
        let earlier = record.npz.clone();
        if drawn.is_ok() && done == count && array.is_some() {
            // Recorded before the array exists: naming an array that is not made yet stops no later call.
            record.npz = array.as_deref().map(as_text);
            folder.keep(&record)?;
        }
        let finished = drawn.and_then(|drawn| sheets.finish(target.per_row, count).map(|()| drawn));
        if finished.is_err() || done < count {
            // A batch may have been written in part, and images of an earlier call may follow a gap.
            record.labels.truncate(done.max(folder.present(count)));
            record.npz = earlier;
            if record.labels.is_empty() {
                // The strip shows images that are not there; without a record it would count as somebody else's.
                let _ = std::fs::remove_file(folder.path().join(SCALES));
            }
            let kept = folder.keep(&record);
            // If this write fails too, the earlier error says enough.
            finished?;
            kept?;
            let path = folder.path().to_owned();
            return Err(SamplingInterrupted::First { done, path }.into());
        }
        finished?.say(count);
        println!("{}", folder.path().join(GRID).display());
        Ok(())
    }

    /// Writes a part of a record's images, and no file that is about all of them.
    fn paint_part(
        &mut self,
        record: &SampleRecord,
        part: Part,
        target: &Target<'_>,
        interrupt: &Interrupt,
        draw: impl FnMut(&mut Painter<'a, B>, &Batch<'_>) -> Result<Painted, B::Error>,
    ) -> anyhow::Result<()> {
        let (path, numbers) = (target.folder.path(), part.of(record.labels.len()));
        let mut sheets = Sheets::new(path, self.size, 0, None);
        sheets.done = numbers.start;
        let drawn = self.draw_missing(
            &record.labels[..numbers.end],
            &mut sheets,
            0,
            interrupt,
            target.quiet,
            draw,
        )?;
        if sheets.done < numbers.end {
            let done = sheets.done - numbers.start;
            let path = path.to_owned();
            return Err(SamplingInterrupted::Part { done, of: numbers.len(), part, path }.into());
        }
        drawn.say(numbers.len());
        println!("{}", path.display());
        Ok(())
    }

    /// Draws and writes the images that are missing between where the sheets are and the last of
    /// `labels`, until the user stops it; the first `strips` images also at every scale.
    fn draw_missing(
        &mut self,
        labels: &[u32],
        sheets: &mut Sheets<'_>,
        strips: usize,
        interrupt: &Interrupt,
        quiet: bool,
        mut draw: impl FnMut(&mut Painter<'a, B>, &Batch<'_>) -> Result<Painted, B::Error>,
    ) -> anyhow::Result<Drawn> {
        let (first, count) = (sheets.done, labels.len());
        // The strip shows the first images, which are drawn again if it shows fewer or does not exist.
        let rows = || grid::rows_in(&sheets.folder.join(SCALES), self.size.0);
        let has_strip = strips == 0 || rows() == Some(strips);
        if has_strip && (0..strips).all(|k| sheets.load(k).is_some()) {
            sheets.take_up(count, interrupt)?;
        }
        let there = (sheets.done - first) as u64;
        let mut drawn = Drawn {
            progress: Progress::new("sampling", (count - first) as u64, there, quiet),
            images: 0,
            start: Instant::now(),
        };
        let mut pictures = Painted::default();
        while sheets.done < count && !interrupt.is_asked() {
            let done = sheets.done;
            let labels = &labels[done..count.min(done + self.batch)];
            let shown = strips.saturating_sub(done).min(labels.len());
            let batch = Batch { labels, first_image: done as u64, strips: shown };
            let painted = draw(&mut self.painter, &batch)?;
            if shown > 0 {
                self.save_strips(&mut pictures, &painted, sheets.folder)?;
            }
            sheets.add(&painted.images, labels.len())?;
            drawn.images += labels.len();
            if sheets.done >= strips {
                // Images may exist after a gap, for example where another part is missing.
                sheets.take_up(count, interrupt)?;
            }
            drawn.progress.update((sheets.done - first) as u64, "");
        }
        Ok(drawn)
    }

    /// Adds the pictures of a batch at every scale to the strip.
    fn save_strips(
        &self,
        pictures: &mut Painted,
        painted: &Painted,
        folder: &Path,
    ) -> anyhow::Result<()> {
        pictures.scales.resize(painted.scales.len(), Vec::new());
        for (shown, more) in pictures.scales.iter_mut().zip(&painted.scales) {
            shown.extend_from_slice(more);
        }
        grid::save_strips(&folder.join(SCALES), &self.painter.strips(pictures))?;
        Ok(())
    }
}

/// What is reported about images that were drawn.
struct Drawn {
    progress: Progress,
    /// Number of images drawn, without those that already existed.
    images: usize,
    start: Instant,
}

impl Drawn {
    fn say(self, count: usize) {
        let speed = rate(self.images as f64 / self.start.elapsed().as_secs_f64());
        self.progress.finish(&match self.images {
            _ if count == 0 => "no image falls to this part".to_owned(),
            0 => format!("all {count} images were there"),
            // Perhaps only the first ones were drawn again, for the strip.
            drawn if drawn < count => format!("{drawn} images drawn, {count} in all, {speed}"),
            _ => format!("{count} images, {speed}"),
        });
    }
}

/// What the images are written to as they come.
struct Sheets<'a> {
    folder: &'a Path,
    /// Height and width of an image.
    size: (usize, usize),
    npz: Option<NpzWriter>,
    /// Images of the grid so far, and the number of values that it has room for.
    shown: Vec<f32>,
    room: usize,
    /// Number of images written.
    done: usize,
}

impl<'a> Sheets<'a> {
    fn new(folder: &'a Path, size: (usize, usize), in_grid: usize, npz: Option<NpzWriter>) -> Self {
        Self { folder, size, npz, shown: Vec::new(), room: in_grid * 3 * size.0 * size.1, done: 0 }
    }

    fn images<'i>(&self, images_b3hw: &'i [f32]) -> Images<'i> {
        Images { images_b3hw, height: self.size.0, width: self.size.1 }
    }

    /// Loads an image of the folder if it is there and whole.
    fn load(&self, number: usize) -> Option<Vec<f32>> {
        grid::load(self.folder, number as u64, self.size)
    }

    /// Takes images that are already in the folder, from the next one up to the first that is
    /// missing or damaged.
    fn take_up(&mut self, most: usize, interrupt: &Interrupt) -> anyhow::Result<()> {
        while self.done < most
            && !interrupt.is_asked()
            && let Some(image) = self.load(self.done)
        {
            self.show(&image, 1)?;
        }
        Ok(())
    }

    /// Writes a batch of `count` images.
    fn add(&mut self, images: &[f32], count: usize) -> anyhow::Result<()> {
        grid::save_each(self.folder, self.images(images), self.done as u64).context(
            "the images before it are there; once this one can be written, go on with --resume, the other flags as \
             they were (with --part, by the same call)",
        )?;
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

    /// Writes the grid and, if all `count` images are there, the array.
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
pub(super) enum SamplingInterrupted {
    #[error(
        "interrupted; the first {done} images are in {}; go on with --resume, the other flags as they were",
        path.display()
    )]
    First { done: usize, path: PathBuf },
    #[error(
        "interrupted; {done} of the {of} images of part {part} are in {}; the same call goes on",
        path.display()
    )]
    Part { done: usize, of: usize, part: Part, path: PathBuf },
}
