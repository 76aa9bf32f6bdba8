//! One image of a source: its name, and where its bytes lie.

use super::decode::{BadImage, Header, Picture, decode_bytes, probe_bytes};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Number of bytes allowed beyond the pixels, for what cameras add.
const BESIDE_PIXELS: u64 = 64 << 20;

/// Number of bytes in which the header of an image is looked for first: a JPEG may have segments of
/// the camera's own before it, of up to 64 KiB each.
const HEAD: u64 = 128 << 10;

/// One image of a source: a file, or a member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// Path of the file; for a member of an archive, the archive's path joined with the member's
    /// name.
    path: PathBuf,
    /// Name in the set, if it differs from the path relative to the set's folder.
    called: Option<PathBuf>,
    member: Option<Member>,
}

/// Place of an image in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    archive: Arc<Path>,
    extent: Extent,
}

/// A range of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// Offset in bytes from the start.
    offset: u64,
    /// Size in bytes.
    size: u64,
}

impl From<PathBuf> for ImageFile {
    /// Creates an image that is a file of its own.
    fn from(path: PathBuf) -> Self {
        Self { path, called: None, member: None }
    }
}

impl ImageFile {
    /// Creates an image from `size` bytes of an archive at `offset`, whose name there is `name`.
    pub(super) fn member(archive: Arc<Path>, name: &Path, offset: u64, size: u64) -> Self {
        let path = archive.join(name);
        Self {
            path,
            called: None,
            member: Some(Member { archive, extent: Extent { offset, size } }),
        }
    }

    /// Returns the image's path; for a member, the archive's path joined with its name, as if
    /// unpacked there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the name in its set to the one that the image would have if unpacked.
    pub(super) fn call(&mut self, name: PathBuf) {
        self.called = Some(name);
    }

    /// Returns the name in a set located at `root`, independent of where the set lies and how it is
    /// packed.
    pub(super) fn name_in(&self, root: &Path) -> PathBuf {
        if let Some(called) = &self.called {
            return called.clone();
        }
        let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (root, path) = (whole(root), whole(&self.path));
        // The files that a list names lie below the list's folder.
        let below = |folder| path.strip_prefix(folder).ok();
        let found = below(root.as_path()).or_else(|| below(root.parent()?));
        found.unwrap_or(&path).to_owned()
    }

    /// Reads the image's header; from a large file only the beginning, if that is enough.
    ///
    /// # Errors
    /// [`BadImage`] for everything that can be detected without decoding: empty, no image, too
    /// small, too large.
    pub fn probe(&self, max_pixels: u64) -> Result<Header, BadImage> {
        let extent = self.extent(max_pixels)?;
        if extent.size > HEAD {
            let head = self.read(Extent { size: HEAD, ..extent })?;
            match probe_bytes(&head, max_pixels) {
                Err(BadImage::Truncated(_) | BadImage::Damaged(_) | BadImage::Unreadable(_)) => {}
                seen => return seen,
            }
        }
        probe_bytes(&self.read(extent)?, max_pixels)
    }

    /// Decodes the image.
    ///
    /// # Errors
    /// [`BadImage`] with the reason.
    pub fn decode(&self, max_pixels: u64) -> Result<Picture, BadImage> {
        decode_bytes(&self.read(self.extent(max_pixels)?)?, max_pixels)
    }

    /// Returns the file that contains the image's bytes.
    fn place(&self) -> &Path {
        self.member.as_ref().map_or(self.path.as_path(), |member| &*member.archive)
    }

    /// Returns the range of the bytes in that file, if they are complete and not more than an image
    /// may have.
    fn extent(&self, max_pixels: u64) -> Result<Extent, BadImage> {
        let meta = std::fs::metadata(self.place()).map_err(unreadable)?;
        if !meta.is_file() {
            return Err(BadImage::Unreadable("not a regular file".into()));
        }
        let whole = Extent { offset: 0, size: meta.len() };
        let extent = self.member.as_ref().map_or(whole, |member| member.extent);
        let Extent { offset, size } = extent;
        // No format needs more than 8 bytes per pixel.
        if size > max_pixels.saturating_mul(8).saturating_add(BESIDE_PIXELS) {
            let found = format!("{size} bytes, more than an image of the allowed size can have");
            return Err(BadImage::Unreadable(found));
        }
        if meta.len() < offset.saturating_add(size) {
            let missing = format!("{} ends within it", self.place().display());
            return Err(BadImage::Truncated(missing));
        }
        Ok(extent)
    }

    fn read(&self, extent: Extent) -> Result<Vec<u8>, BadImage> {
        let read = || {
            let mut bytes = vec![0; extent.size as usize];
            let mut file = File::open(self.place())?;
            if extent.offset > 0 {
                file.seek(SeekFrom::Start(extent.offset))?;
            }
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(unreadable)
    }
}

fn unreadable(error: std::io::Error) -> BadImage {
    match error.kind() {
        io::ErrorKind::NotFound => BadImage::Missing,
        _ => BadImage::Unreadable(error.to_string()),
    }
}
