//! One image of a source: what it is called, and where its bytes lie.

use super::decode::{BadImage, Header, Picture, decode_bytes, probe_bytes};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Room beyond the pixels for what cameras add, in bytes.
const BESIDE_PIXELS: u64 = 64 << 20;

/// One image of a source: a file, or a member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// The file; of a member the archive and, below it, the name that it has there.
    path: PathBuf,
    /// What it is called in its set, where that is not its path below the set's.
    called: Option<PathBuf>,
    member: Option<Member>,
}

/// Where in an archive the bytes of an image lie.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    archive: Arc<Path>,
    /// Bytes from the start of the archive.
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
        Self { path, called: None, member: Some(Member { archive, offset, size }) }
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

    /// Reads the image's header.
    ///
    /// # Errors
    /// [`BadImage`] for all that shows without decoding: empty, no image, too small, too large.
    pub fn probe(&self, max_pixels: u64) -> Result<Header, BadImage> {
        probe_bytes(&self.read(max_pixels)?, max_pixels)
    }

    /// Decodes the image.
    ///
    /// # Errors
    /// [`BadImage`] with the reason.
    pub fn decode(&self, max_pixels: u64) -> Result<Picture, BadImage> {
        decode_bytes(&self.read(max_pixels)?, max_pixels)
    }

    fn read(&self, max_pixels: u64) -> Result<Vec<u8>, BadImage> {
        let place = self.member.as_ref().map_or(self.path.as_path(), |member| &*member.archive);
        let meta = std::fs::metadata(place).map_err(unreadable)?;
        if !meta.is_file() {
            return Err(BadImage::Unreadable("not a regular file".into()));
        }
        let size = self.member.as_ref().map_or(meta.len(), |member| member.size);
        // No format needs more than 8 bytes a pixel.
        if size > max_pixels.saturating_mul(8).saturating_add(BESIDE_PIXELS) {
            let found = format!("{size} bytes, more than an image of the allowed size can have");
            return Err(BadImage::Unreadable(found));
        }
        match &self.member {
            None => std::fs::read(place).map_err(unreadable),
            Some(member) if meta.len() < member.offset.saturating_add(size) => {
                let missing = format!("{} ends within it", member.archive.display());
                Err(BadImage::Truncated(missing))
            }
            Some(member) => member.read().map_err(unreadable),
        }
    }
}

impl Member {
    fn read(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.size as usize];
        let mut archive = File::open(&self.archive)?;
        archive.seek(SeekFrom::Start(self.offset))?;
        archive.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn unreadable(error: std::io::Error) -> BadImage {
    BadImage::Unreadable(error.to_string())
}
