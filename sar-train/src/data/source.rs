//! Finds out which kind of source a path is, and turns its listing into data sets.

use super::dataset::{Dataset, Item, spread};
use super::decode::BadImage;
use super::folder::classes_within;
use super::glyphs::{self, Sheet};
use super::image_file::ImageFile;
use super::{Data, DataConfig, DataError, archive, folder, list};
use rayon::prelude::*;
use sar_math::philox::{Purpose, Stream};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum number of files whose headers are read when opening: more would delay the start by
/// minutes on a network disk.
const PROBE_LIMIT: usize = 20_000;
/// Maximum number of names in a message.
const NAMED: usize = 5;
/// Sets that decode to at most this many bytes stay in memory.
const MEMORY_LIMIT: u64 = 256 << 20;

/// A source that has been found and listed, with no image decoded.
pub(crate) enum Source {
    /// A grid of glyphs.
    Sheet(Sheet),
    /// Image files with labels.
    Files(Listing),
}

/// Image files with labels, in their final order.
#[derive(Debug, PartialEq)]
pub(crate) struct Listing {
    /// The folder or list file.
    pub(crate) root: PathBuf,
    /// Kind of source, for the log: `class folders`.
    pub(crate) kind: &'static str,
    pub(crate) classes: Vec<String>,
    pub(crate) train: Vec<(ImageFile, u32)>,
    /// Validation images, if the source names them.
    pub(crate) validation: Option<Vec<(ImageFile, u32)>>,
    /// Files next to the class folders, which have no class, and folders next to `train` that are
    /// not part of the data; none of these are used.
    pub(crate) loose: Vec<PathBuf>,
    /// Class folders without images that were left out under `skip_bad_images`.
    pub(crate) empty: Vec<PathBuf>,
}

/// Returns a path relative to a folder, with a slash after the name of a folder.
fn named_in(root: &Path, path: &Path) -> String {
    let slash = if path.is_dir() { "/" } else { "" };
    format!("{}{slash}", path.strip_prefix(root).unwrap_or(path).display())
}

/// Joins the first few of the names.
pub(crate) fn some_of(names: &[&str]) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{}{more}", names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", "))
}

/// Finds and lists the source of a configuration.
pub(crate) fn locate(config: &DataConfig) -> Result<Source, DataError> {
    let mut source = match (&config.path, &config.builtin) {
        (Some(path), _) => at_path(path, config)?,
        (None, Some(name)) => Source::Sheet(glyphs::builtin(name)?),
        (None, None) => return config.validate().and(Err(DataError::Missing { path: "".into() })),
    };
    let (root, classes, present) = match &source {
        Source::Sheet(sheet) => (PathBuf::from(&sheet.name), &sheet.classes, sheet.classes.len()),
        Source::Files(listing) => {
            let mut labels: Vec<u32> = listing.train.iter().map(|&(_, label)| label).collect();
            labels.sort_unstable();
            labels.dedup();
            (listing.root.clone(), &listing.classes, labels.len())
        }
    };
    if present < 2 && !config.allow_one_class && !config.unlabelled {
        let class = classes.last().cloned().unwrap_or_default();
        return Err(one_class(&root, class, 0));
    }
    match config.num_classes {
        Some(n) if classes.len() < n && matches!(source, Source::Sheet(_)) => {
            let reason = format!("a glyph sheet has its {} classes and no more", classes.len());
            Err(DataError::Config { key: "num_classes", reason })
        }
        Some(n) if classes.len() < n => {
            // If the model has more classes than there are images of, the others are named by their
            // numbers.
            if let Source::Files(listing) = &mut source {
                listing.classes.extend((listing.classes.len()..n).map(|class| class.to_string()));
            }
            Ok(source)
        }
        Some(n) if classes.len() > n => Err(DataError::LabelOutOfRange {
            path: root,
            line: 0,
            label: classes.len() as u64 - 1,
            classes: n,
        }),
        _ => Ok(source),
    }
}

