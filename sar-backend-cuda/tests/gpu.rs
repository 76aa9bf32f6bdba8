//! On a GPU: the conformance kit in both storage types, and the same bits run after run.
//!
//! Skipped aloud where there is none, unless `SAR_REQUIRE_GPU=1`.

#![allow(clippy::unwrap_used)]

use sar_backend_cuda::{CudaBackend, Driver, Storage, bf16};
use sar_math::conformance::{Case, fingerprints, run_all};

/// Cases of every op: as many as the emulator's tests take.
const CASES: u64 = 3;

fn gpu<S: Storage>() -> Option<CudaBackend<S, Driver>> {
    match Driver::new(0).and_then(CudaBackend::new) {
        Ok(backend) => Some(backend),
        Err(error) => {
            assert!(std::env::var_os("SAR_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn every_op_holds<S: Storage>() {
    let Some(backend) = gpu::<S>() else { return };
    let mut faults = Vec::new();
    for seed in 0..CASES {
        for report in run_all(&backend, seed) {
            if let Err(mismatch) = report.outcome {
                faults.push(format!("{}, seed {seed}: {mismatch}", S::NAME));
            }
        }
    }
    // At full size: the same bits twice, and a row alone as among others.
    for (op, fingerprint) in fingerprints() {
        match fingerprint(&backend, Case::new(0)) {
            Ok(bits) => assert!(!bits.is_empty(), "{op} leaves nothing to compare"),
            Err(mismatch) => faults.push(format!("{}, at full size: {mismatch}", S::NAME)),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let apart = backend.device().products_apart();
    assert!(apart.is_empty(), "{}: a layer has one algorithm; others: {apart:#?}", S::NAME);
}

#[test]
fn every_op_holds_in_f32() {
    every_op_holds::<f32>();
}

#[test]
fn every_op_holds_in_bf16() {
    every_op_holds::<bf16>();
}
