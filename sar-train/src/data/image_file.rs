//! One image of a source: what it is called, and where its bytes lie.

use super::decode::{BadImage, Header, Picture, decode_bytes, probe_bytes};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Room beyond the pixels for what cameras add, in bytes.
const BESIDE_PIXELS: u64 = 64 << 20;

/// Bytes in which the header of an image is looked for first: a JPEG may have segments of a camera's own before it, of
/// up to 64 KiB each.
const HEAD: u64 = 128 << 10;

/// One image of a source: a file, or a member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// The file; of a member the archive and, below it, the name that it has there.
    path: PathBuf,
    /// What it is called in its set, where that is not its path below the set's.
    called: Option<PathBuf>,
    member: Option<Member>,
}

/// Where in an archive an image lies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    archive: Arc<Path>,
    extent: Extent,
}

/// Some bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// Bytes from its start.
    offset: u64,
    /// Bytes.
    size: u64,
}

impl From<PathBuf> for ImageFile {
    /// A file of its own.
    fn from(path: PathBuf) -> Self {
        Self { path, called: None, member: None }
    }
}

impl ImageFile {
    /// `size` bytes of an archive from `offset` on, which are called `name` there.
    pub(super) fn member(archive: Arc<Path>, name: &Path, offset: u64, size: u64) -> Self {
        let path = archive.join(name);
        Self {
            path,
            called: None,
            member: Some(Member { archive, extent: Extent { offset, size } }),
        }
    }

    /// What it is called: its path, or that of the archive and the name in it, as if unpacked there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it the name in its set that it would have unpacked.
    pub(super) fn call(&mut self, name: PathBuf) {
        self.called = Some(name);
    }

    /// What it is called in a set that lies at `root`: wherever that lies, and however it is packed.
    pub(super) fn name_in(&self, root: &Path) -> PathBuf {
        if let Some(called) = &self.called {
            return called.clone();
        }
        let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (root, path) = (whole(root), whole(&self.path));
        // What a list names lies below the list's folder.
        let below = |folder| path.strip_prefix(folder).ok();
        let found = below(root.as_path()).or_else(|| below(root.parent()?));
        found.unwrap_or(&path).to_owned()
    }

    /// Reads the image's header, and of a large file no more than that where it will do.
    ///
    /// # Errors
    /// [`BadImage`] for all that shows without decoding: empty, no image, too small, too large.
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

    /// The file that its bytes lie in.
    fn place(&self) -> &Path {
        self.member.as_ref().map_or(self.path.as_path(), |member| &*member.archive)
    }

    /// Where in it they lie, if they are all there and no more than an image may have.
    fn extent(&self, max_pixels: u64) -> Result<Extent, BadImage> {
        let meta = std::fs::metadata(self.place()).map_err(unreadable)?;
        if !meta.is_file() {
            return Err(BadImage::Unreadable("not a regular file".into()));
        }
        let whole = Extent { offset: 0, size: meta.len() };
        let extent = self.member.as_ref().map_or(whole, |member| member.extent);
        let Extent { offset, size } = extent;
        // No format needs more than 8 bytes a pixel.
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
    BadImage::Unreadable(error.to_string())
}
