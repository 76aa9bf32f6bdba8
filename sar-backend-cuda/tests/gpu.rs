//! On a GPU: the conformance kit in both storage types, and the same bits run after run.
//!
//! Skipped aloud where there is none, unless `SAR_REQUIRE_GPU=1`.

#![allow(clippy::unwrap_used)]

use sar_backend_cuda::{CudaBackend, Driver, Storage, bf16};
use sar_math::backend::{Buffers, Linear, LinearDims, Slot, TransformerOps, Write};
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
    let (apart, ordinary) =
        (backend.device().products_apart(), backend.device().ordinary_products_apart());
    // Of a few odd columns the library computes dot products, one kernel or another; models have none such.
    println!("{}: products that do not run by their layer's algorithm: {apart:#?}", S::NAME);
    assert_eq!(ordinary, 0, "{}: a layer has one algorithm", S::NAME);
}

#[test]
fn every_op_holds_in_f32() {
    every_op_holds::<f32>();
}

#[test]
fn every_op_holds_in_bf16() {
    every_op_holds::<bf16>();
}

/// Sums over rows of ones count the rows: a few missing of thousands would be within any tolerance. Widths are such
/// that a GPU without split sums would stand idle, and rows those of odd batches and schedules, a few more than
/// whole blocks of terms.
fn gradients_sum_every_row<S: Storage>() {
    const WIDTH: usize = 512;
    let Some(backend) = gpu::<S>() else { return };
    let most = 64 * 170 + 7;
    let mut ones = backend.activation(most * WIDTH).unwrap();
    backend.upload(&vec![1.0; most * WIDTH], &mut ones, 0).unwrap();
    let mut grads = backend.accum(WIDTH * WIDTH).unwrap();
    let layer = Linear { weight: Slot { offset: 0, len: WIDTH * WIDTH }, bias: None };
    for blocks in [1, 21, 42, 64, 96, 168, 170] {
        // Left of blocks of 64 terms, and of narrower ones.
        for left in [0, 1, 2, 3, 5, 7, 10, 18, 33, 42] {
            let rows = (64 * blocks + left).min(most);
            let dims = LinearDims { rows, inputs: WIDTH, outputs: WIDTH };
            // The first pass of a step overwrites whatever there is, the others add to it.
            for (write, before) in [(Write::Overwrite, f32::NAN), (Write::Accumulate, 0.0)] {
                backend.upload_accum(&vec![before; WIDTH * WIDTH], &mut grads, 0).unwrap();
                backend
                    .linear_backward_weight(dims, &ones, &ones, layer, write, &mut grads)
                    .unwrap();
                let mut found = vec![0.0; WIDTH * WIDTH];
                backend.download_accum(&grads, 0, &mut found).unwrap();
                let missing = found.iter().find(|&&found| found != rows as f32);
                assert_eq!(missing, None, "{}: a sum of {rows} ones, {write:?}", S::NAME);
            }
        }
    }
}

#[test]
fn gradients_sum_every_row_in_f32() {
    gradients_sum_every_row::<f32>();
}

#[test]
fn gradients_sum_every_row_in_bf16() {
    gradients_sum_every_row::<bf16>();
}
