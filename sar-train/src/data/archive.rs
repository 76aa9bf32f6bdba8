//! Images in tar archives, read in place: one archive, or a folder of archives.
//!
//! | archives | label of an image |
//! | --- | --- |
//! | shards as in WebDataset | for `key.jpg`, the whole number in `key.cls` or the `label` in `key.json` |
//! | packed class folders | its folder, as on disk; the same data as if unpacked |
//!
//! All archives of a set are of one kind: shards if any of them contains a label. Training and
//! validation are distinguished by a folder in the archive (`val/cat/1.png`), or else by the
//! archive's own folder (`val/00.tar`) or name (`imagenet1k-validation-00.tar`). Nothing is ever
//! written to the names found in an archive.

mod contents;
mod parts;

use super::folder::{self, is_image};
use super::list::MOST_CLASSES_BY_DEFAULT;
use super::{DataError, ImageFile, Listing};
use crate::files::has_extension;
use contents::{Contents, Member};
use parts::{Part, Split};
use rayon::prelude::*;
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Name endings of archives in which an image can only be read after everything before it.
const COMPRESSED: [&str; 9] =
    [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip", ".7z"];
/// Magic bytes of such archives and their offsets: gzip, zstd, xz, bzip2, ZIP.
const COMPRESSED_MAGIC: [(usize, &[u8]); 5] = [
    (0, b"\x1f\x8b"),
    (0, b"\x28\xb5\x2f\xfd"),
    (0, b"\xfd7zXZ"),
    (4, b"1AY&SY"),
    (0, b"PK\x03\x04"),
];
/// Offset and value of the magic bytes of a tar archive.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");
/// What is missing for images in an archive, and what to do about it.
const NO_LABELS: &str = "no labels; put a .cls file with the number of its class beside each, or a .json with \
                         such a `label`, or pack one folder per class";
/// Number of leading bytes needed to recognise a file's type.
pub(super) const MAGIC_BYTES: usize = 262;

/// Whether a file is an archive, judging by its name or its first bytes.
///
/// # Errors
/// [`DataError::Archive`] if it is an archive from which images cannot be read.
pub(super) fn is_archive(path: &Path, magic: &[u8]) -> Result<bool, DataError> {
    let has = |(at, mark): (usize, &[u8])| magic.get(at..).is_some_and(|m| m.starts_with(mark));
    if COMPRESSED_MAGIC.into_iter().any(has) {
        return Err(compressed(path));
    }
    Ok(named_tar(path) || has(TAR_MAGIC))
}

/// Whether a file has the name of a tar archive.
pub(super) fn named_tar(path: &Path) -> bool {
    has_extension(path, "tar")
}

/// Returns the name of the file of this kind that belongs to an image.
fn named(key: &Path, kind: &str) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".");
    name.push(kind);
    name.into()
}

fn compressed(path: &Path) -> DataError {
    let reason = "a compressed archive; images are read from where they lie in an archive, so \
                  unpack it, or pack its files into a .tar";
    DataError::Archive { path: path.to_path_buf(), reason: reason.into() }
}

/// An archive, and the part of the data that its folder or name indicates.
type Found = (PathBuf, Option<Part>);

/// The archives in a folder.
struct Archives {
    found: Vec<Found>,
    /// Other files and folders next to them, which are not used.
    beside: Vec<PathBuf>,
}

/// Lists a folder that holds its images in archives and none in folders; returns `None` for any
/// other folder.
///
/// # Errors
/// As for [`list`]; also if the folder cannot be read, holds compressed archives, or has packed
/// training archives while another part is not packed.
pub(super) fn list_folder(
    root: &Path,
    unlabelled: bool,
    num_classes: Option<usize>,
) -> Result<Option<Listing>, DataError> {
    let Some(mut archives) = in_folder(root, unlabelled)? else { return Ok(None) };
    let mut listing = list(root, archives.found, unlabelled, num_classes)?;
    listing.loose.append(&mut archives.beside);
    Ok(Some(listing))
}

