//! What one tar archive holds, and where.

use super::super::{DataError, folder};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Longer label files are none.
const LABEL_BYTES: u64 = 1 << 20;
/// Characters of a label told in a message, at most.
const QUOTED: usize = 40;

/// What one archive holds: regular files, with no byte of an image read.
pub(super) struct Contents {
    pub(super) archive: Arc<Path>,
    /// In the order of the archive.
    pub(super) files: Vec<Member>,
    /// Labels by the [`key`] that they share with their images.
    pub(super) labels: HashMap<PathBuf, u64>,
}

/// A file in an archive.
pub(super) struct Member {
    /// Below no root: what leads out of the archive is left out of it.
    pub(super) name: PathBuf,
    /// Bytes from the start of the archive.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) size: u64,
}

/// What an image and its label share: their path without its extension.
pub(super) fn key(name: &Path) -> PathBuf {
    name.with_extension("")
}

/// What all files of one example share: their path up to the first dot of the file's name.
pub(super) fn example(name: &Path) -> PathBuf {
    let file = name.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.with_file_name(file.split('.').next().unwrap_or_default())
}

impl Contents {
    /// Lists an archive, with the labels in it or without.
    ///
    /// # Errors
    /// It cannot be read, is no tar archive, or has a label that is no number.
    pub(super) fn read(path: &Path, labelled: bool) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::io(path, "read", &e))?;
        let mut contents = Self { archive: path.into(), files: Vec::new(), labels: HashMap::new() };
        let damaged = |e: std::io::Error| DataError::Archive {
            path: path.to_path_buf(),
            reason: format!("not a tar archive, or a damaged one: {e}; copy or pack it anew"),
        };
        let mut archive = tar::Archive::new(file);
        for entry in archive.entries_with_seek().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = within(&entry.path().map_err(damaged)?);
            // Links have no bytes of their own.
            if !entry.header().entry_type().is_file() || name.iter().any(folder::is_litter) {
                continue;
            }
            let (offset, size) = (entry.raw_file_position(), entry.size());
            let may_be_label = labelled && is_label(&name) && size <= LABEL_BYTES;
            let mut text = Vec::new();
            if may_be_label {
                entry.read_to_end(&mut text).map_err(damaged)?;
            }
            if !may_be_label || !contents.take_label(&name, &text)? {
                contents.files.push(Member { name, offset, size });
            }
        }
        Ok(contents)
    }

    /// Keeps the label that a file holds, if it holds one. Where a .cls and a .json have one, the .cls counts.
    fn take_label(&mut self, name: &Path, text: &[u8]) -> Result<bool, DataError> {
        if extension_is(name, "json") {
            let label = json_label(text);
            label.into_iter().for_each(|label| {
                self.labels.entry(key(name)).or_insert(label);
            });
            return Ok(label.is_some());
        }
        let Some(label) = class_number(text) else {
            let text: String = String::from_utf8_lossy(text).chars().take(QUOTED).collect();
            let reason = format!("expected the number of a class, from 0; found {text:?}");
            return Err(DataError::Archive { path: self.archive.join(name), reason });
        };
        self.labels.insert(key(name), label);
        Ok(true)
    }
}

fn extension_is(name: &Path, extension: &str) -> bool {
    name.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// Whether a file may hold a label: `key.cls`, which is a number, or `key.json`, an object that has a `label`.
fn is_label(name: &Path) -> bool {
    ["cls", "json"].iter().any(|kind| extension_is(name, kind))
}

fn class_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

fn json_label(text: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(text).ok()?.get("label")?.as_u64()
}

/// A name in an archive without what leads out of it.
fn within(name: &Path) -> PathBuf {
    name.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}
