//! Images in tar archives, read where they lie: one archive, or a folder of them.
//!
//! | archives | label of an image |
//! | --- | --- |
//! | shards, as WebDataset has them | of `key.jpg` the whole number in `key.cls`, or `label` of `key.json` |
//! | class folders, packed | its folder, as on disk; the same data as if unpacked |
//!
//! Archives of one set are of one kind: shards if any of them has a label. Training and validation are told
//! apart by a folder in the archive (`val/cat/1.png`), else by the archive's own (`val/00.tar`) or its name
//! (`imagenet1k-validation-00.tar`). Names in an archive are never written to.

mod contents;

use super::list::MAX_CLASSES;
use super::{DataError, ImageFile, Listing, folder};
use contents::{Contents, Member, example};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Ends of names of archives in which no image can be read without all before it.
const COMPRESSED: [&str; 9] =
    [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip", ".7z"];
/// What such archives begin with: gzip, zstd, xz, bzip2, ZIP.
const COMPRESSED_MAGIC: [&[u8]; 5] =
    [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", b"PK\x03\x04"];
/// Where a tar archive has its magic, and what it is.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");
/// What images in an archive lack, and what to do about it.
const NO_LABELS: &str = "no labels; put a .cls file with the number of its class beside each, or pack one \
                         folder per class";
/// Bytes that tell what a file is.
pub(super) const MAGIC_BYTES: usize = 262;

/// Whether a file is an archive, by its name or its first bytes.
///
/// # Errors
/// [`DataError::Archive`] if it is one that images cannot be read from.
pub(super) fn is_archive(path: &Path, magic: &[u8]) -> Result<bool, DataError> {
    if COMPRESSED_MAGIC.iter().any(|m| magic.starts_with(m)) {
        return Err(compressed(path));
    }
    let (at, ustar) = TAR_MAGIC;
    Ok(named_tar(path) || magic.get(at..).is_some_and(|rest| rest.starts_with(ustar)))
}

/// Whether a file is called as a tar archive is.
pub(super) fn named_tar(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar"))
}

fn compressed(path: &Path) -> DataError {
    let reason = "a compressed archive; images are read from where they lie in an archive, so \
                  unpack it, or pack its files into a .tar";
    DataError::Archive { path: path.to_path_buf(), reason: reason.into() }
}

/// An archive, and which part of the data its place or name says it is.
type Found = (PathBuf, Option<Part>);

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Training,
    Validation,
}

impl Part {
    /// The part of a folder that is called so.
    fn of_folder(name: &OsStr) -> Option<Self> {
        let path = Path::new(name);
        match (folder::is_training(path), folder::is_validation(path)) {
            (true, _) => Some(Self::Training),
            (_, true) => Some(Self::Validation),
            _ => None,
        }
    }

    /// The part that one of the words of an archive's name says, as `imagenet1k-validation-00.tar`.
    fn of_archive(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?;
        let mut words = stem.split(|c: char| !c.is_ascii_alphabetic());
        words.find_map(|word| Self::of_folder(OsStr::new(word)))
    }
}

/// Lists a folder that holds its images in archives, and none in folders; of another there is no such listing.
///
/// # Errors
/// As [`list`]; the folder cannot be read, or holds compressed archives.
pub(super) fn list_folder(
    root: &Path,
    unlabelled: bool,
    num_classes: Option<usize>,
) -> Result<Option<Listing>, DataError> {
    let (folders, files) = folder::entries(root)?;
    if !folders.is_empty() {
        let found = in_parts(&folders)?;
        return found.map(|found| list(root, found, unlabelled, num_classes)).transpose();
    }
    let (tars, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| named_tar(path));
    let packed = |path: &&PathBuf| {
        let name = path.to_string_lossy().to_lowercase();
        COMPRESSED.iter().any(|end| name.ends_with(end))
    };
    if let (true, Some(path)) = (tars.is_empty(), others.iter().find(packed)) {
        return Err(compressed(path));
    }
    let loose = others.into_iter().filter(|path| image::ImageFormat::from_path(path).is_ok());
    let mut loose: Vec<PathBuf> = loose.collect();
    // Loose images are data where no labels are asked for.
    if tars.is_empty() || (unlabelled && !loose.is_empty()) {
        return Ok(None);
    }
    let found = tars.into_iter().map(|path| (path.clone(), Part::of_archive(&path))).collect();
    let mut listing = list(root, found, unlabelled, num_classes)?;
    listing.loose.append(&mut loose);
    Ok(Some(listing))
}

/// The archives in the folders of parts, which hold no folders; those of training must be there.
fn in_parts(folders: &[PathBuf]) -> Result<Option<Vec<Found>>, DataError> {
    let mut found = Vec::new();
    for folder in folders {
        let Some(part) = folder.file_name().and_then(Part::of_folder) else { continue };
        let (inner, files) = folder::entries(folder)?;
        if inner.is_empty() {
            let tars = files.into_iter().filter(|path| named_tar(path));
            found.extend(tars.map(|path| (path, Some(part))));
        }
    }
    let trains = found.iter().any(|(_, part)| *part == Some(Part::Training));
    Ok(trains.then_some(found))
}

/// Lists one archive; its name says nothing of its part.
///
/// # Errors
/// As [`list`].
pub(super) fn list_one(
    path: &Path,
    unlabelled: bool,
    num_classes: Option<usize>,
) -> Result<Listing, DataError> {
    list(path, vec![(path.to_path_buf(), None)], unlabelled, num_classes)
}

/// An image to be: its place in its set, and what the archive says of its label.
struct Candidate {
    /// Its name below what all names share, and below the folder of its part.
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
    let mut candidates = Vec::new();
    for ((_, part), contents) in archives.iter().zip(contents) {
        candidates.extend(contents.candidates(*part, !numbered && !unlabelled));
    }
    if candidates.is_empty() {
        return Err(DataError::Empty { path: root.to_path_buf(), hint: "" });
    }
    let split = split(candidates);
    match (unlabelled, numbered) {
        (true, _) => Ok(of_no_class(root, split)),
        (false, true) => by_number(root, split, num_classes),
        (false, false) => by_folder(root, split),
    }
}

/// The parts of a set.
struct Split {
    train: Vec<Candidate>,
    validation: Option<Vec<Candidate>>,
    /// What is named neither where training is named.
    loose: Vec<PathBuf>,
}

/// Names tell parts apart only where there are two.
fn split(candidates: Vec<Candidate>) -> Split {
    let named = candidates.iter().any(|c| c.part == Some(Part::Training));
    let all = !candidates.iter().any(|c| c.part != Some(Part::Validation));
    let (mut train, mut validation, mut loose) = (Vec::new(), Vec::new(), Vec::new());
    for candidate in candidates {
        match candidate.part {
            Some(Part::Validation) if !all => validation.push(candidate),
            None if named => loose.push(candidate.file.path().to_owned()),
            _ => train.push(candidate),
        }
    }
    Split { train, validation: Some(validation).filter(|v| !v.is_empty()), loose }
}

/// All images as one class.
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
    }
}