fn in_folder(root: &Path, unlabelled: bool) -> Result<Option<Archives>, DataError> {
    let (mut folders, files) = folder::entries(root)?;
    let (tars, mut others): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| named_tar(path));
    let packed = first_compressed(&others);
    others.retain(|path| is_image(path));
    if let Some(mut archives) = in_parts(root, &folders)? {
        if let Some(path) = packed {
            return Err(compressed(&path));
        }
        folders.retain(|folder| folder.file_name().and_then(Part::of_folder).is_none());
        archives.beside.extend([folders, tars, others].concat());
        return Ok(Some(archives));
    }
    if tars.is_empty() && packed.is_none() {
        return Ok(None);
    }
    // Images in folders take precedence over archives, and so do loose ones if no labels are
    // required.
    for folder in &folders {
        if folder::holds_image(folder)? {
            return Ok(None);
        }
    }
    let images = unlabelled && !others.is_empty();
    match packed {
        Some(path) if !tars.is_empty() || (others.is_empty() && folders.is_empty()) => {
            return Err(compressed(&path));
        }
        _ if tars.is_empty() || images => return Ok(None),
        _ => {}
    }
    let found = tars.into_iter().map(|path| (path.clone(), Part::of_archive(&path))).collect();
    Ok(Some(Archives { found, beside: [folders, others].concat() }))
}

/// Returns the first file that has the name of a compressed archive.
fn first_compressed(files: &[PathBuf]) -> Option<PathBuf> {
    let is_compressed = |path: &&PathBuf| {
        let name = path.to_string_lossy().to_lowercase();
        COMPRESSED.iter().any(|end| name.ends_with(end))
    };
    files.iter().find(is_compressed).cloned()
}

/// Finds archives in folders named after parts of the data; returns `None` if there are none for
/// training.
fn in_parts(root: &Path, folders: &[PathBuf]) -> Result<Option<Archives>, DataError> {
    let (mut found, mut beside): (Vec<Found>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    let (mut without, mut packed) = (None, None);
    for folder in folders {
        let Some(part) = folder.file_name().and_then(Part::of_folder) else { continue };
        let (inner, files) = folder::entries(folder)?;
        let (tars, mut others): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|path| named_tar(path));
        if tars.is_empty() || !inner.is_empty() {
            without = Some(folder.clone());
            continue;
        }
        packed = packed.or(first_compressed(&others));
        if found.iter().any(|(other, of)| *of == Some(part) && other.parent() != Some(folder)) {
            let names = folders.iter().filter_map(|f| f.file_name());
            let names = names.filter(|name| Part::of_folder(name) == Some(part));
            let found: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
            return Err(DataError::SeveralParts { path: root.into(), found: found.join(", ") });
        }
        others.retain(|path| is_image(path));
        beside.append(&mut others);
        found.extend(tars.into_iter().map(|path| (path, Some(part))));
    }
    match (found.iter().any(|(_, part)| *part == Some(Part::Training)), without) {
        (true, Some(path)) => {
            let reason =
                "expected .tar archives and no folders here, as there are of the other part";
            Err(DataError::Archive { path, reason: reason.into() })
        }
        (true, None) => match packed {
            Some(path) => Err(compressed(&path)),
            None => Ok(Some(Archives { found, beside })),
        },
        (false, _) => Ok(None),
    }
}

/// Lists a single archive; its name does not decide which part of the data it is.
///
/// # Errors
/// As for [`list`].
pub(super) fn list_one(
    path: &Path,
    unlabelled: bool,
    num_classes: Option<usize>,
) -> Result<Listing, DataError> {
    list(path, vec![(path.to_path_buf(), None)], unlabelled, num_classes)
}

/// A member that may be an image: its place in the set and the label given in the archive.
struct Candidate {
    /// Name in the archive; later without the prefix that all names share and without the folder of
    /// its part.
    name: PathBuf,
    part: Option<Part>,
    label: Option<u64>,
    file: ImageFile,
}

