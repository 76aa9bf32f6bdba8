//! Builds the fake CUDA of `tests/fake_cuda`, and runs scenarios on it.
//!
//! Libraries are loaded once a process, and the fake is set up by environment variables; so a
//! scenario is a test that runs itself again in a process of its own.

use sar_backend_cuda::{Cache, CudaBackend, CudaError, Driver, Storage, lend_emulator};
use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

/// Which scenario this process is for; not set where it is the one that starts them.
const SCENARIO: &str = "SAR_FAKE_SCENARIO";
/// Where a scenario finds the fake libraries, whatever `SAR_CUDA_LIB` says to the code under test.
const LIBRARIES: &str = "SAR_FAKE_LIBRARIES";
/// A folder of the scenario's own.
const FOLDER: &str = "SAR_FAKE_FOLDER";
/// What of the environment would lead to libraries of the machine's own.
const ELSEWHERE: [&str; 5] =
    ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"];

/// Sources by library: file, folder.
const SOURCES: [(&str, &str); 3] =
    [("libcuda.so.1", "driver"), ("libnvrtc.so.12", "nvrtc"), ("libcublasLt.so.12", "cublaslt")];

/// Defines a test that runs in a process of its own, on a fake set up by `[(variable, value), ..]`.
macro_rules! scenario {
    ($(#[$meta:meta])* fn $name:ident($fake:ident) on $settings:expr; $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            crate::fake::run(path, &$settings, |$fake: &crate::fake::Fake| $body);
        }
    };
}
pub(crate) use scenario;

/// The body in the process that is for it; otherwise that process, whose failure is this test's.
pub fn run(path: &str, settings: &[(&str, &str)], body: impl FnOnce(&Fake)) {
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    if env::var(SCENARIO).is_ok_and(|wanted| wanted == name) {
        body(&Fake { libraries: PathBuf::from(env::var_os(LIBRARIES).unwrap()) });
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    for variable in ELSEWHERE {
        command.env_remove(variable);
    }
    command.env(SCENARIO, name).env(FOLDER, folder.path()).env("HOME", folder.path());
    command.env(LIBRARIES, libraries()).env("SAR_CUDA_LIB", libraries());
    if machine_has_its_own() {
        command.env("LD_LIBRARY_PATH", libraries().join("named"));
    }
    command.envs(settings.iter().copied());
    let output = command.output().unwrap();
    let (out, err) = (&output.stdout, &output.stderr);
    let (out, err) = (String::from_utf8_lossy(out), String::from_utf8_lossy(err));
    assert!(output.status.success(), "{name}: {}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "{name} did not run:\n{out}\n{err}");
}

/// The fake, in a scenario's process.
pub struct Fake {
    libraries: PathBuf,
}

impl Fake {
    /// A folder for this scenario alone.
    pub fn folder(&self) -> PathBuf {
        PathBuf::from(env::var_os(FOLDER).unwrap())
    }

    /// Where the kernel cache of [`Fake::driver`] is.
    pub fn cache(&self) -> PathBuf {
        self.folder().join("cubin")
    }

    /// A device on the fake. The code under test opens the libraries first, as it does on a GPU.
    pub fn driver(&self) -> Result<Driver, CudaError> {
        let driver = Driver::with_cache(0, Cache::at(self.cache()))?;
        assert!(lend_emulator()?, "not the fake");
        Ok(driver)
    }

    /// A backend on the fake.
    pub fn backend<S: Storage>(&self) -> Result<CudaBackend<S, Driver>, CudaError> {
        CudaBackend::new(self.driver()?)
    }

    /// Work that was given to the device and has not run.
    pub fn pending(&self) -> i32 {
        // SAFETY: of this type in report.cpp.
        unsafe { self.function::<extern "C" fn() -> c_int>("libcuda.so.1", b"sar_fake_pending")() }
    }

    /// Executable graphs that are alive.
    pub fn graphs(&self) -> i32 {
        // SAFETY: of this type in report.cpp.
        unsafe { self.function::<extern "C" fn() -> c_int>("libcuda.so.1", b"sar_fake_graphs")() }
    }

    /// The launch after `launches` more ones will fault.
    pub fn fault_after(&self, launches: i32) {
        // SAFETY: of this type in report.cpp.
        unsafe {
            let name = b"sar_fake_fault_after";
            self.function::<extern "C" fn(c_int)>("libcuda.so.1", name)(launches);
        }
    }

    /// How often the compiler ran.
    pub fn compilations(&self) -> i32 {
        let name = b"sar_fake_compilations";
        // SAFETY: of this type in nvrtc.cpp.
        unsafe { self.function::<extern "C" fn() -> c_int>("libnvrtc.so.12", name)() }
    }

    /// Nothing was used in a way that CUDA forbids, and nothing is left. To be asked once all
    /// backends are dropped.
    pub fn expect_clean(&self) {
        let mut text = [0u8; 4096];
        // SAFETY: of this type in report.cpp.
        let lines = unsafe {
            let report: extern "C" fn(*mut c_char, usize) -> c_int =
                self.function("libcuda.so.1", b"sar_fake_report");
            report(text.as_mut_ptr().cast(), text.len())
        };
        assert_eq!(lines, 0, "{}", String::from_utf8_lossy(&text));
    }

    /// # Safety
    /// `F` is the type of the function.
    unsafe fn function<F: Copy>(&self, library: &str, name: &[u8]) -> F {
        let path = self.libraries.join(library);
        // SAFETY: the caller's. The code under test keeps the library open.
        unsafe { *libloading::Library::new(path).unwrap().get::<F>(name).unwrap() }
    }
}

/// The folder of the fake libraries, built once a process where a source is newer.
pub fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_cuda");
        fs::create_dir_all(folder.join("named")).unwrap();
        for (library, sources) in SOURCES {
            build(&folder, library, sources);
        }
        folder
    })
}

/// Whether a library of NVIDIA's is on the loader's own path: it would be found by the name that
/// cudarc tries first, which is not one that the fakes are called by.
fn machine_has_its_own() -> bool {
    let names = ["libcuda.so", "libnvrtc.so", "libcublasLt.so"];
    // SAFETY: NVIDIA's libraries run nothing at load time but their own set-up.
    names.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

fn build(folder: &Path, library: &str, sources: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("fake_cuda");
    let files = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_file()).collect()
    };
    let own = files(&root.join(sources));
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let newest = own.iter().chain(&files(&root)).filter_map(|path| modified(path)).max();
    let path = folder.join(library);
    if modified(&path) > newest {
        return;
    }
    let target = format!("{}-unknown-{}-gnu", env::consts::ARCH, env::consts::OS);
    let mut compiler = cc::Build::new();
    compiler.cpp(true).std("c++17").opt_level(2).debug(false).warnings(true);
    compiler.target(&target).host(&target).cargo_metadata(false);
    let mut command = compiler.try_get_compiler().unwrap().to_command();
    // Another test program may be loading the file: it is replaced, not written to.
    let fresh = folder.join(format!("{library}.{}", std::process::id()));
    command.args(["-shared", "-fPIC"]).arg(format!("-Wl,-soname,{library}")).arg("-o").arg(&fresh);
    command.args(own.iter().filter(|path| path.extension().is_some_and(|e| e == "cpp")));
    if library.starts_with("libcublasLt") {
        // As the real one does, it needs the driver.
        command.arg(folder.join("libcuda.so.1"));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{library}: {}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&fresh, &path).unwrap();
    let name = library.split_inclusive(".so").next().unwrap();
    let named = folder.join("named").join(name);
    let _ = fs::remove_file(&named);
    std::os::unix::fs::symlink(&path, &named).unwrap();
}
