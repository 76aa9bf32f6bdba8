//! Contents of one tar archive, and where they lie in it.

use super::super::{DataError, folder};
use crate::files::has_extension;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use tar::{Entry, EntryType};

/// Files longer than this are not label files.
const LABEL_BYTES: u64 = 1 << 20;
/// Maximum number of characters of a label quoted in a message.
const QUOTED: usize = 40;
/// Size of a tar block in bytes; a block of zeros ends an archive.
const BLOCK: u64 = 512;

/// Regular files of one archive; their image data has not been read.
pub(super) struct Contents {
    pub(super) archive: Arc<Path>,
    /// Files in the order of the archive; of several with the same name only the last, as after
    /// unpacking.
    pub(super) files: Vec<Member>,
    pub(super) labels: Labels,
    /// Names of members that are not complete files: links to other places, sparse files.
    pub(super) odd: Vec<PathBuf>,
}

/// A file in an archive.
#[derive(Clone)]
pub(super) struct Member {
    /// Relative path; entries whose names lead out of the archive are left out.
    pub(super) name: PathBuf,
    /// Offset in bytes from the start of the archive.
    pub(super) offset: u64,
    /// Size in bytes.
    pub(super) size: u64,
}

/// Labels of images, by the [`key`] that image and label share.
#[derive(Default)]
pub(super) struct Labels {
    /// Labels from .cls files, if they were read.
    numbers: HashMap<PathBuf, u64>,
    /// Labels from .json files.
    written: HashMap<PathBuf, u64>,
    /// Keys of all files that may hold a label, whether read or not.
    keys: HashSet<PathBuf>,
}

/// Returns what an image and its label have in common: their path without extension.
pub(super) fn key(name: &Path) -> PathBuf {
    name.with_extension("")
}

impl Labels {
    /// Whether there are no labels.
    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.written.is_empty()
    }

    /// Returns the label of an image; a .cls file takes precedence over a .json file.
    pub(super) fn of(&self, image: &Path) -> Option<u64> {
        let key = key(image);
        self.numbers.get(&key).or_else(|| self.written.get(&key)).copied()
    }

    /// Returns the keys of .cls files.
    pub(super) fn numbers(&self) -> impl Iterator<Item = &PathBuf> {
        self.numbers.keys()
    }

    /// Returns the keys of .json files that contain a label.
    pub(super) fn written(&self) -> impl Iterator<Item = &PathBuf> {
        self.written.keys()
    }

    /// Whether a file is a part of an example other than its image, such as `key.mask.png`: the key
    /// of an example ends at the first dot.
    pub(super) fn is_other_part(&self, name: &Path) -> bool {
        let file = name.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let example = name.with_file_name(file.split('.').next().unwrap_or_default());
        !self.keys.contains(&key(name)) && self.keys.contains(&example)
    }

    /// Stores the label that a file holds; returns whether it holds one.
    fn take(&mut self, archive: &Path, name: &Path, text: &[u8]) -> Result<bool, DataError> {
        if has_extension(name, "json") {
            let label = json_label(text);
            // A later file of the same name replaces the earlier one, as after unpacking.
            self.written.remove(&key(name));
            if let Some(label) = label {
                self.written.insert(key(name), label);
            }
            return Ok(label.is_some());
        }
        let Some(label) = class_number(text) else {
            let text: String = String::from_utf8_lossy(text).chars().take(QUOTED).collect();
            let reason = format!("expected the number of a class, from 0; found {text:?}");
            return Err(DataError::Archive { path: archive.join(name), reason });
        };
        self.numbers.insert(key(name), label);
        Ok(true)
    }
}

impl Contents {
    /// Lists an archive, with or without the labels in it.
    ///
    /// # Errors
    /// The archive cannot be read, is not a tar archive, is truncated or holds no file, or a label
    /// is not a number.
    pub(super) fn read(path: &Path, labelled: bool) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::io(path, "read", &e))?;
        let length = file.metadata().map_err(|e| DataError::io(path, "read", &e))?.len();
        let bad = |reason: String| DataError::Archive { path: path.to_path_buf(), reason };
        let damaged = |e: std::io::Error| {
            bad(format!("not a tar archive, or a damaged one: {e}; copy or pack it anew"))
        };
        let mut listing = Listing::new(path, labelled);
        let mut archive = tar::Archive::new(file);
        // Archives may be concatenated.
        archive.set_ignore_zeros(true);
        for entry in archive.entries_with_seek().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let path = entry.path().map_err(damaged)?.into_owned();
            let name = within(&path);
            let blocks = entry.size().div_ceil(BLOCK).saturating_mul(BLOCK);
            listing.end = entry.raw_file_position().saturating_add(blocks);
            if path.components().any(|part| part == Component::ParentDir) {
                // Stripped of the parts that lead out of the archive, the name would denote another
                // file.
                listing.contents.odd.push(name);
            } else if !name.iter().any(folder::is_litter) {
                listing.add(name, &mut entry, damaged)?;
            }
        }
        if length < listing.end.saturating_add(BLOCK) {
            return Err(bad(format!("cut off after {length} bytes; copy or pack it anew")));
        }
        let contents = listing.contents;
        if contents.files.is_empty() && contents.labels.is_empty() && contents.odd.is_empty() {
            return Err(bad("no file in this archive; remove it, or copy or pack it anew".into()));
        }
        Ok(contents)
    }
}

