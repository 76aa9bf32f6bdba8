//! What is missing is said, and nothing panics.

use sar_backend_cuda::{CudaError, Driver, probe};

#[test]
fn a_machine_without_a_gpu_is_told_so() {
    let found = probe::probe();
    if let Ok(driver) = &found.driver {
        assert!(driver.gpus.is_empty() || probe::usable(0).is_ok() || driver.version < (12, 0));
        return;
    }
    let error = Driver::new(0).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("libcuda") || error.contains("no GPU"), "{error}");
    assert!(error.contains("driver"), "what to do is part of it: {error}");
}

#[test]
fn every_missing_library_names_itself_and_its_source() {
    let found = probe::probe();
    for (name, outcome) in [
        ("libnvrtc", found.nvrtc.err()),
        ("libcublasLt", found.cublaslt.err()),
        ("libnccl", found.nccl.err()),
    ] {
        let Some(error) = outcome else { continue };
        assert!(matches!(error, CudaError::Library { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("pip install"), "{text}");
    }
}
