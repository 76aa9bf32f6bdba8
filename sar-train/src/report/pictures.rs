//! The sample grids and strips of a run.

use super::read::Run;
use crate::files::has_extension;
use base64::Engine as _;
use std::path::{Path, PathBuf};

/// Largest image file that is included; with larger ones, not every browser could open the page.
const LARGEST_IMAGE: u64 = 8 << 20;

/// A sample grid or strip.
#[derive(Debug)]
pub(super) struct Picture {
    /// File name without extension.
    pub name: String,
    pub base64: String,
    pub width: u32,
    pub height: u32,
}

/// What a picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    Samples,
    Scales,
    Reconstructions,
}

impl Shows {
    /// Describes the kind in words.
    pub(super) fn described(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::Scales => "every scale decoded, coarse to fine",
            Self::Reconstructions => "images above, what the tokenizer gives back below",
        }
    }
}

impl Picture {
    /// Returns what the picture shows, judging by its name.
    pub(super) fn shows(&self) -> Shows {
        let name = self.name.to_lowercase();
        match name.as_str() {
            _ if name.contains("strip") || name.contains("scale") => Shows::Scales,
            _ if name.contains("reconstruction") => Shows::Reconstructions,
            _ => Shows::Samples,
        }
    }
}

/// Reads the pictures of a run, in the order of their names.
pub(super) fn read_pictures(folder: &Path, run: &mut Run) {
    let entries = match std::fs::read_dir(folder.join("samples")) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
        Err(e) => {
            run.notes.push(format!("samples cannot be read: {e}"));
            return;
        }
    };
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|p| has_extension(p, "png")).collect();
    paths.sort_by_cached_key(|p| natural(&p.to_string_lossy()));
    for path in paths {
        match read_picture(&path) {
            Ok(picture) => run.pictures.push(picture),
            Err(problem) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                run.notes.push(format!("samples/{name} is not shown: {problem}"));
            }
        }
    }
}

fn read_picture(path: &Path) -> Result<Picture, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > LARGEST_IMAGE {
        return Err(format!("{size} bytes, more than {LARGEST_IMAGE}"));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    // Decoded completely, because a truncated file would appear as a broken image.
    let image = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png)
        .map_err(|e| e.to_string())?;
    Ok(Picture {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        base64: base64::engine::general_purpose::STANDARD.encode(&bytes),
        width: image.width(),
        height: image.height(),
    })
}

/// Returns a sort key by which step-2 comes before step-10.
fn natural(name: &str) -> Vec<(u128, String)> {
    let mut parts = vec![(0u128, String::new())];
    let mut digits = String::new();
    for c in name.chars().chain(std::iter::once('\0')) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        if !digits.is_empty() {
            parts.push((digits.parse().unwrap_or(u128::MAX), String::new()));
            digits.clear();
        }
        if let Some((_, text)) = parts.last_mut() {
            text.push(c);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_sort_as_numbers() {
        let mut names = ["step-10.png", "step-2.png", "base.png", "step-2-strip.png"];
        names.sort_by_cached_key(|n| natural(n));
        assert_eq!(names, ["base.png", "step-2-strip.png", "step-2.png", "step-10.png"]);
    }
}