fn at_path(path: &Path, config: &DataConfig) -> Result<Source, DataError> {
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
    let DataConfig { unlabelled, num_classes, max_pixels, .. } = *config;
    let unread = |e: std::io::Error| DataError::io(path, "read", &e);
    if std::fs::metadata(path).map_err(unread)?.is_dir() {
        let train = path.join("train.txt");
        return if train.is_file() && !unlabelled {
            list::list(&train, num_classes).map(Source::Files)
        } else if let Some(listing) = archive::list_folder(path, unlabelled, num_classes)? {
            Ok(Source::Files(listing))
        } else {
            folder::list(path, config).map(Source::Files)
        };
    }
    let mut magic = Vec::with_capacity(archive::MAGIC_BYTES);
    let file = File::open(path).map_err(unread)?;
    file.take(archive::MAGIC_BYTES as u64).read_to_end(&mut magic).map_err(unread)?;
    if magic.starts_with(PNG) {
        return glyphs::from_file(path, max_pixels).map(Source::Sheet);
    }
    match archive::is_archive(path, &magic)? {
        true => archive::list_one(path, unlabelled, num_classes).map(Source::Files),
        false => list::list(path, num_classes).map(Source::Files),
    }
}

/// Makes data sets from a glyph sheet; all cells stay in memory.
pub(super) fn from_sheet(config: &DataConfig, sheet: &Sheet) -> Result<Data, DataError> {
    let root = PathBuf::from(&sheet.name);
    let items = |columns: std::ops::Range<usize>| -> Vec<Item> {
        let cells = (0..sheet.classes.len()).flat_map(|row| columns.clone().map(move |c| (row, c)));
        let item = |(row, column): (usize, usize)| Item {
            file: root.join(&sheet.classes[row]).join(column.to_string()).into(),
            label: row as u32,
            picture: Some(Arc::new(sheet.cell(row, column))),
        };
        cells.map(item).collect()
    };
    let train = items(sheet.train_columns());
    let validation = items(sheet.validation_columns());
    let how = format!("the last {} columns", glyphs::VALIDATION_COLUMNS);
    let listing_kind = "glyph sheet";
    let classes = sheet.classes.clone();
    Ok(assemble(config, root, listing_kind, classes, train, validation, (how, false), vec![]))
}

