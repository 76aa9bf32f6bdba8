//! What is missing, too old, damaged, or fails: said by name, and survived where it can be.

use crate::fake::{Fake, scenario};
use sar_backend_cuda::kernels::{SOURCES, Source};
use sar_backend_cuda::{CudaBackend, CudaError, Device, Driver, Library, Nvrtc, SCRATCH, probe};
use sar_math::backend::{BackendError, Buffers, ErrorKind};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The error must say all of this.
fn expect<T>(outcome: Result<T, CudaError>, kind: ErrorKind, words: &[&str]) {
    let error = outcome.err().expect("a failure");
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "\"{word}\" is not in: {text}"));
}

scenario! {
    fn no_library_at_all(fake) on [("SAR_CUDA_LIB", "/nowhere"), ("LD_LIBRARY_PATH", "")]; {
        if Library::Driver.open().is_ok() {
            return; // The machine has a driver of its own, which cannot be hidden.
        }
        let words = ["libcuda", "not found", "SAR_CUDA_LIB", "driver"];
        expect(fake.driver(), ErrorKind::Other, &words);
        assert!(probe::probe().driver.is_err());
    }
}

scenario! {
    fn a_driver_that_is_too_old(fake) on [("SAR_FAKE_DRIVER_VERSION", "11080")]; {
        expect(fake.driver(), ErrorKind::Other, &["11.8", "12.0", "525"]);
    }
}

scenario! {
    fn no_device(fake) on [("SAR_FAKE_DEVICES", "0")]; {
        expect(fake.driver(), ErrorKind::Other, &["no GPU", "no CUDA-capable device"]);
    }
}

scenario! {
    fn a_driver_that_does_not_start(fake) on [("SAR_FAKE_INIT", "3")]; {
        expect(fake.driver(), ErrorKind::Other, &["does not start", "initialization error"]);
    }
}

scenario! {
    fn a_device_number_that_there_is_not(_fake) on [("SAR_FAKE_DEVICES", "2")]; {
        expect(probe::usable(2), ErrorKind::Other, &["number 2 of 2", "from 0"]);
        assert_eq!(probe::usable(1).unwrap().ordinal, 1);
    }
}

scenario! {
    fn an_architecture_that_is_too_old(fake) on [("SAR_FAKE_CAPABILITY", "75")]; {
        expect(fake.driver(), ErrorKind::Other, &["sm_75", "sm_80"]);
    }
}

scenario! {
    fn products_newer_than_the_driver(fake) on [("SAR_FAKE_CUBLASLT_VERSION", "130002")]; {
        expect(fake.driver(), ErrorKind::Other, &["libcublasLt", "13.0", "12.8", "nvidia-cublas"]);
    }
}

scenario! {
    fn a_compiler_newer_than_the_driver(fake) on [("SAR_FAKE_NVRTC_VERSION", "13.0")]; {
        expect(fake.driver(), ErrorKind::Other, &["libnvrtc", "13.0", "12.8"]);
    }
}

/// A folder that has some of the libraries.
fn only(fake: &Fake, names: &[&str]) -> PathBuf {
    let folder = fake.folder().join("some");
    fs::create_dir(&folder).unwrap();
    for name in names {
        let all = PathBuf::from(std::env::var_os("SAR_FAKE_LIBRARIES").unwrap());
        std::os::unix::fs::symlink(all.join(name), folder.join(name)).unwrap();
    }
    // SAFETY: a scenario's process runs nothing else.
    unsafe { std::env::set_var("SAR_CUDA_LIB", &folder) };
    folder
}

scenario! {
    fn no_matrix_products(fake) on [("LD_LIBRARY_PATH", "")]; {
        let folder = only(fake, &["libcuda.so.1", "libnvrtc.so.12"]);
        fs::write(folder.join("libcublasLt.so.12"), "no library. ".repeat(100)).unwrap();
        if Library::CublasLt.open().is_ok() {
            return; // The machine has one of its own.
        }
        let words = ["libcublasLt", "invalid ELF header", "pip install nvidia-cublas"];
        expect(fake.driver(), ErrorKind::Other, &words);
    }
}

scenario! {
    /// cudarc looks for `libnvrtc.so` before `libnvrtc.so.12`, wherever the latter is.
    fn a_library_that_another_one_hides(fake) on []; {
        let hiding = fake.folder().join("hiding");
        if std::env::var_os("LD_LIBRARY_PATH").is_none_or(|path| path != *hiding) {
            // The loader reads its path once, so another process it is.
            fs::create_dir(&hiding).unwrap();
            let libraries = PathBuf::from(std::env::var_os("SAR_FAKE_LIBRARIES").unwrap());
            fs::copy(libraries.join("libnvrtc.so.12"), hiding.join("libnvrtc.so")).unwrap();
            let mut again = Command::new(std::env::current_exe().unwrap());
            again.args(std::env::args_os().skip(1)).env("LD_LIBRARY_PATH", &hiding);
            assert!(again.status().unwrap().success());
            return;
        }
        let words = ["libnvrtc.so.12", "hidden", "LD_LIBRARY_PATH"];
        expect(Nvrtc::load().map(drop), ErrorKind::Other, &words);
    }
}