/// Lists archives; labels must lie below `num_classes` if given.
///
/// # Errors
/// A [`DataError`] that names the archive or the member.
fn list(
    root: &Path,
    archives: Vec<Found>,
    unlabelled: bool,
    num_classes: Option<usize>,
) -> Result<Listing, DataError> {
    let read = |(path, _): &Found| Contents::read(path, !unlabelled);
    let read: Vec<_> = archives.par_iter().map(read).collect();
    let contents = read.into_iter().collect::<Result<Vec<_>, _>>()?;
    let numbered = contents.iter().any(|c| !c.labels.is_empty());
    let folders = !numbered && !unlabelled;
    let (mut candidates, mut odd) = (Vec::new(), Vec::new());
    for ((path, part), mut contents) in archives.into_iter().zip(contents) {
        let mut unused = std::mem::take(&mut contents.odd);
        candidates.extend(contents.candidates(part, folders, &mut unused)?);
        odd.extend(unused.into_iter().map(|name| path.join(name)));
    }
    if candidates.is_empty() {
        return Err(DataError::Empty { path: root.to_path_buf(), hint: "" });
    }
    parts::strip(&mut candidates, if folders { 2 } else { 1 });
    let split = parts::split(candidates);
    let mut listing = match (unlabelled, numbered) {
        (true, _) => of_no_class(root, split),
        (false, true) => by_number(root, split, num_classes)?,
        (false, false) => by_folder(root, split)?,
    };
    listing.loose.append(&mut odd);
    Ok(listing)
}

impl Contents {
    /// Returns the images of an archive. Files with a `label` but no image, which may serve another
    /// purpose, are added to `unused`. With `folders`, labels come from class folders.
    fn candidates(
        self,
        part: Option<Part>,
        folders: bool,
        unused: &mut Vec<PathBuf>,
    ) -> Result<Vec<Candidate>, DataError> {
        let Self { archive, mut files, labels, .. } = self;
        // Every file of a class folder is meant as an image; shards also hold files that describe
        // their images.
        files.retain(|m| folders || (is_image(&m.name) && !labels.is_other_part(&m.name)));
        let bad = |name: &Path, reason: &str| {
            Err(DataError::Archive { path: archive.join(name), reason: reason.into() })
        };
        let mut images = HashSet::new();
        for file in files.iter().filter(|_| !labels.is_empty()) {
            if !images.insert(contents::key(&file.name)) {
                return bad(&file.name, "a second image of one label; leave one of them there");
            }
        }
        if let Some(key) = labels.numbers().filter(|key| !images.contains(*key)).min() {
            let reason = "a label without an image; expected KEY.png, .jpg or .webp beside KEY.cls";
            return bad(&named(key, "cls"), reason);
        }
        let lone = labels.written().filter(|key| !images.contains(*key));
        let mut lone: Vec<PathBuf> = lone.map(|key| named(key, "json")).collect();
        lone.sort();
        unused.append(&mut lone);
        let candidate = |Member { name, offset, size }: Member| {
            let label = labels.of(&name);
            let file = ImageFile::member(archive.clone(), &name, offset, size);
            Candidate { name, part, label, file }
        };
        Ok(files.into_iter().map(candidate).collect())
    }
}

/// Lists all images as one class.
fn of_no_class(root: &Path, split: Split) -> Listing {
    let Split { train, validation, loose } = split;
    let unlabelled = |images: Vec<Candidate>| images.into_iter().map(|i| (i.file, 0)).collect();
    Listing {
        root: root.to_path_buf(),
        kind: "unlabelled images in tar archives",
        classes: vec!["images".into()],
        train: unlabelled(train),
        validation: validation.map(unlabelled),
        loose,
        empty: Vec::new(),
    }
}

