//! On a GPU: the conformance kit in both storage types, and the same bits run after run.
//!
//! Skipped aloud where there is none, unless `SAR_REQUIRE_GPU=1`.

#![allow(clippy::unwrap_used)]

use sar_backend_cuda::{CudaBackend, Driver, Storage, TestDevice, bf16};
use sar_math::backend::{Buffers, Linear, LinearDims, Slot, TransformerOps, Write};
use sar_math::conformance::{Case, fingerprints, run_all};

/// Cases of every op: as many as the emulator's tests take.
const CASES: u64 = 3;

fn gpu<S: Storage>() -> Option<CudaBackend<S, Driver>> {
    match TestDevice::gpu().and_then(CudaBackend::new) {
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

/// Checks a layer of 64 inputs and its gradients: `looked_at` rows have the bits that they have alone, and every
/// gradient of ones counts what it is the sum of.
fn layer_is_whole<B>(backend: &B, rows: usize, outputs: usize, looked_at: &[usize])
where
    B: TransformerOps<Host = f32>,
{
    const INPUTS: usize = 64;
    let weight = Slot { offset: 0, len: outputs * INPUTS };
    let layer = Linear { weight, bias: Some(Slot { offset: weight.len, len: outputs }) };
    let params = |weights: &dyn Fn(usize) -> f32, bias: f32| {
        let mut host: Vec<f32> = (0..weight.len).map(weights).collect();
        host.resize(weight.len + outputs, bias);
        let mut params = backend.params(host.len()).unwrap();
        backend.upload_params(&host, &mut params, 0).unwrap();
        params
    };
    let dims = |rows| LinearDims { rows, inputs: INPUTS, outputs };
    let value = |i: usize| ((i * 37 + i / 64 * 11) % 251) as f32 / 125.0 - 1.0;
    let input: Vec<f32> = (0..rows * INPUTS).map(value).collect();
    let activation = |len| backend.activation(len).unwrap();
    let (mut x, mut y) = (activation(rows * INPUTS), activation(rows * outputs));
    let (mut one, mut alone) = (activation(INPUTS), activation(outputs));
    backend.upload(&input, &mut x, 0).unwrap();
    let weights = params(&|i| value(3 * i + 1), 0.5);
    backend.linear(dims(rows), &x, &weights, layer, &mut y).unwrap();
    for &row in looked_at {
        backend.upload(&input[row * INPUTS..][..INPUTS], &mut one, 0).unwrap();
        backend.linear(dims(1), &one, &weights, layer, &mut alone).unwrap();
        let mut found = [vec![0.0; outputs], vec![0.0; outputs]];
        backend.download(&y, row * outputs, &mut found[0]).unwrap();
        backend.download(&alone, 0, &mut found[1]).unwrap();
        assert!(found[0] == found[1], "row {row} has other bits than alone");
        assert!(found[0].iter().any(|v| *v != 0.5), "row {row} is its bias alone");
    }
    // Rows of ones: the bias alone.
    backend.linear(dims(rows), &x, &params(&|_| 0.0, 1.0), layer, &mut y).unwrap();
    let mut dx = activation(rows * INPUTS);
    let weights = params(&|_| 1.0 / 64.0, 0.0);
    backend.linear_backward_input(dims(rows), &y, &weights, layer, &mut dx).unwrap();
    let mut found = vec![0.0; rows * INPUTS];
    backend.download(&dx, 0, &mut found).unwrap();
    let wrong = found.iter().position(|&v| v != outputs as f32 / 64.0);
    assert_eq!(wrong, None, "input gradients");
    backend.upload(&vec![1.0; rows * INPUTS], &mut x, 0).unwrap();
    let mut grads = backend.accum(weight.len + outputs).unwrap();
    let write = Write::Overwrite;
    backend.linear_backward_weight(dims(rows), &y, &x, layer, write, &mut grads).unwrap();
    let mut found = vec![0.0; weight.len];
    backend.download_accum(&grads, 0, &mut found).unwrap();
    assert_eq!(found.iter().position(|&v| v != rows as f32), None, "weight gradients");
}

/// A layer whose result has more elements than 32 bits count is computed in parts, the first of 261,888 rows. Takes
/// 4.6 GB.
#[test]
fn a_layer_of_more_than_two_to_the_31_elements() {
    let Some(backend) = gpu::<bf16>() else { return };
    let rows = 270_000;
    layer_is_whole(&backend, rows, 8192, &[0, 1, 130_000, 261_887, 261_888, rows - 1]);
}

#[test]
fn a_layer_is_whole_on_the_cpu_too() {
    layer_is_whole(&sar_backend_cpu::CpuBackend::<f32>::new(), 301, 128, &[0, 1, 150, 300]);
}
