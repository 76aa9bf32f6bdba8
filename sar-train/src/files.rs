//! Writing files so that they exist completely or not at all.

use std::fs::{self, TryLockError};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// Number of bytes written at a time: tensors are converted in pieces of this size.
const PIECE: usize = 1 << 20;

/// Writes a file under a temporary name in the same folder, syncs it and renames it, so that a
/// partial file never appears under the final name, not even after a power failure. Pipes and
/// devices, which a rename would replace, are written directly.
///
/// # Errors
/// The file cannot be written; nothing is left behind.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, true, |to| to.write_all(bytes))
}

/// Like [`write_whole`], but without waiting for the disk: for one of very many files that can be
/// made again.
///
/// # Errors
/// As for [`write_whole`].
pub(crate) fn write_quickly(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, false, |to| to.write_all(bytes))
}

/// Like [`write_whole`], for contents too large to hold in memory at once.
///
/// # Errors
/// As for [`write_whole`], and any error of `content`.
pub(crate) fn write_whole_by<T>(
    path: &Path,
    content: impl FnOnce(&mut dyn io::Write) -> io::Result<T>,
) -> io::Result<T> {
    write(path, true, |file| {
        let mut file = BufWriter::with_capacity(PIECE, file);
        let value = content(&mut file)?;
        file.flush().map(|()| value)
    })
}

fn write<T>(
    path: &Path,
    sync: bool,
    content: impl FnOnce(&mut fs::File) -> io::Result<T>,
) -> io::Result<T> {
    if is_special(path) {
        return content(&mut fs::OpenOptions::new().write(true).open(path)?);
    }
    let mut file = beside(path)?;
    let value = content(file.as_file_mut())?;
    put(file, path, sync).map(|()| value)
}

/// Like [`write_whole`], but only if the file does not exist yet; returns whether it was written.
/// Of several processes that try at once, exactly one succeeds.
///
/// # Errors
/// As for [`write_whole`].
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut file = beside(path)?;
    file.write_all(bytes)?;
    let _listed = Listed(file.path().to_owned());
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {
            let _ = sync_folder(folder_of(path));
            Ok(true)
        }
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e.error),
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Whether two paths lead to the same file or folder, which exists.
pub(crate) fn same_place(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(one).is_some_and(|one| real(other) == Some(one))
}

/// Whether others may lock a folder at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Nobody else may.
    Alone,
    /// Others that share it may, too.
    Shared,
}

/// Locks a folder until the returned file is dropped; only processes that lock it as well are kept
/// out. Returns `None` where folders cannot be locked.
///
/// # Errors
/// Another process held the lock for all of `patience`.
pub(crate) fn lock_folder(
    folder: &Path,
    sharing: Sharing,
    patience: Duration,
) -> Result<Option<fs::File>, InUse> {
    let Ok(folder) = fs::File::open(folder) else { return Ok(None) };
    let began = Instant::now();
    loop {
        let locked = match sharing {
            Sharing::Alone => folder.try_lock(),
            Sharing::Shared => folder.try_lock_shared(),
        };
        match locked {
            Ok(()) => return Ok(Some(folder)),
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) if began.elapsed() >= patience => return Err(InUse),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The error for a folder that another process has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InUse;

/// Whether a file's name has this extension, in letters of either case.
pub(crate) fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Returns the folder that a path lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the file that a symbolic link points to, since a rename would replace the link itself.
pub(crate) fn behind(path: &Path) -> PathBuf {
    match path.is_symlink() {
        // A link to a missing file is replaced.
        true => path.canonicalize().unwrap_or_else(|_| path.to_owned()),
        false => path.to_owned(),
    }
}

/// Makes a path absolute for a record, so that it stays valid wherever the record is read from.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether the path is a pipe or a device, which renaming a file onto it would replace.
pub(crate) fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Prefix and suffix of the names of temporary files.
const TEMPORARY: (&str, &str) = (".sar-", ".tmp");

/// Removes temporary files that killed processes have left in a folder. Those of running processes
/// are locked.
pub(crate) fn remove_left_behind(folder: &Path) {
    let is_ours = |name: &str| name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1);
    for file in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = file.path();
        let left = file.file_name().to_str().is_some_and(is_ours)
            && fs::File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if left {
            // One that cannot be removed does no harm.
            let _ = fs::remove_file(path);
        }
    }
}