/// Lists images under the numeric labels stored with them.
fn by_number(root: &Path, split: Split, num_classes: Option<usize>) -> Result<Listing, DataError> {
    let labelled = |images: Vec<Candidate>, classes: usize| {
        images.into_iter().map(|image| numbered(image, classes)).collect::<Result<Vec<_>, _>>()
    };
    let train = labelled(split.train, num_classes.unwrap_or(MOST_CLASSES_BY_DEFAULT))?;
    let highest = train.iter().map(|&(_, label)| label as usize).max().unwrap_or(0);
    let classes = num_classes.unwrap_or(highest + 1);
    Ok(Listing {
        root: root.to_path_buf(),
        kind: "tar shards",
        classes: (0..classes).map(|class| class.to_string()).collect(),
        train,
        validation: split.validation.map(|images| labelled(images, classes)).transpose()?,
        loose: split.loose,
        empty: Vec::new(),
    })
}

fn numbered(image: Candidate, classes: usize) -> Result<(ImageFile, u32), DataError> {
    let path = || image.file.path().to_path_buf();
    match image.label {
        Some(label) if label < classes as u64 => Ok((image.file, label as u32)),
        Some(label) => Err(DataError::LabelOutOfRange { path: path(), line: 0, label, classes }),
        None => {
            let reason = "an image without a label; expected a number in a .cls file of the same \
                          name beside it, or as `label` in a .json file";
            Err(DataError::Archive { path: path(), reason: reason.into() })
        }
    }
}

/// Lists images under the names of their folders.
fn by_folder(root: &Path, split: Split) -> Result<Listing, DataError> {
    let Split { train, validation, mut loose } = split;
    let classes: BTreeSet<OsString> = train.iter().filter_map(Candidate::folder).collect();
    if classes.is_empty() {
        return Err(DataError::NoClasses { path: root.to_path_buf(), missing: NO_LABELS });
    }
    let classes: Vec<OsString> = classes.into_iter().collect();
    let train = under(root, &classes, train, &mut loose)?;
    let validation = validation.map(|v| under(root, &classes, v, &mut loose)).transpose()?;
    let kind = "class folders in tar archives";
    let classes = classes.iter().map(|class| class.to_string_lossy().into_owned()).collect();
    let (root, empty) = (root.to_path_buf(), Vec::new());
    Ok(Listing { root, kind, classes, train, validation, loose, empty })
}

/// Labels images by their folders and sorts them in the order of a walk through the folders.
fn under(
    root: &Path,
    classes: &[OsString],
    images: Vec<Candidate>,
    loose: &mut Vec<PathBuf>,
) -> Result<Vec<(ImageFile, u32)>, DataError> {
    let mut labelled = Vec::with_capacity(images.len());
    for image in images {
        let Some(class) = image.folder() else {
            // As next to class folders on disk: notes are ignored, but an image was meant to be
            // used.
            loose.extend(is_image(&image.name).then(|| image.file.path().to_owned()));
            continue;
        };
        let Ok(label) = classes.binary_search(&class) else {
            let (class, known) = (class.to_string_lossy().into_owned(), classes.len());
            return Err(DataError::UnknownClass { path: root.to_path_buf(), class, known });
        };
        labelled.push((label as u32, image));
    }
    labelled.sort_by_cached_key(|(label, image)| (*label, walked(&image.name)));
    Ok(labelled.into_iter().map(|(label, image)| (image.file, label)).collect())
}

/// Returns a sort key that puts the files of a folder before its subfolders.
fn walked(name: &Path) -> Vec<(bool, PathBuf)> {
    let parts: Vec<_> = name.iter().collect();
    let last = parts.len().saturating_sub(1);
    parts.into_iter().enumerate().map(|(i, part)| (i < last, part.into())).collect()
}

impl Candidate {
    /// Returns the class folder that the image lies in.
    fn folder(&self) -> Option<OsString> {
        let mut parts = self.name.iter();
        let first = parts.next()?;
        parts.next().map(|_| first.to_owned())
    }
}
