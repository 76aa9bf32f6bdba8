//! Finds NVIDIA's libraries without `LD_LIBRARY_PATH`, and opens them before cudarc does.
//!
//! cudarc opens libraries by name and panics if there is none. So each is opened here first, by its
//! full path if it is not on the loader's path, and kept open: a later opening by name then finds the
//! library that is already loaded.

use crate::error::CudaError;
use libloading::Library as Handle;
use std::error::Error as _;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{env, fs};

/// A library that the backend loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The driver's interface; comes with the driver.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Matrix products.
    CublasLt,
    /// Communication between GPUs; looked for, not yet used.
    Nccl,
}

/// Names in the order in which cudarc with CUDA 13 tries them.
const DRIVER: &[&str] = &["libcuda.so", "libcuda.so.1"];
const NVRTC: &[&str] = &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"];
const BUILTINS: &str = "libnvrtc-builtins.so.";
const CUBLASLT: &[&str] = &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"];
const NCCL: &[&str] = &["libnccl.so", "libnccl.so.2"];

impl Library {
    /// Its name, as in `libnvrtc`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "libcuda",
            Self::Nvrtc => "libnvrtc",
            Self::CublasLt => "libcublasLt",
            Self::Nccl => "libnccl",
        }
    }

    const fn files(self) -> &'static [&'static str] {
        match self {
            Self::Driver => DRIVER,
            Self::Nvrtc => NVRTC,
            Self::CublasLt => CUBLASLT,
            Self::Nccl => NCCL,
        }
    }

    /// A function that every version of the library has.
    const fn function(self) -> &'static str {
        match self {
            Self::Driver => "cuInit",
            Self::Nvrtc => "nvrtcVersion",
            Self::CublasLt => "cublasLtCreate",
            Self::Nccl => "ncclGetVersion",
        }
    }

    /// How to install it.
    const fn hint(self) -> &'static str {
        match self {
            Self::Driver => "it comes with NVIDIA's driver, 525 or newer",
            Self::Nvrtc => "pip install nvidia-cuda-nvrtc-cu12, or the CUDA toolkit",
            Self::CublasLt => "pip install nvidia-cublas-cu12, or the CUDA toolkit",
            Self::Nccl => "pip install nvidia-nccl-cu12",
        }
    }

    /// Opens the library, keeps it open, and returns where it was found.
    ///
    /// `SAR_CUDA_LIB` comes first, then the loader's own path, then the folders where toolkits and
    /// Python wheels put libraries.
    ///
    /// # Errors
    /// [`CudaError::Library`] if it is not found, with the reason for the last file that would not load,
    /// or if the loader would give cudarc another file than the one found.
    pub fn open(self) -> Result<PathBuf, CudaError> {
        let mut reason = "not found".to_owned();
        let first = env::var_os("SAR_CUDA_LIB").map(PathBuf::from);
        let by_name = self.files().iter().map(PathBuf::from);
        let in_first = first.iter().flat_map(|folder| self.inside(folder));
        let here = Surroundings { variable: &|name| env::var_os(name), root: Path::new("/") };
        let elsewhere = here.folders().into_iter().flat_map(|folder| self.inside(&folder));
        for path in in_first.chain(by_name).chain(elsewhere) {
            if self == Self::Nvrtc {
                open_builtins(&path);
            }
            // SAFETY: NVIDIA's libraries run nothing at load time but their own set-up.
            match unsafe { Handle::new(&path) } {
                Ok(handle) => {
                    let outcome = self.is_what_names_lead_to(&handle, &path);
                    keep(handle);
                    return outcome.map(|()| path);
                }
                Err(error) if path.is_file() => {
                    // The error's source is the loader's own message, which names the file.
                    reason = error.source().map_or_else(|| error.to_string(), <_>::to_string);
                }
                Err(_) => {}
            }
        }
        Err(CudaError::Library { library: self.name(), reason, hint: self.hint() })
    }

    /// Calls `int function(int *number)` of the library opened from this path and returns the number;
    /// `None` if there is no such function or it fails.
    ///
    /// # Safety
    /// If the library has a function of this name, it has this signature.
    pub(crate) unsafe fn ask(path: &Path, function: &str) -> Option<i32> {
        // SAFETY: as in `open`, which opened it; the caller vouches for the function's signature.
        unsafe {
            let handle = Handle::new(path).ok()?;
            let ask = handle.get::<unsafe extern "C" fn(*mut i32) -> i32>(function).ok()?;
            let mut number = 0;
            (ask(&mut number) == 0).then_some(number)
        }
    }

    /// Checks that cudarc will get this library when it opens it by name. The first name that leads
    /// anywhere counts: a file called `libnvrtc.so` on the loader's path comes before a
    /// `libnvrtc.so.12` that is open.
    fn is_what_names_lead_to(self, handle: &Handle, path: &Path) -> Result<(), CudaError> {
        let address = |handle: &Handle| {
            // SAFETY: the function is not called.
            unsafe { handle.get::<*const ()>(self.function()).ok().map(|f| *f) }
        };
        for name in self.files() {
            // SAFETY: as in `open`.
            let Ok(other) = (unsafe { Handle::new(*name) }) else { continue };
            if address(&other) == address(handle) {
                return Ok(());
            }
            return Err(CudaError::Library {
                library: self.name(),
                reason: format!(
                    "{} is hidden by another {name} on the loader's path (put its folder first in \
                     LD_LIBRARY_PATH)",
                    path.display()
                ),
                hint: self.hint(),
            });
        }
        Ok(())
    }

    /// The library's files in a folder, in the order of [`Library::files`].
    fn inside(self, folder: &Path) -> Vec<PathBuf> {
        let found = self.files().iter().map(|file| folder.join(file));
        found.filter(|path| path.is_file()).collect()
    }
}

