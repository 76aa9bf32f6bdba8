//! Folders of images: one folder per class, or loose images.

use super::{DataConfig, DataError, ImageFile, Listing, archive, some_of};
use crate::run_files::{is_run, is_samples};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Deeper nesting than this means that a link leads back to its own parent.
const MAX_DEPTH: usize = 32;

/// Names that mark a folder of training images, in upper or lower case.
const TRAIN: [&str; 2] = ["train", "training"];
/// Names that mark a folder of validation images.
const VALIDATION: [&str; 3] = ["val", "valid", "validation"];

/// Whether a folder has the name of one with validation images.
pub(crate) fn is_validation(folder: &Path) -> bool {
    VALIDATION.iter().any(|known| name(folder).eq_ignore_ascii_case(known))
}

/// Whether a folder has the name of one with training images.
pub(super) fn is_training(folder: &Path) -> bool {
    TRAIN.iter().any(|known| name(folder).eq_ignore_ascii_case(known))
}

/// What is missing for loose images, and what to do about it.
const NO_FOLDERS: &str = "no class folders; move them into one folder per class";
/// Files that operating systems leave in folders of images.
const LITTER: [&str; 3] = ["thumbs.db", "desktop.ini", "__macosx"];

/// Whether a name is hidden or one that operating systems leave behind.
pub(super) fn is_litter(name: &OsStr) -> bool {
    let called = name.to_string_lossy().to_lowercase();
    called.starts_with('.') || LITTER.contains(&called.as_str())
}

/// Lists a folder. Hidden names (leading dot) and files that operating systems leave behind are
/// skipped; every other file counts as an image. Folders of runs and of samples are not part of the
/// data.
pub(super) fn list(root: &Path, config: &DataConfig) -> Result<Listing, DataError> {
    let unlabelled = config.unlabelled;
    let (folders, files) = entries(root)?;
    // A class may be called `train`: it is a part of the data only if it holds folders itself.
    let part = |names: &[&str]| -> Result<Option<&PathBuf>, DataError> {
        let named = |f: &&&PathBuf| names.iter().any(|m| name(f).eq_ignore_ascii_case(m));
        let found: Vec<&PathBuf> = folders.iter().filter(|f| named(&f)).collect();
        match found.as_slice() {
            [] => Ok(None),
            [f] if unlabelled || !entries(f)?.0.is_empty() => Ok(Some(f)),
            [_] => Ok(None),
            several => {
                let found = several.iter().map(|f| name(f)).collect::<Vec<_>>().join(", ");
                Err(DataError::SeveralParts { path: root.to_path_buf(), found })
            }
        }
    };
    let Some(train) = part(&TRAIN)? else {
        let called = |names: &[&str]| {
            folders.iter().find(|f| names.iter().any(|m| name(f).eq_ignore_ascii_case(m)))
        };
        // Two classes with just these names are hardly intended.
        if let (false, Some(train), Some(_)) = (unlabelled, called(&TRAIN), called(&VALIDATION)) {
            return Err(DataError::NoClasses { path: train.clone(), missing: NO_FOLDERS });
        }
        let labelled = labelled(root, config)?;
        return Ok(listing(root, unlabelled, labelled, None));
    };
    let mut training = labelled(train, config)?;
    let named = part(&VALIDATION)?;
    let validation = match named {
        Some(folder) => {
            let mut named = labelled(folder, config)?;
            training.loose.append(&mut named.loose);
            training.empty.append(&mut named.empty);
            Some(relabel(folder, named, &training.classes)?)
        }
        None => None,
    };
    let others = folders.iter().filter(|f| *f != train && Some(*f) != named);
    training.loose.extend(others.cloned());
    training.loose.extend(files.into_iter().filter(|file| may_be_data(file)));
    Ok(listing(root, unlabelled, training, validation))
}

fn listing(
    root: &Path,
    unlabelled: bool,
    training: Labelled,
    validation: Option<Vec<(ImageFile, u32)>>,
) -> Listing {
    let kind = if unlabelled { "unlabelled images" } else { "class folders" };
    let Labelled { classes, files: train, loose, empty } = training;
    Listing { root: root.to_path_buf(), kind, classes, train, validation, loose, empty }
}

/// Advice where the only class of a folder holds several folders, which may be the classes; empty otherwise.
pub(crate) fn classes_within(root: &Path, class: &str) -> String {
    let within =
        |folder: &Path| entries(folder).map_or_else(|_| Vec::new(), |(folders, _)| folders);
    let mut inner = root.join(class);
    if let Some(train) = within(root).into_iter().find(|folder| is_training(folder)) {
        // The class is one of its folders, where it has any.
        inner = Some(train.join(class)).filter(|inner| inner.is_dir()).unwrap_or(inner);
    }
    let folders = within(&inner);
    if folders.len() < 2 {
        return String::new();
    }
    let names: Vec<String> = folders.iter().map(|folder| name(folder)).collect();
    let names = some_of(&names.iter().map(String::as_str).collect::<Vec<_>>());
    format!(
        "it holds the folders {names}, which may be the classes: then name {}; ",
        inner.display()
    )
}

/// Contents of one folder.
struct Labelled {
    classes: Vec<String>,
    files: Vec<(ImageFile, u32)>,
    /// Images next to the class folders, and folders next to `train` that are not part of the data.
    loose: Vec<PathBuf>,
    /// Class folders without images that are left out.
    empty: Vec<PathBuf>,
}

