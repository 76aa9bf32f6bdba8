//! A GPU that fails in the middle of a run: the run says so, and another device ends it in the same bits; checkpoints of
//! either backend are the other's.
#![allow(clippy::unwrap_used)]

use clap::Parser as _;
use sar_backend_cuda::{CudaBackend, CudaError, Device, Emulator, Gemm, Launch, Tally};
use sar_train::backend::advised;
use sar_train::cli::{Cli, Command};
use sar_train::commands::train;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The emulator until so many launches are done; from then on every call fails.
struct Fragile {
    inner: Emulator,
    left: AtomicU64,
    fault: fn() -> CudaError,
}

impl Fragile {
    fn new(launches: u64, fault: fn() -> CudaError) -> Self {
        Self { inner: Emulator::new(), left: AtomicU64::new(launches), fault }
    }

    fn alive(&self) -> Result<(), CudaError> {
        match self.left.load(Ordering::Relaxed) {
            0 => Err((self.fault)()),
            _ => Ok(()),
        }
    }
}

/// As of a GPU that fell off its bus.
fn lost() -> CudaError {
    CudaError::Device { call: "cuLaunchKernel".to_owned(), reason: "the device is lost".to_owned() }
}

/// As of a driver that needs room for itself, on a GPU that others fill.
fn full() -> CudaError {
    CudaError::NoRoom { call: "cuLaunchKernel".to_owned() }
}

// SAFETY (of every call below): what the caller promises to this device it promises to the emulator.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Device for Fragile {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn prepare(&self, variant: &'static str) -> Result<(), CudaError> {
        self.inner.prepare(variant)
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.alive()?;
        self.inner.allocate(bytes)
    }

    unsafe fn release(&self, address: u64, bytes: usize) {
        unsafe { self.inner.release(address, bytes) }
    }

    unsafe fn write(&self, host: &[u8], to: u64) -> Result<(), CudaError> {
        self.alive()?;
        unsafe { self.inner.write(host, to) }
    }

    unsafe fn read(&self, from: u64, host: &mut [u8]) -> Result<(), CudaError> {
        self.alive()?;
        unsafe { self.inner.read(from, host) }
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        self.alive()?;
        unsafe { self.inner.zero(at, bytes) }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        self.alive()?;
        unsafe { self.inner.copy(from, to, bytes) }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        self.alive()?;
        self.left.fetch_sub(1, Ordering::Relaxed);
        unsafe { self.inner.launch(launch) }
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError> {
        self.alive()?;
        unsafe { self.inner.gemm(gemm) }
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.alive()?;
        self.inner.synchronize()
    }

    unsafe fn forget(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        unsafe { self.inner.forget(at, bytes) }
    }

    fn replay(
        &self,
        key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        self.inner.replay(key, work)
    }

    fn begin_profile(&self) -> Result<(), CudaError> {
        self.inner.begin_profile()
    }

    fn end_profile(&self) -> Result<Vec<Tally>, CudaError> {
        self.inner.end_profile()
    }

    fn peak_bytes(&self) -> usize {
        self.inner.peak_bytes()
    }
}

/// `sar train` with these flags, of which the last is the name of the run.
fn trained<D: Device>(
    backend: &CudaBackend<f32, D>,
    folder: &Path,
    flags: &[&str],
) -> anyhow::Result<()> {
    let out = folder.join(flags[flags.len() - 1]);
    let out = out.to_str().unwrap();
    let mut all = vec!["sar", "--quiet", "--backend", "cuda", "train"];
    all.extend(&flags[..flags.len() - 1]);
    all.push(out);
    let cli = Cli::try_parse_from(all).unwrap();
    let Command::Train(args) = cli.command else { unreachable!("`sar train` was asked for") };
    train::run(backend, &args, &cli.global)
}

/// Learning rate of the runs on both backends, and how far their weights may be apart after six steps, of that: a moment
/// near zero may turn its sign for want of digits.
const LR: f32 = 1e-3;
const STEPS_DIFFER: f32 = 0.1;

const SMALL: &str = "[data]\nimage_side = 16\nflip = false\ncrop = \"center\"\n\
    [tokenizer]\nch = 8\nch_mult = [1, 1]\nz_channels = 8\nlatent_channels = 4\nvocab = 16\n\
    groups = 4\n[tokenizer_train]\nsteps = 1\nbatch = 2\n\
    [generator]\ndepth = 1\nwidth = 32\nheads = 1\nschedule = \"1_2_8\"\n\
    [train]\nsteps = 6\nbatch = 2\nsave_every = 2\nema = 0.9\nsample_every = 0\n";

/// Two classes of a few images, a configuration, and a tokenizer trained on the CPU.
fn world(folder: &Path) {
    for class in 0..2_u8 {
        let images = folder.join(format!("images/class-{class}"));
        fs::create_dir_all(&images).unwrap();
        for i in 0..6_u8 {
            let image = image::RgbImage::from_fn(16, 16, |x, y| {
                image::Rgb([16 * x as u8, 16 * y as u8, 100 * class + 20 * i])
            });
            image.save(images.join(format!("{i}.png"))).unwrap();
        }
    }
    fs::write(folder.join("small.toml"), SMALL).unwrap();
    let train = ["tokenizer", "train", "--config", "small.toml", "--data", "images"];
    program(folder, &[&train[..], &["--out", "tok"]].concat());
}

