//! What is missing is said, and nothing panics.

use sar_backend_cuda::{CudaError, Driver, probe};

#[test]
fn a_machine_without_a_gpu_is_told_so() {
    let found = probe::probe();
    if found.driver.is_ok() {
        // A machine with a driver: its GPU serves, or what keeps it from that is said.
        if let Err(error) = probe::usable(0) {
            assert!(error.to_string().len() > 20, "{error}");
        }
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
