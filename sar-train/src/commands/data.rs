//! `sar data check`: decodes every image and says what is there.

use super::next;
use super::place::ready_new;
use crate::cli::{DataArgs, DataCommand, GlobalArgs};
use crate::data::grid::{Images, save_grid};
use crate::data::{
    Augment, BadImage, Crop, DataConfig, DataError, ImageFile, Listing, Source, classes_within,
    locate, open,
};
use crate::run::Progress;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Largest side of a preview image, in pixels.
const PREVIEW_SIDE: usize = 256;
/// Images of a class shown in the preview.
const PREVIEW_COLUMNS: usize = 8;
/// Images decoded between two updates of the progress.
const AT_ONCE: usize = 64;
/// Largest number of images without a class that are named at the end.
const LOOSE_SHOWN: usize = 10;
/// Classes shown in the preview.
const PREVIEW_CLASSES: usize = 16;

/// `sar data …`.
///
/// # Errors
/// As [`check`]; images cannot be used and `--skip-bad-images` does not accept them.
pub fn run(args: &DataArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let DataCommand::Check(args) = &args.command;
    let mut config = DataConfig::from_argument(&args.source);
    config.image_side = args.size.unwrap_or(config.image_side);
    config.unlabelled = args.unlabelled;
    config.skip_bad_images = args.skip_bad_images;
    // A single class is reported below, along with what training needs to be told.
    config.allow_one_class = true;
    let _place =
        args.preview.as_deref().map(|path| ready_new(path, &["png"], args.force)).transpose()?;
    let report = check(&config, args.preview.as_deref(), global.quiet)?;
    println!("{report}");
    if let Some(path) = args.preview.as_deref().filter(|_| report.total > 0) {
        let (shown, of) = (report.classes.len().min(PREVIEW_CLASSES), report.classes.len());
        let part = if shown < of {
            format!(" (the first {shown} of {of} classes)")
        } else {
            String::new()
        };
        println!("{}{part}", path.display());
    }
    if config.crop == Crop::Random || config.flip {
        println!(
            "{}; for letters, digits and the like train with --set data.flip=false --set data.crop=center",
            config.augment().described()
        );
    }
    let shown = report.classes.iter().filter(|(_, images)| *images > 0).count();
    // If some files cannot be used, the other classes may be theirs.
    if shown == 1 && !args.unlabelled && report.bad.is_empty() {
        let class = report.classes.iter().find(|(_, images)| *images > 0);
        let within =
            class.map_or(String::new(), |(class, _)| classes_within(&report.source, class));
        println!(
            "only one class: {within}if one class is meant, train with --set data.allow_one_class=true"
        );
    }
    let accepted = args.skip_bad_images && report.total > 0;
    anyhow::ensure!(report.exit_code() == 0 || accepted, "{}", report.fault());
    let trained: Vec<bool> = report.classes.iter().map(|(_, images)| *images > 0).collect();
    if let Some(last) = trained.iter().rposition(|trained| *trained) {
        let gaps = trained[..last].iter().filter(|trained| !**trained).count();
        if gaps > 0 {
            println!(
                "warning: {gaps} of {} classes have no images; they are trained on nothing, and samples of them mean \
                 nothing",
                trained.len()
            );
        }
    }
    if !global.quiet {
        config.allow_one_class = shown == 1 && !args.unlabelled;
        eprintln!("next: {}", next::tokenizer_train(&config));
    }
    Ok(())
}

/// What a check of data found.
#[derive(Clone, Debug, PartialEq)]
pub struct DataReport {
    /// The folder, list file or sheet.
    pub source: PathBuf,
    /// Classes in the order of their labels, with the number of good images.
    pub classes: Vec<(String, usize)>,
    /// Good images, validation included.
    pub total: usize,
    /// How many of them the source names as validation (0: some are held out when training starts).
    pub validation: usize,
    /// Files that cannot be used, in order, and why.
    pub bad: Vec<(PathBuf, BadImage)>,
    /// Not used: images next to the class folders, which have no class, and folders next to `train`.
    pub loose: Vec<PathBuf>,
    /// Class folders without images, left out under `skip_bad_images`.
    pub empty: Vec<PathBuf>,
    /// Width and height of the image with the fewest pixels.
    pub smallest: Option<(u32, u32)>,
    /// Width and height of the image with the most pixels.
    pub largest: Option<(u32, u32)>,
    /// Formats and colour modes with their counts.
    pub modes: BTreeMap<String, usize>,
}