/// Images under the numbers that stand beside them.
fn by_number(root: &Path, split: Split, num_classes: Option<usize>) -> Result<Listing, DataError> {
    let labelled = |images: Vec<Candidate>, classes: usize| {
        images.into_iter().map(|image| numbered(image, classes)).collect::<Result<Vec<_>, _>>()
    };
    let train = labelled(split.train, num_classes.unwrap_or(MAX_CLASSES))?;
    let highest = train.iter().map(|&(_, label)| label as usize).max().unwrap_or(0);
    let classes = num_classes.unwrap_or(highest + 1);
    Ok(Listing {
        root: root.to_path_buf(),
        kind: "tar shards",
        classes: (0..classes).map(|class| class.to_string()).collect(),
        train,
        validation: split.validation.map(|images| labelled(images, classes)).transpose()?,
        loose: split.loose,
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

/// Images under the names of their folders.
fn by_folder(root: &Path, split: Split) -> Result<Listing, DataError> {
    let Split { train, validation, mut loose } = split;
    let classes: BTreeSet<String> = train.iter().filter_map(Candidate::folder).collect();
    if classes.is_empty() {
        return Err(DataError::NoClasses { path: root.to_path_buf(), missing: NO_LABELS });
    }
    let classes: Vec<String> = classes.into_iter().collect();
    let train = under(root, &classes, train, &mut loose)?;
    let validation = validation.map(|v| under(root, &classes, v, &mut loose)).transpose()?;
    let kind = "class folders in tar archives";
    Ok(Listing { root: root.to_path_buf(), kind, classes, train, validation, loose })
}

/// Images under the labels of their folders, in the order in which a walk through the folders meets them.
fn under(
    root: &Path,
    classes: &[String],
    images: Vec<Candidate>,
    loose: &mut Vec<PathBuf>,
) -> Result<Vec<(ImageFile, u32)>, DataError> {
    let mut labelled = Vec::with_capacity(images.len());
    for image in images {
        let Some(class) = image.folder() else {
            loose.push(image.file.path().to_owned());
            continue;
        };
        let Ok(label) = classes.binary_search(&class) else {
            let known = classes.len();
            return Err(DataError::UnknownClass { path: root.to_path_buf(), class, known });
        };
        labelled.push((label as u32, image));
    }
    labelled.sort_by_cached_key(|(label, image)| (*label, walked(&image.name)));
    Ok(labelled.into_iter().map(|(label, image)| (image.file, label)).collect())
}

/// A name by which sorting puts the files of a folder before its folders.
fn walked(name: &Path) -> Vec<(bool, PathBuf)> {
    let parts: Vec<_> = name.iter().collect();
    let last = parts.len().saturating_sub(1);
    parts.into_iter().enumerate().map(|(i, part)| (i < last, part.into())).collect()
}

impl Candidate {
    /// The class folder it lies in.
    fn folder(&self) -> Option<String> {
        let mut parts = self.name.iter();
        let first = parts.next()?;
        parts.next().map(|_| first.to_string_lossy().into_owned())
    }
}

impl Contents {
    /// The images of an archive. `folders`: class folders name the labels.
    fn candidates(self, part: Option<Part>, folders: bool) -> Vec<Candidate> {
        let Self { archive, mut files, labels } = self;
        files.retain(|member| match folders {
            // All of a class folder is an image, or was meant as one.
            true => true,
            false => {
                let label = |key: PathBuf| labels.contains_key(&key);
                // A part of an example other than its image, as key.mask.png.
                let other = !label(contents::key(&member.name)) && label(example(&member.name));
                image::ImageFormat::from_path(&member.name).is_ok() && !other
            }
        });
        let depth = if folders { 2 } else { 1 };
        let shared = shared(&files, depth);
        let candidate = |Member { name, offset, size }: Member| {
            let label = labels.get(&contents::key(&name)).copied();
            let file = ImageFile::member(archive.clone(), &name, offset, size);
            let below: PathBuf = name.iter().skip(shared).collect();
            let first = below.iter().next().filter(|_| below.iter().count() > depth);
            match first.and_then(Part::of_folder) {
                Some(own) => {
                    let name = below.iter().skip(1).collect();
                    Candidate { name, part: Some(own), label, file }
                }
                None => Candidate { name: below, part, label, file },
            }
        };
        files.into_iter().map(candidate).collect()
    }
}

/// How many folders all names share, beyond the `depth` parts that a name needs; a folder that is called as a
/// part of the data is none of them.
fn shared(files: &[Member], depth: usize) -> usize {
    let common = |at: usize| {
        let first = files.first()?.name.iter().nth(at)?;
        let all = files
            .iter()
            .all(|m| m.name.iter().nth(at) == Some(first) && m.name.iter().count() > at + depth);
        (all && Part::of_folder(first).is_none()).then_some(())
    };
    (0..).take_while(|&at| common(at).is_some()).count()
}
