//! Compiled kernels on disk, keyed by everything that they depend on.

use crate::error::CudaError;
use crate::kernels::{HEADERS, Source, options};
use crate::nvrtc::{Compiled, Nvrtc};
use sha2::{Digest, Sha256};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A folder of compiled kernels.
///
/// A file is written under a temporary name and renamed, so that a final name never holds half a
/// kernel; it ends in its own checksum, so that a damaged file is noticed and compiled anew.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// Bytes of the checksum at the end of a file.
const CHECKSUM: usize = 32;

impl Cache {
    /// The user's cache: `SAR_CUBIN_DIR`, or `sar/cubin` in the folder for caches.
    ///
    /// # Errors
    /// [`CudaError::Unsupported`] where neither is known.
    pub fn of_user() -> Result<Self, CudaError> {
        if let Some(folder) = env::var_os("SAR_CUBIN_DIR") {
            return Ok(Self::at(folder));
        }
        let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
        let base = base.ok_or_else(|| CudaError::Unsupported {
            op: "kernel cache",
            what: "neither SAR_CUBIN_DIR, XDG_CACHE_HOME nor HOME is set; set one".to_owned(),
        })?;
        Ok(Self::at(base.join("sar").join("cubin")))
    }

    /// The cache in this folder, which is created when first written to.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns a kernel file as machine code: from the folder, or compiled and put there.
    ///
    /// If there is no compiler, or it fails, a file in the folder that any compiler version made from the
    /// same sources is used instead.
    ///
    /// # Errors
    /// The compiler's error; [`CudaError::Cache`] if the folder cannot be written;
    /// [`CudaError::Kept`] if there is no compiler and the files in the folder are damaged.
    pub fn get(&self, source: Source, variant: &str, arch: &str) -> Result<Vec<u8>, CudaError> {
        let compiled = Nvrtc::load().and_then(|nvrtc| {
            let path = self.path(source, variant, arch, nvrtc.version);
            match read(&path) {
                Some(cubin) => Ok(cubin),
                None => Ok(self.build(&nvrtc, source, variant, arch)?.cubin),
            }
        });
        compiled.or_else(|error| match self.of_any_compiler(source, variant, arch) {
            Ok(Some(cubin)) => Ok(cubin),
            Ok(None) => Err(error),
            Err(Damaged) => Err(self.kept(source, arch, "is damaged".to_owned(), error)),
        })
    }

    /// The error for machine code that exists but cannot be used, where no compiler is available.
    pub(crate) fn kept(
        &self,
        source: Source,
        arch: &str,
        reason: String,
        compiler: CudaError,
    ) -> CudaError {
        let (file, folder) = (source.stem, self.folder.clone());
        CudaError::Kept { file, arch: arch.to_owned(), folder, reason, compiler: compiler.into() }
    }

    /// Compiles a kernel file and puts it in the folder, replacing what is there.
    ///
    /// # Errors
    /// The compiler's error; [`CudaError::Cache`] if the folder cannot be written.
    pub fn build(
        &self,
        nvrtc: &Nvrtc,
        source: Source,
        variant: &str,
        arch: &str,
    ) -> Result<Compiled, CudaError> {
        let compiled = nvrtc.compile(source, variant, arch)?;
        let path = self.path(source, variant, arch, nvrtc.version);
        write(&path, &compiled.cubin).map_err(|source| CudaError::Cache { path, source })?;
        Ok(compiled)
    }

    /// Path of a file, whose name has readable parts and a hash of everything that goes into it.
    fn path(
        &self,
        source: Source,
        variant: &str,
        arch: &str,
        (major, minor): (i32, i32),
    ) -> PathBuf {
        let key = key(source, variant, arch);
        self.folder
            .join(format!("{}-{variant}-{arch}-{key}-nvrtc{major}.{minor}.cubin", source.stem))
    }

    /// Reads a file that any compiler version made from the same sources and options, if there is one;
    /// [`Damaged`] if all such files are damaged.
    fn of_any_compiler(
        &self,
        source: Source,
        variant: &str,
        arch: &str,
    ) -> Result<Option<Vec<u8>>, Damaged> {
        let prefix = format!("{}-{variant}-{arch}-{}-", source.stem, key(source, variant, arch));
        let Ok(entries) = fs::read_dir(&self.folder) else { return Ok(None) };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(".cubin")
        });
        paths.sort();
        match paths.iter().rev().find_map(|path| read(path)) {
            None if !paths.is_empty() => Err(Damaged),
            found => Ok(found),
        }
    }
}

/// Files whose checksums do not match.
#[derive(Debug, PartialEq)]
struct Damaged;

/// Hash of the sources and options.
fn key(source: Source, variant: &str, arch: &str) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(source.text);
    for (name, text) in HEADERS {
        add(name);
        add(text);
    }
    options(source.stem, variant, arch).iter().for_each(|option| add(option));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The contents of a file without its checksum; `None` if the checksum does not match.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let body = bytes.len().checked_sub(CHECKSUM)?;
    let whole = Sha256::digest(&bytes[..body])[..] == bytes[body..];
    bytes.truncate(body);
    whole.then_some(bytes)
}

fn write(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(cubin)?;
    file.write_all(&Sha256::digest(cubin))?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::SOURCES;

    #[test]
    fn a_damaged_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a").join("kernel.cubin");
        assert_eq!(read(&path), None);
        write(&path, b"machine code").unwrap();
        assert_eq!(read(&path).unwrap(), b"machine code");
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..10], b"" as &[u8]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path), None);
        }
        let mut flipped = whole;
        flipped[3] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(read(&path), None);
    }

    #[test]
    fn readers_see_whole_files_whoever_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel.cubin");
        let contents = [1u8, 2].map(|byte| vec![byte; 1 << 18]);
        write(&path, &contents[0]).unwrap();
        std::thread::scope(|scope| {
            for content in &contents {
                let path = &path;
                scope.spawn(move || (0..20).for_each(|_| write(path, content).unwrap()));
            }
            for _ in 0..50 {
                let found = read(&path).expect("a whole file at any time");
                assert!(contents.contains(&found));
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_a_kernel_depends_on_is_in_its_name() {
        let cache = Cache::at("/cache");
        let (a, b) = (SOURCES[0], SOURCES[1]);
        let name = |source, variant, arch, version| cache.path(source, variant, arch, version);
        let first = name(a, "f32", "sm_80", (12, 9));
        assert_eq!(first, name(a, "f32", "sm_80", (12, 9)));
        for other in [
            name(b, "f32", "sm_80", (12, 9)),
            name(a, "bf16", "sm_80", (12, 9)),
            name(a, "f32", "sm_90", (12, 9)),
            name(a, "f32", "sm_80", (13, 0)),
        ] {
            assert_ne!(first, other);
        }
        let changed = Source { text: "other", ..a };
        assert_ne!(first, name(changed, "f32", "sm_80", (12, 9)));
    }

    #[test]
    fn without_a_compiler_a_prebuilt_kernel_serves() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        assert_eq!(cache.of_any_compiler(SOURCES[0], "bf16", "sm_90"), Ok(None));
        write(&cache.path(SOURCES[0], "bf16", "sm_90", (12, 9)), b"code").unwrap();
        let code = Ok(Some(b"code".to_vec()));
        assert_eq!(cache.of_any_compiler(SOURCES[0], "bf16", "sm_90"), code);
        assert_eq!(cache.of_any_compiler(SOURCES[1], "bf16", "sm_90"), Ok(None));
    }
}