/// `sar` on the CPU.
fn program(folder: &Path, args: &[&str]) {
    let mut sar = std::process::Command::new(env!("CARGO_BIN_EXE_sar"));
    let status = sar.arg("--quiet").args(args).current_dir(folder).status().unwrap();
    assert!(status.success(), "{args:?}");
}

fn weights(run: &Path, step: u64) -> Vec<Vec<u8>> {
    let checkpoint = run.join(format!("checkpoints/step-{step}"));
    ["model.safetensors", "ema.safetensors", "optimizer.safetensors"]
        .map(|file| fs::read(checkpoint.join(file)).unwrap())
        .into()
}

/// Runs that end three quarters through, by a lost device and by a full one.
#[test]
fn a_run_whose_device_fails_is_resumed_on_another_in_the_same_bits() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    world(folder);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (config, images, tokenizer) = (path("small.toml"), path("images"), path("tok"));
    let begin = ["--config", &config, "--data", &images, "--tokenizer", &tokenizer, "--out"];
    let whole = CudaBackend::new(Fragile::new(u64::MAX, lost)).unwrap();
    trained(&whole, folder, &[&begin[..], &["whole"]].concat()).unwrap();
    let launches = u64::MAX - whole.device().left.load(Ordering::Relaxed);

    for (name, fault, words) in [
        ("lost", lost as fn() -> CudaError, "cuLaunchKernel: the device is lost"),
        ("full", full, "out of memory: cuLaunchKernel found no room"),
    ] {
        // In the middle of the steps: encoding the images and measuring held-out loss take launches as well.
        let failing = CudaBackend::new(Fragile::new(launches * 3 / 4, fault)).unwrap();
        let error = trained(&failing, folder, &[&begin[..], &[name]].concat()).unwrap_err();
        let said = format!("{error:#}");
        assert!(said.contains(words), "{said}");
        let advised = advised(&failing, Err::<(), _>(error)).unwrap_err();
        assert_eq!(format!("{advised:#}").contains("train.batch"), name == "full", "{advised:#}");
        let run = folder.join(name);
        assert!(run.join("checkpoints/step-2").exists(), "it failed before it had saved anything");
        assert!(!run.join("checkpoints/step-6").exists(), "it failed too late to show anything");

        let other = CudaBackend::new(Emulator::new()).unwrap();
        let both = ["--data", &images, "--resume", "--out", name];
        let refused = trained(&other, folder, &both).unwrap_err().to_string();
        assert!(refused.contains("--resume cannot be used with --data"), "{refused}");
        trained(&other, folder, &["--resume", "--out", name]).unwrap();
        assert!(weights(&run, 6) == weights(&folder.join("whole"), 6), "it differs");
    }
}

/// What a GPU has saved, the processor ends, by the program itself.
#[test]
fn checkpoints_of_one_backend_are_the_others() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    world(folder);
    let begin = ["--config", "small.toml", "--data", "images", "--tokenizer", "tok"];
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (config, images, tokenizer) = (path("small.toml"), path("images"), path("tok"));
    let cuda = ["--config", &config, "--data", &images, "--tokenizer", &tokenizer];
    let gpu = CudaBackend::new(Emulator::new()).unwrap();
    let half = ["--set", "train.steps=4", "--set", "train.lr=1e-3", "--out"];
    trained(&gpu, folder, &[&cuda[..], &half, &["cuda-first"]].concat()).unwrap();
    program(folder, &[&["train"], &begin[..], &half, &["cpu-first"]].concat());
    let more = ["--resume", "--set", "train.steps=6", "--out"];
    program(folder, &[&["train"], &more[..], &["cuda-first"]].concat());
    trained(&gpu, folder, &[&more[..], &["cpu-first"]].concat()).unwrap();
    let names = |run: &str| -> Vec<_> {
        let entries = fs::read_dir(folder.join(run).join("checkpoints/step-6")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("cuda-first"), names("cpu-first"), "the same files");
    let [a, b] = ["cuda-first", "cpu-first"].map(|run| numbers(&folder.join(run), 6));
    assert_eq!(a.len(), b.len());
    // Not `max`, which would hide a NaN.
    let worse = |most: f32, d: f32| if d <= most { most } else { d };
    let differ = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, worse);
    assert!(differ < STEPS_DIFFER * LR, "weights differ by {differ}");
}

/// The weights of a checkpoint, in the order of its file.
fn numbers(run: &Path, step: u64) -> Vec<f32> {
    let file = fs::read(run.join(format!("checkpoints/step-{step}/model.safetensors"))).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let mut names = tensors.names();
    names.sort();
    let bytes = names.into_iter().flat_map(|name| tensors.tensor(name).unwrap().data().to_vec());
    let bytes: Vec<u8> = bytes.collect();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}