/// An archive while it is being listed.
struct Listing {
    contents: Contents,
    labelled: bool,
    /// Index in `files` of each name.
    places: HashMap<PathBuf, usize>,
    /// Contents of label files, which links may refer to.
    texts: HashMap<PathBuf, Vec<u8>>,
    /// End of the entries listed so far, in bytes.
    end: u64,
}

impl Listing {
    fn new(path: &Path, labelled: bool) -> Self {
        let (archive, labels) = (path.into(), Labels::default());
        let contents = Contents { archive, files: Vec::new(), labels, odd: Vec::new() };
        let (places, texts) = (HashMap::new(), HashMap::new());
        Self { contents, labelled, places, texts, end: 0 }
    }

    fn add(
        &mut self,
        name: PathBuf,
        entry: &mut Entry<'_, File>,
        damaged: impl Fn(std::io::Error) -> DataError,
    ) -> Result<(), DataError> {
        match entry.header().entry_type() {
            EntryType::Directory | EntryType::XGlobalHeader => {}
            // The oldest tar format marks folders this way.
            EntryType::Regular if entry.path_bytes().ends_with(b"/") => {}
            EntryType::Link => {
                let target = entry.link_name().map_err(&damaged)?.map(|target| within(&target));
                self.link(name, target.unwrap_or_default())?;
            }
            EntryType::Regular | EntryType::Continuous
                if !has_holes(entry).map_err(&damaged)? =>
            {
                let (offset, size) = (entry.raw_file_position(), entry.size());
                let mut text = None;
                if self.labelled && is_label(&name) && size <= LABEL_BYTES {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).map_err(&damaged)?;
                    text = Some(bytes);
                }
                self.file(Member { name, offset, size }, text)?;
            }
            _ => self.contents.odd.push(name),
        }
        Ok(())
    }

    fn file(&mut self, file: Member, text: Option<Vec<u8>>) -> Result<(), DataError> {
        let Contents { archive, files, labels, .. } = &mut self.contents;
        if is_label(&file.name) {
            labels.keys.insert(key(&file.name));
        }
        self.texts.remove(&file.name);
        if let Some(text) = text
            && labels.take(archive, &file.name, &text)?
        {
            self.texts.insert(file.name, text);
            return Ok(());
        }
        match self.places.get(&file.name) {
            Some(&place) => files[place] = file,
            None => {
                self.places.insert(file.name.clone(), files.len());
                files.push(file);
            }
        }
        Ok(())
    }

    /// Adds another name for an earlier file.
    fn link(&mut self, name: PathBuf, target: PathBuf) -> Result<(), DataError> {
        if let Some(text) = self.texts.get(&target).cloned() {
            return self.file(Member { name, offset: 0, size: 0 }, Some(text));
        }
        match self.places.get(&target) {
            Some(&place) => self.file(Member { name, ..self.contents.files[place].clone() }, None),
            None => {
                self.contents.odd.push(name);
                Ok(())
            }
        }
    }
}

/// Whether a file is sparse, as `tar -S` packs files with long runs of zeros.
fn has_holes(entry: &mut Entry<'_, File>) -> std::io::Result<bool> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(false) };
    for extension in extensions {
        if extension?.key_bytes().starts_with(b"GNU.sparse") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file may hold a label: `key.cls`, a number, or `key.json`, an object with a `label`.
fn is_label(name: &Path) -> bool {
    ["cls", "json"].iter().any(|kind| has_extension(name, kind))
}

fn class_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

fn json_label(text: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(text).ok()?.get("label")?.as_u64()
}

/// Strips a name of the components that lead out of the archive.
fn within(name: &Path) -> PathBuf {
    name.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}