/// Temporary files that have not been [`put`] in place yet.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes all temporary files when the process is about to exit without running destructors.
pub(crate) fn remove_unfinished() {
    for path in unfinished().drain(..) {
        let _ = fs::remove_file(path);
    }
}

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary file in the folder of `path`, removed unless [`put`] in its place.
pub(crate) fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let path = behind(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    // The user's mask applies, as to any new file; by default a temporary file is readable by its
    // owner only.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(folder_of(&path))?;
    // The lock ends with the process. On systems that cannot lock files, leftover files are not
    // removed.
    let _ = file.as_file().try_lock();
    unfinished().push(file.path().to_owned());
    Ok(file)
}

/// A temporary file that counts as unfinished until this is dropped.
struct Listed(PathBuf);

impl Drop for Listed {
    fn drop(&mut self) {
        unfinished().retain(|path| *path != self.0);
    }
}

/// Moves a temporary file to `path`; if it replaces a file there, it takes over that file's
/// permissions.
pub(crate) fn put(file: NamedTempFile, path: &Path, sync: bool) -> io::Result<()> {
    let path = &behind(path);
    let _listed = Listed(file.path().to_owned());
    ready_to_replace(file.as_file(), path, sync)?;
    file.persist(path).map_err(|e| e.error)?;
    if sync {
        // The file is in place even where the file system cannot sync folders.
        let _ = sync_folder(folder_of(path));
    }
    Ok(())
}

/// As [`put`], for an open file `from` that has a name of its own until then. `path` is not a symbolic link.
pub(crate) fn put_over(file: &fs::File, from: &Path, path: &Path) -> io::Result<()> {
    ready_to_replace(file, path, true)?;
    fs::rename(from, path)?;
    let _ = sync_folder(folder_of(path));
    Ok(())
}

/// Gives a file the permissions of the one at `path`, if there is one, and makes it durable if `sync`.
fn ready_to_replace(file: &fs::File, path: &Path, sync: bool) -> io::Result<()> {
    if let Ok(replaced) = fs::metadata(path) {
        file.set_permissions(replaced.permissions())?;
    }
    if sync { file.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_failure_leaves_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        for content in [&b"one"[..], b"two"] {
            write_whole(&path, content).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        assert!(write_whole(folder.path(), b"over a folder").is_err());
        assert!(write_whole(&folder.path().join("no/a.txt"), b"no folder").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn what_the_killed_have_left_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let own = beside(&folder.path().join("a.npz")).unwrap();
        for name in [".sar-aB3xY9.tmp", ".notes.tmp", ".sar-notes", ".aB3xY9.tmp"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove_left_behind(folder.path());
        assert!(own.path().exists(), "a file that is being written");
        assert!(!folder.path().join(".sar-aB3xY9.tmp").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
        remove_left_behind(&folder.path().join("absent"));
    }

    #[test]
    #[cfg(unix)]
    fn a_file_keeps_the_permissions_that_it_had() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        write_whole(&path, b"new").unwrap();
        let plain = folder.path().join("plain");
        fs::write(&plain, b"as any other").unwrap();
        assert_eq!(mode(), fs::metadata(&plain).unwrap().permissions().mode() & 0o777);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        write_whole(&path, b"again").unwrap();
        assert_eq!(mode(), 0o664);
    }

    #[test]
    #[cfg(unix)]
    fn a_link_stays_one_and_its_file_is_replaced() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, file) = (folder.path().join("link"), elsewhere.path().join("file"));
        fs::write(&file, "one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_whole_by(&link, |to| to.write_all(b"two")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"two");
        fs::remove_file(&file).unwrap();
        write_whole(&link, b"three").unwrap();
        assert_eq!((fs::read(&link).unwrap(), link.is_symlink()), (b"three".to_vec(), false));
    }

    #[test]
    #[cfg(unix)]
    fn devices_are_written_to_and_stay() {
        use std::os::unix::fs::FileTypeExt as _;
        let null = Path::new("/dev/null");
        write_whole(null, b"bytes").unwrap();
        assert!(fs::metadata(null).unwrap().file_type().is_char_device());
    }
}