/// Opens the built-ins library, which NVRTC opens by name when it compiles: some versions (13.0) do not
/// look for it in their own folder.
fn open_builtins(nvrtc: &Path) {
    // If the path is a bare name, the loader found NVRTC and finds the built-ins too.
    let Some(folder) = nvrtc.parent().filter(|folder| *folder != Path::new("")) else { return };
    for path in children(folder, BUILTINS) {
        // SAFETY: as for NVRTC itself. If one cannot be opened, NVRTC reports it when it compiles.
        if let Ok(handle) = unsafe { Handle::new(path) } {
            keep(handle);
        }
    }
}

/// Keeps a library open for the life of the process, since its code may be in use anywhere.
fn keep(handle: Handle) {
    static OPEN: Mutex<Vec<Handle>> = Mutex::new(Vec::new());
    if let Ok(mut open) = OPEN.lock() {
        open.push(handle);
    }
}

/// The surroundings of a program: its environment variables, and the root of its file system.
struct Surroundings<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
    root: &'a Path,
}

impl Surroundings<'_> {
    /// Folders that toolkits and Python wheels put libraries in, in the order in which they are searched.
    fn folders(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for variable in ["CUDA_HOME", "CUDA_PATH"] {
            if let Some(root) = (self.variable)(variable) {
                found.push(Path::new(&root).join("lib64"));
            }
        }
        for toolkit in children(&self.root.join("usr/local"), "cuda") {
            found.push(toolkit.join("lib64"));
        }
        for site in self.site_packages() {
            let nvidia = site.join("nvidia");
            // From CUDA 13 on all libraries are in one folder; before, each has its own.
            let (whole, each) = (children(&nvidia, "cu1"), children(&nvidia, ""));
            found.extend(whole.into_iter().chain(each).map(|package| package.join("lib")));
        }
        found
    }

    /// Python's package folders, in this order: those of the active environment, of Conda, of the `python3`
    /// on the path, of the user, and of the system.
    fn site_packages(&self) -> Vec<PathBuf> {
        let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(self.variable);
        let roots = active.map(PathBuf::from).chain(self.environment_of_python());
        let home = (self.variable)("HOME").map(|home| Path::new(&home).join(".local"));
        let system = ["usr/local", "usr"].map(|folder| self.root.join(folder));
        let mut found = Vec::new();
        for root in roots.chain(home).chain(system) {
            for python in children(&root.join("lib"), "python") {
                found.push(python.join("site-packages"));
                found.push(python.join("dist-packages"));
            }
        }
        found
    }

    /// The environment whose `python3` a shell would run: the folder that holds its `bin`.
    fn environment_of_python(&self) -> Option<PathBuf> {
        let path = (self.variable)("PATH")?;
        let bin = env::split_paths(&path).find(|bin| bin.join("python3").is_file())?;
        bin.parent().map(Path::to_path_buf)
    }
}

/// Entries of a folder whose names start with `prefix`, in descending order: newer versions come first.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let starts = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(starts).collect();
    found.sort();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_looked_at_newest_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["cuda-12.4", "cuda-13.0", "cuda", "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let names: Vec<String> = children(folder.path(), "cuda")
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["cuda-13.0", "cuda-12.4", "cuda"]);
    }

    #[test]
    fn toolkits_that_are_named_come_before_others_and_those_before_wheels() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let folder = |name: &str| root.join(name);
        let packages = "lib/python3.12/site-packages/nvidia";
        for name in [
            "usr/local/cuda-12.4",
            "usr/local/cuda-13.0",
            &format!("venv/{packages}/cublas"),
            &format!("venv/{packages}/cuda_nvrtc"),
            &format!("venv/{packages}/cu13"),
            &format!("home/.local/{packages}/cublas"),
            &format!("shell/{packages}/cublas"),
            "usr/lib/python3/dist-packages/nvidia/cublas",
        ] {
            fs::create_dir_all(folder(name)).unwrap();
        }
        fs::create_dir_all(folder("shell/bin")).unwrap();
        fs::write(folder("shell/bin/python3"), "").unwrap();
        let variable = |name: &str| match name {
            "CUDA_HOME" => Some(folder("mine").into_os_string()),
            "VIRTUAL_ENV" => Some(folder("venv").into_os_string()),
            "HOME" => Some(folder("home").into_os_string()),
            "PATH" => Some(folder("shell/bin").into_os_string()),
            _ => None,
        };
        let found = Surroundings { variable: &variable, root }.folders();
        let mut seen = Vec::new();
        for path in found {
            let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if !seen.contains(&path) {
                seen.push(path);
            }
        }
        let expected = [
            "mine/lib64".to_owned(),
            "usr/local/cuda-13.0/lib64".to_owned(),
            "usr/local/cuda-12.4/lib64".to_owned(),
            format!("venv/{packages}/cu13/lib"),
            format!("venv/{packages}/cuda_nvrtc/lib"),
            format!("venv/{packages}/cublas/lib"),
            format!("shell/{packages}/cublas/lib"),
            format!("home/.local/{packages}/cublas/lib"),
            "usr/lib/python3/dist-packages/nvidia/cublas/lib".to_owned(),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn files_of_a_folder_are_found_by_their_versioned_names() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("libnvrtc.so.12"), "").unwrap();
        let found = Library::Nvrtc.inside(folder.path());
        assert_eq!(found, [folder.path().join("libnvrtc.so.12")]);
        assert!(Library::CublasLt.inside(folder.path()).is_empty());
    }
}