scenario! {
    /// Kernels that were compiled before are enough.
    fn no_compiler(fake) on [("LD_LIBRARY_PATH", "")]; {
        let full = fake.folder().join("full");
        if std::env::var_os("SAR_CUDA_LIB").is_none_or(|path| path != *full) {
            works(&fake.backend::<f32>().unwrap()).unwrap();
            // What a process has loaded stays, so another one it is.
            only(fake, &["libcuda.so.1", "libcublasLt.so.12"]);
            fs::rename(fake.folder().join("some"), &full).unwrap();
            let mut again = Command::new(std::env::current_exe().unwrap());
            again.args(std::env::args_os().skip(1)).env("SAR_CUDA_LIB", &full);
            assert!(again.status().unwrap().success());
            return;
        }
        if Library::Nvrtc.open().is_ok() {
            return; // The machine has one of its own.
        }
        works(&fake.backend::<f32>().unwrap()).unwrap();
        spoil(&fake.cache(), |_| whole(b"other machine code"));
        let cache = fake.cache().display().to_string();
        let advice = [cache.as_str(), "sm_80", "pip install nvidia-cuda-nvrtc", "sar kernels build"];
        let refused = ["cuModuleLoadData", "kernel image is invalid"];
        expect(fake.backend::<f32>(), ErrorKind::Compile, &[&refused[..], &advice].concat());
        spoil(&fake.cache(), |bytes| bytes[..bytes.len() / 2].to_vec());
        expect(fake.backend::<f32>(), ErrorKind::Compile, &[&["damaged"], &advice[..]].concat());
        fs::remove_dir_all(fake.cache()).unwrap();
        let words = ["libnvrtc", "pip install nvidia-cuda-nvrtc"];
        expect(fake.backend::<f32>(), ErrorKind::Other, &words);
        fake.expect_clean();
    }
}

scenario! {
    fn a_kernel_that_does_not_compile(fake) on [("SAR_FAKE_NVRTC_BREAKS", "linear")]; {
        let words = ["linear", "sm_80", "f32", "expected an expression", "SAR_CUDA_LIB"];
        expect(fake.backend::<f32>(), ErrorKind::Compile, &words);
        let broken = Source { stem: "broken", text: "SYNTAX ERROR" };
        let outcome = Nvrtc::load().unwrap().compile(broken, "bf16", "sm_90");
        expect(outcome, ErrorKind::Compile, &["broken", "sm_90", "expected an expression"]);
        fake.expect_clean();
    }
}

/// `1 + 1` on the device.
fn works(backend: &CudaBackend<f32, sar_backend_cuda::Driver>) -> Result<(), CudaError> {
    let (mut one, mut sum) = (backend.activation(8)?, backend.activation(8)?);
    backend.upload(&[1.0; 8], &mut one, 0)?;
    backend.upload(&[1.0; 8], &mut sum, 0)?;
    backend.add(&one, &mut sum, 8)?;
    let mut host = [0.0; 8];
    backend.download(&sum, 0, &mut host)?;
    assert_eq!(host, [2.0; 8]);
    Ok(())
}

/// Spoils every file of the cache.
fn spoil(cache: &Path, how: impl Fn(Vec<u8>) -> Vec<u8>) {
    for entry in fs::read_dir(cache).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        fs::write(path, how(bytes)).unwrap();
    }
}

/// A file of the cache whose checksum holds.
fn whole(code: &[u8]) -> Vec<u8> {
    [code, &Sha256::digest(code)].concat()
}

scenario! {
    fn cached_kernels_are_compiled_once_and_anew_where_they_are_damaged(fake) on []; {
        let all = SOURCES.len() as i32;
        let times = |expected: i32| {
            works(&fake.backend::<f32>().unwrap()).unwrap();
            assert_eq!(fake.compilations(), expected);
        };
        times(all);
        times(all);
        // Cut short, as by a full disk: the checksum does not hold.
        spoil(&fake.cache(), |bytes| bytes[..bytes.len() / 2].to_vec());
        times(2 * all);
        times(2 * all);
        // Whole, but not what the driver takes.
        spoil(&fake.cache(), |_| whole(b"other machine code"));
        times(3 * all);
        times(3 * all);
        fake.expect_clean();
    }
}