impl DataReport {
    /// 0 if every image can be used and every class has some, else 1.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.bad.is_empty() || !self.empty.is_empty() || self.total == 0)
    }

    /// What keeps the data from being trained on, and what to do about it.
    fn fault(&self) -> String {
        let (bad, empty) = (self.bad.len(), self.empty.len());
        let gone = |(_, reason): &(PathBuf, BadImage)| matches!(reason, BadImage::Missing);
        if bad > 0 && self.total == 0 && self.bad.iter().all(gone) {
            return format!(
                "none of the {bad} images is there: they are links that lead nowhere, or paths of a list, which are \
                 relative to its folder, {}",
                self.source.display()
            );
        }
        let images = format!("{bad} of {} images cannot be used", bad + self.total);
        let folders = match empty {
            1 => "a class folder has no images".to_owned(),
            _ => format!("{empty} class folders have no images"),
        };
        let what = match (bad, empty) {
            (_, 0) => images,
            (0, _) => folders,
            _ => format!("{images}, and {folders}"),
        };
        format!("{what}; remove them, or train with --skip-bad-images")
    }
}

/// Decodes every image of a source; bad ones are listed, whatever `skip_bad_images` says.
///
/// `preview` is where to write a PNG with a row of images for each of the first 16 classes, as large as
/// training sees them, up to 256 pixels.
///
/// # Errors
/// A [`DataError`] if the source cannot be listed (missing, empty, one class, bad line) or the
/// preview cannot be written.
pub fn check(
    config: &DataConfig,
    preview: Option<&Path>,
    quiet: bool,
) -> Result<DataReport, DataError> {
    config.validate()?;
    // Class folders without images are listed with the bad files, in place of an error that would hide those.
    let listed = DataConfig { skip_bad_images: true, ..config.clone() };
    let (report, listing) = match locate(&listed)? {
        Source::Sheet(_) => (check_sheet(config)?, None),
        Source::Files(listing) => (check_files(config, &listing, quiet), Some(listing)),
    };
    if let Some(path) = preview.filter(|_| report.total > 0) {
        match listing {
            Some(listing) => preview_files(config, &listing, &report, path)?,
            None => preview_sheet(config, path)?,
        }
    }
    Ok(report)
}

fn check_sheet(config: &DataConfig) -> Result<DataReport, DataError> {
    let data = open(config)?;
    let side = crate::data::glyphs::CELL as u32;
    let (train, validation) = (data.train.len(), data.validation.len());
    let total = train + validation;
    let mut counts = vec![0; data.classes.len()];
    for label in data.train.labels().into_iter().chain(data.validation.labels()) {
        counts[label as usize] += 1;
    }
    Ok(DataReport {
        source: config.path.clone().unwrap_or_else(|| crate::data::glyphs::BUILTIN.into()),
        classes: data.classes.into_iter().zip(counts).collect(),
        total,
        validation,
        bad: Vec::new(),
        loose: Vec::new(),
        empty: Vec::new(),
        smallest: Some((side, side)),
        largest: Some((side, side)),
        modes: BTreeMap::from([("glyph sheet cell".to_owned(), total)]),
    })
}

fn check_files(config: &DataConfig, listing: &Listing, quiet: bool) -> DataReport {
    let named = listing.validation.as_deref().unwrap_or_default();
    let files: Vec<_> = listing.train.iter().chain(named).collect();
    let look = |(file, _): &&(ImageFile, u32)| {
        let header = file.probe(config.max_pixels)?;
        file.decode(config.max_pixels).map(|_| header)
    };
    let mut progress = Progress::new("checking", files.len() as u64, 0, quiet);
    let mut seen = Vec::with_capacity(files.len());
    for some in files.chunks(AT_ONCE) {
        seen.extend(some.par_iter().map(look).collect::<Vec<_>>());
        progress.update(seen.len() as u64, "");
    }
    progress.finish(&format!("{} images decoded", seen.len()));
    let mut report = DataReport {
        source: listing.root.clone(),
        classes: listing.classes.iter().map(|c| (c.clone(), 0)).collect(),
        total: 0,
        validation: 0,
        bad: Vec::new(),
        loose: listing.loose.clone(),
        empty: listing.empty.clone(),
        smallest: None,
        largest: None,
        modes: BTreeMap::new(),
    };
    let area = |&(w, h): &(u32, u32)| u64::from(w) * u64::from(h);
    for (i, ((file, label), header)) in files.into_iter().zip(seen).enumerate() {
        let header = match header {
            Ok(header) => header,
            Err(reason) => {
                report.bad.push((file.path().into(), reason));
                continue;
            }
        };
        if let Some((_, count)) = report.classes.get_mut(*label as usize) {
            *count += 1;
        }
        let size = (header.width, header.height);
        report.smallest = report.smallest.into_iter().chain([size]).min_by_key(area);
        report.largest = report.largest.into_iter().chain([size]).max_by_key(area);
        *report.modes.entry(header.mode).or_default() += 1;
        report.total += 1;
        report.validation += usize::from(i >= listing.train.len());
    }
    report
}