/// Makes data sets from a listing: checks the files, drops bad ones if asked to, and holds out
/// validation.
pub(super) fn from_files(config: &DataConfig, listing: Listing) -> Result<Data, DataError> {
    let Listing { root, kind, classes, train, validation, loose, empty } = listing;
    let mut skipped = Vec::new();
    let all = train.len() + validation.as_ref().map_or(0, Vec::len);
    let look = all <= PROBE_LIMIT;
    let mut admit = |files| {
        if look { vet(config, &root, files, &mut skipped) } else { Ok(unseen(files)) }
    };
    let train = admit(train)?;
    let named = validation.map(admit).transpose()?;
    if !skipped.is_empty() {
        refuse_one_class(config, &root, &classes, &train, skipped.len())?;
    }
    let drawn = named.is_none();
    let (train, validation, how) = match named {
        Some(validation) => (train, validation, "as the source names it".to_owned()),
        None => {
            let (train, held) = hold_out(train, classes.len(), config);
            let share = config.val_fraction * 100.0;
            let seed = config.split_seed;
            let how = match config.val_fraction > 0.0 {
                true => format!("{share} % of each class, at least one image, by seed {seed}"),
                false => "none is held out".to_owned(),
            };
            (train, held, how)
        }
    };
    let names: Vec<String> = loose.iter().map(|path| named_in(&root, path)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let kind = match names.len() {
        0 => kind.to_owned(),
        n => format!("{kind}; beside them and not used: {n} ({})", some_of(&names)),
    };
    let data = assemble(config, root, &kind, classes, train, validation, (how, drawn), skipped);
    Ok(Data { empty, ..data })
}

/// Fails if only images of a single class are left after bad ones were removed.
fn refuse_one_class(
    config: &DataConfig,
    root: &Path,
    classes: &[String],
    train: &[Item],
    bad: usize,
) -> Result<(), DataError> {
    let labels: BTreeSet<u32> = train.iter().map(|item| item.label).collect();
    match labels.first() {
        Some(only) if labels.len() < 2 && !config.allow_one_class && !config.unlabelled => {
            let class = classes.get(*only as usize).cloned().unwrap_or_default();
            Err(one_class(root, class, bad))
        }
        _ => Ok(()),
    }
}

fn one_class(root: &Path, class: String, bad: usize) -> DataError {
    let within = classes_within(root, &class);
    DataError::OneClass { path: root.to_owned(), class, bad, within }
}

fn assemble(
    config: &DataConfig,
    root: PathBuf,
    kind: &str,
    classes: Vec<String>,
    train: Vec<Item>,
    validation: Vec<Item>,
    (how, drawn): (String, bool),
    skipped: Vec<(PathBuf, BadImage)>,
) -> Data {
    let listed = train.len();
    let train = limited(train, config.limit);
    let of_all = if train.len() < listed { format!(" of {listed}") } else { String::new() };
    let mut summary = format!(
        "{} ({kind}): {} classes, {}{of_all} training and {} validation images ({how})",
        root.display(),
        classes.len(),
        train.len(),
        validation.len()
    );
    if !skipped.is_empty() {
        summary += &format!(", {} bad images skipped", skipped.len());
    }
    for (part, items) in [("training", &train), ("validation", &validation)] {
        let shown: BTreeSet<u32> = items.iter().map(|item| item.label).collect();
        let unseen = classes.iter().zip(0..).filter(|(_, label)| !shown.contains(label));
        let unseen: Vec<&str> = unseen.map(|(name, _)| name.as_str()).collect();
        if !unseen.is_empty() && !items.is_empty() {
            let (count, named) = (unseen.len(), some_of(&unseen));
            summary += &format!("; {count} of the classes without a {part} image: {named}");
        }
    }
    Data {
        train: Dataset::new(root.clone(), train, config),
        validation: Dataset::new(root, validation, config),
        listed,
        classes,
        drawn,
        augment: config.augment(),
        summary,
        skipped,
        empty: Vec::new(),
        workers: config.workers,
    }
}

/// Returns up to `limit` images, spread evenly over the listing, which is ordered by class except
/// in list files.
fn limited(items: Vec<Item>, limit: Option<usize>) -> Vec<Item> {
    let Some(limit) = limit else { return items };
    let chosen = spread(items.len(), limit);
    chosen.into_iter().filter_map(|index| items.get(index).cloned()).collect()
}

fn unseen(files: Vec<(ImageFile, u32)>) -> Vec<Item> {
    files.into_iter().map(|(file, label)| Item { file, label, picture: None }).collect()
}

/// Reads the headers, decodes everything if it fits into memory, and drops or reports bad images.
fn vet(
    config: &DataConfig,
    root: &Path,
    files: Vec<(ImageFile, u32)>,
    skipped: &mut Vec<(PathBuf, BadImage)>,
) -> Result<Vec<Item>, DataError> {
    let count = files.len();
    let before = skipped.len();
    let max_pixels = config.max_pixels;
    let headers: Vec<_> = files.par_iter().map(|(file, _)| file.probe(max_pixels)).collect();
    let bytes: u64 = headers.iter().flatten().map(|h| h.bytes).sum();
    let files: Vec<_> = files.into_iter().zip(headers).collect();
    let keep = bytes <= MEMORY_LIMIT;
    let seen: Vec<_> = files
        .into_par_iter()
        .map(|((file, label), header)| {
            let picture = match header {
                Ok(_) if keep => file.decode(max_pixels).map(|p| Some(Arc::new(p))),
                Ok(_) => Ok(None),
                Err(reason) => Err(reason),
            };
            (file, label, picture)
        })
        .collect();
    let mut items = Vec::with_capacity(seen.len());
    for (file, label, picture) in seen {
        match picture {
            Ok(picture) => items.push(Item { file, label, picture }),
            Err(reason) if config.skip_bad_images => skipped.push((file.path().into(), reason)),
            Err(reason) => return Err(DataError::BadImage { path: file.path().into(), reason }),
        }
    }
    match (items.is_empty(), skipped.get(before)) {
        (true, Some((first, reason))) => Err(DataError::AllBad {
            path: root.to_path_buf(),
            count,
            first: first.clone(),
            reason: reason.clone(),
        }),
        _ => Ok(items),
    }
}

/// Takes the validation share out of every class; a class of two or more images keeps at least one
/// on each side.
fn hold_out(items: Vec<Item>, classes: usize, config: &DataConfig) -> (Vec<Item>, Vec<Item>) {
    let mut members = vec![Vec::new(); classes];
    for (i, item) in items.iter().enumerate() {
        if let Some(class) = members.get_mut(item.label as usize) {
            class.push(i);
        }
    }
    let mut held = vec![false; items.len()];
    for (class, members) in members.iter_mut().enumerate() {
        let n = members.len();
        if n < 2 || config.val_fraction == 0.0 {
            continue;
        }
        let share = (n as f64 * config.val_fraction).round() as usize;
        Stream::new(config.split_seed, Purpose::Evaluation, class as u64).shuffle(members);
        members.iter().take(share.clamp(1, n - 1)).for_each(|&i| held[i] = true);
    }
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for (item, held) in items.into_iter().zip(held) {
        if held { validation.push(item) } else { train.push(item) }
    }
    (train, validation)
}