scenario! {
    fn a_cache_that_cannot_be_written(fake) on []; {
        fs::write(fake.cache(), "a file, no folder").unwrap();
        expect(fake.backend::<f32>(), ErrorKind::Compile, &["cubin"]);
        fake.expect_clean();
    }
}

/// Room for the workspace of products and some more.
const ROOM: usize = 64 << 20;

scenario! {
    fn out_of_memory_and_working_on(fake) on [("SAR_FAKE_MEMORY", "67108864")]; {
        let backend = fake.backend::<f32>().unwrap();
        let bytes = format!("{} more bytes", ROOM * 4);
        expect(backend.accum(ROOM).map(drop), ErrorKind::OutOfMemory, &[&bytes]);
        works(&backend).unwrap();
        // What is released is there again.
        for _ in 0..8 {
            backend.accum(ROOM / 4 / 4).unwrap();
        }
        let (_all, more) = (backend.accum(ROOM / 4 / 4).unwrap(), backend.accum(ROOM / 4 / 4));
        expect(more.map(drop), ErrorKind::OutOfMemory, &["in use"]);
        works(&backend).unwrap();
        drop((_all, backend));
        fake.expect_clean();
    }
}

scenario! {
    /// The pool keeps what was given back, which serves nothing larger.
    fn room_is_made_of_what_the_pool_keeps(fake) on [("SAR_FAKE_MEMORY", "67108864")]; {
        let backend = fake.backend::<f32>().unwrap();
        // Beside 34 MiB of the backend's own: two of the smaller pieces, or the larger one alone.
        let (piece, all) = (3 << 20, 6 << 20);
        let pieces = [backend.activation(piece).unwrap(), backend.activation(piece).unwrap()];
        drop(pieces);
        let mut whole = backend.activation(all).unwrap();
        backend.upload(&vec![1.0; all], &mut whole, 0).unwrap();
        let held = backend.activation(all).map(drop).unwrap_err();
        assert!(matches!(held, CudaError::OutOfMemory { .. }), "what is held stays: {held}");
        let mut host = [0.0; 2];
        backend.download(&whole, all - 2, &mut host).unwrap();
        assert_eq!(host, [1.0; 2]);
        drop(whole);
        drop(backend);
        fake.expect_clean();
    }
}

scenario! {
    fn what_the_backend_keeps_is_counted(fake) on [("SAR_FAKE_MEMORY", "67108864")]; {
        let backend = fake.backend::<f32>().unwrap();
        let own = Driver::PRODUCT_SPACE + SCRATCH;
        assert_eq!(backend.device().peak_bytes(), own);
        let rest = (ROOM - own) / size_of::<f32>();
        expect(backend.accum(rest + 1).map(drop), ErrorKind::OutOfMemory, &["in use"]);
        let all = backend.accum(rest).unwrap();
        assert_eq!(backend.device().peak_bytes(), ROOM);
        drop((all, backend));
        fake.expect_clean();
    }
}

scenario! {
    fn a_gpu_without_memory_pools_is_told(fake) on [("SAR_FAKE_NO_POOLS", "1")]; {
        expect(fake.driver(), ErrorKind::Unsupported, &["no memory pools", "--device"]);
        fake.expect_clean();
    }
}

scenario! {
    fn no_room_to_begin_with(fake) on [("SAR_FAKE_MEMORY", "1000000")]; {
        expect(fake.driver(), ErrorKind::OutOfMemory, &["34603008 more bytes"]);
        fake.expect_clean();
    }
}

scenario! {
    fn a_fault_of_a_kernel_comes_with_the_next_wait(fake) on []; {
        let backend = fake.backend::<f32>().unwrap();
        works(&backend).unwrap();
        let (one, mut sum) = (backend.activation(8).unwrap(), backend.activation(8).unwrap());
        fake.fault_after(0);
        backend.add(&one, &mut sum, 8).unwrap();
        let words = ["cuStreamSynchronize", "illegal memory access"];
        expect(backend.synchronize(), ErrorKind::Device, &words);
        // A context is lost with a fault: everything says so from then on, and nothing hangs.
        expect(works(&backend), ErrorKind::Device, &["illegal memory access"]);
        drop((one, sum, backend));
        // A new one starts afresh.
        works(&fake.backend::<f32>().unwrap()).unwrap();
    }
}

scenario! {
    fn two_backends_share_a_device(fake) on []; {
        let (first, second) = (fake.backend::<f32>().unwrap(), fake.backend::<f32>().unwrap());
        works(&first).unwrap();
        works(&second).unwrap();
        drop(first);
        works(&second).unwrap();
        drop(second);
        fake.expect_clean();
    }
}