fn preview_sheet(config: &DataConfig, path: &Path) -> Result<(), DataError> {
    let data = open(config)?;
    let labels = data.train.labels();
    let rows = 0..data.classes.len().min(PREVIEW_CLASSES);
    let chosen: Vec<usize> = rows
        .flat_map(|row| {
            let of_class = labels.iter().enumerate().filter(move |(_, l)| **l as usize == row);
            of_class.map(|(i, _)| i).take(PREVIEW_COLUMNS)
        })
        .collect();
    let batch = data.train.select(&chosen)?;
    save_grid(path, Images::square(&batch.values_b, data.train.side()), PREVIEW_COLUMNS)
}

/// Writes the preview; classes with fewer images than columns leave the rest of their row white.
fn preview_files(
    config: &DataConfig,
    listing: &Listing,
    report: &DataReport,
    path: &Path,
) -> Result<(), DataError> {
    let side = config.image_side.min(PREVIEW_SIDE);
    let augment = Augment::evaluation(side);
    let white = vec![1.0; 3 * side * side];
    let mut images = Vec::new();
    for label in 0..listing.classes.len().min(PREVIEW_CLASSES) {
        let of_class = listing.train.iter().filter(|(f, l)| {
            *l as usize == label && !report.bad.iter().any(|(bad, _)| bad == f.path())
        });
        let mut cells = 0;
        for (file, _) in of_class.take(PREVIEW_COLUMNS) {
            let picture = file
                .decode(config.max_pixels)
                .map_err(|reason| DataError::BadImage { path: file.path().into(), reason })?;
            images.extend(augment.evaluate(&picture));
            cells += 1;
        }
        (cells..PREVIEW_COLUMNS).for_each(|_| images.extend_from_slice(&white));
    }
    save_grid(path, Images::square(&images, side), PREVIEW_COLUMNS)
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.source.display())?;
        let names = self.classes.iter().map(|(name, _)| name).chain(self.modes.keys());
        let wide = names.map(|n| n.chars().count()).max().unwrap_or(0).clamp(17, 40);
        writeln!(f, "\n{:<wide$}  {:>9}", "class", "images")?;
        for (name, count) in &self.classes {
            writeln!(f, "{name:<wide$}  {count:>9}")?;
        }
        writeln!(f, "{:<wide$}  {:>9}", "total", self.total)?;
        match self.validation {
            0 => writeln!(f, "validation is held out when training starts")?,
            n => writeln!(f, "{:<wide$}  {n:>9}", "of these held out")?,
        }
        writeln!(f, "\n{:<wide$}  {:>9}", "mode", "images")?;
        for (mode, count) in &self.modes {
            writeln!(f, "{mode:<wide$}  {count:>9}")?;
        }
        if let (Some(small), Some(large)) = (self.smallest, self.largest) {
            let (a, b) = (format!("{}×{}", small.0, small.1), format!("{}×{}", large.0, large.1));
            writeln!(f, "\nsizes from {a} to {b} pixels")?;
        }
        match self.bad.len() {
            1 => writeln!(f, "\n1 bad file")?,
            bad => writeln!(f, "\n{bad} bad files")?,
        }
        for (path, reason) in &self.bad {
            writeln!(f, "  {}: {reason}", path.display())?;
        }
        for path in &self.empty {
            writeln!(f, "\nwarning: {}/ has no images", path.display())?;
        }
        if !self.loose.is_empty() {
            let n = self.loose.len();
            writeln!(f, "\nno part of the data, and not used: {n}")?;
        }
        for path in self.loose.iter().take(LOOSE_SHOWN) {
            let slash = if path.is_dir() { "/" } else { "" };
            writeln!(f, "  {}{slash}", path.display())?;
        }
        Ok(())
    }
}