/// Returns the classes of one folder and their files, both ordered by name.
///
/// With `skip_bad_images`, class folders without images are left out, unless all are empty.
fn labelled(root: &Path, config: &DataConfig) -> Result<Labelled, DataError> {
    let mut found = Walk::default();
    if config.unlabelled {
        found.walk(root, 0, 0)?;
        let Walk { files, samples, .. } = found;
        if files.is_empty() {
            let hint = if samples.is_empty() { "" } else { SAMPLES_ALONE };
            return Err(DataError::Empty { path: root.to_path_buf(), hint });
        }
        let classes = vec!["images".into()];
        return Ok(Labelled { classes, files, loose: samples, empty: Vec::new() });
    }
    let (mut folders, mut loose) = entries(root)?;
    folders.retain(|folder| !found.passes(folder));
    if folders.is_empty() {
        let path = root.to_path_buf();
        return Err(match loose.is_empty() {
            true if !found.samples.is_empty() => DataError::Empty { path, hint: PASSED_OVER },
            true => DataError::Empty { path, hint: " in one folder per class" },
            false => DataError::NoClasses { path, missing: NO_FOLDERS },
        });
    }
    let mut classes = Vec::with_capacity(folders.len());
    let mut empty = Vec::new();
    for folder in folders {
        let before = found.files.len();
        found.walk(&folder, classes.len() as u32, 0)?;
        match found.files.len() == before {
            true => empty.push(folder),
            false => classes.push(name(&folder)),
        }
    }
    if !empty.is_empty() && (!config.skip_bad_images || classes.is_empty()) {
        let names: Vec<String> = empty.iter().map(|folder| name(folder)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (count, named) = (names.len(), some_of(&names));
        return Err(DataError::EmptyClasses { path: root.to_path_buf(), count, named });
    }
    // Notes and lists of names are ignored, but an image was meant to be used.
    loose.retain(|path| may_be_data(path));
    loose.extend(found.samples);
    loose.extend(hidden(root)?);
    Ok(Labelled { classes, files: found.files, loose, empty })
}

/// Hint if only folders of samples are left, when listing images without classes.
const SAMPLES_ALONE: &str = "; folders that `sar sample` wrote, which have a samples.json, are passed over here: name one of \
                             them to measure it";
/// Like [`SAMPLES_ALONE`], when listing class folders.
const PASSED_OVER: &str = " in one folder per class; folders that `sar sample` wrote are passed over, which their \
                           samples.json makes them: remove it from those that are to be trained on";

/// Whether a file has the name of an image, of whatever format.
pub(crate) fn is_image(path: &Path) -> bool {
    image::ImageFormat::from_path(path).is_ok()
}

/// Whether a file has the name of an image or of a tar archive.
fn may_be_data(path: &Path) -> bool {
    is_image(path) || archive::named_tar(path)
}

/// Gives validation files the labels that the same class names have in training.
fn relabel(
    root: &Path,
    named: Labelled,
    classes: &[String],
) -> Result<Vec<(ImageFile, u32)>, DataError> {
    let known = classes.len();
    let labels =
        named.classes.into_iter().map(|class| match classes.iter().position(|c| *c == class) {
            Some(label) => Ok(label as u32),
            None => Err(DataError::UnknownClass { path: root.to_path_buf(), class, known }),
        });
    let labels: Vec<u32> = labels.collect::<Result<_, _>>()?;
    let files = named.files.into_iter();
    Ok(files.map(|(file, label)| (file, labels[label as usize])).collect())
}

/// Files found in a folder and its subfolders.
#[derive(Default)]
struct Walk {
    files: Vec<(ImageFile, u32)>,
    /// Folders of samples that were skipped.
    samples: Vec<PathBuf>,
}

impl Walk {
    /// Whether a folder holds samples, which are skipped: a model would learn from its own images.
    fn passes(&mut self, folder: &Path) -> bool {
        let passes = is_samples(folder);
        self.samples.extend(passes.then(|| folder.to_path_buf()));
        passes
    }

    fn walk(&mut self, folder: &Path, label: u32, depth: usize) -> Result<(), DataError> {
        if depth > MAX_DEPTH {
            let reason = format!("nested more than {MAX_DEPTH} deep; is there a link to a parent?");
            return Err(DataError::Io { path: folder.to_path_buf(), action: "read", reason });
        }
        let (folders, found) = entries(folder)?;
        self.files.extend(found.into_iter().map(|path| (path.into(), label)));
        for inside in folders {
            if !self.passes(&inside) {
                self.walk(&inside, label, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// Whether a folder contains, at any depth, a file with the name of an image.
pub(super) fn holds_image(folder: &Path) -> Result<bool, DataError> {
    fn within(folder: &Path, depth: usize) -> Result<bool, DataError> {
        let (folders, files) = entries(folder)?;
        if files.iter().any(|path| is_image(path)) {
            return Ok(true);
        }
        for inner in folders.iter().filter(|_| depth < MAX_DEPTH) {
            if within(inner, depth + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
    within(folder, 0)
}

/// Hidden folders that have images in them, as class folders do: no class, but perhaps meant to be one.
fn hidden(root: &Path) -> Result<Vec<PathBuf>, DataError> {
    let fail = |e: std::io::Error| DataError::io(root, "read", &e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let mut inside = match name(&path).starts_with('.') && path.is_dir() {
            true => std::fs::read_dir(&path).into_iter().flatten().flatten(),
            false => continue,
        };
        if inside.any(|file| is_image(&file.path())) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Returns folders and files in a folder, each sorted by name.
pub(super) fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DataError> {
    let fail = |e: std::io::Error| DataError::io(folder, "read", &e);
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path = entry.path();
        if path.file_name().is_some_and(is_litter) {
            continue;
        }
        // Only links need another look at the disk, which matters with a million images.
        let kind = entry.file_type().map_err(fail)?;
        if kind.is_dir() || (kind.is_symlink() && path.is_dir()) {
            // A run folder next to the images it was trained on is not part of them.
            if !is_run(&path) {
                folders.push(path)
            }
        } else {
            files.push(path)
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

fn name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
