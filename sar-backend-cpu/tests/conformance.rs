//! The conformance kit on the CPU backend, in both number types and on two pools.

#![allow(clippy::unwrap_used)]

use sar_backend_cpu::CpuBackend;
use sar_math::backend::{Backend, BackendError, Buffers, EmbeddingOps, ErrorKind, RolloutOps};
use sar_math::conformance::{Case, fingerprints, run_all};

mod f64 {
    sar_math::conformance_tests!(sar_backend_cpu::CpuBackend::<f64>::new());
}

mod f32 {
    sar_math::conformance_tests!(sar_backend_cpu::CpuBackend::<f32>::new());
}

/// Every op's bits at a size where the work is split, on a pool of `threads`.
fn bits<B: Backend + Sync>(backend: &B, threads: usize) -> Vec<(&'static str, Vec<u64>)> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let of_op = |(op, fingerprint): (_, sar_math::conformance::OpFn<B, Vec<u64>>)| {
        (op, fingerprint(backend, Case::new(11)).unwrap_or_else(|mismatch| panic!("{mismatch}")))
    };
    pool.install(|| fingerprints().into_iter().map(of_op).collect())
}

fn same_on_two_pools<B: Backend + Sync>(backend: &B) {
    let (one, two) = (bits(backend, 1), bits(backend, 2));
    assert!(one.len() > 20);
    for ((op, one), (_, two)) in one.iter().zip(&two) {
        assert!(!one.is_empty(), "{op} leaves nothing to compare");
        let differing = one.iter().zip(two).filter(|(a, b)| a != b).count();
        assert_eq!((differing, one.len()), (0, two.len()), "{op}: bits differ on two threads");
    }
}

#[test]
fn f32_bits_do_not_depend_on_the_pool() {
    same_on_two_pools(&CpuBackend::<f32>::new());
}

#[test]
fn f64_bits_do_not_depend_on_the_pool() {
    same_on_two_pools(&CpuBackend::<f64>::new());
}

#[test]
fn run_all_reports_every_op() {
    let reports = run_all(&CpuBackend::<f64>::new(), 5);
    assert_eq!(reports.len(), fingerprints::<CpuBackend<f64>>().len());
    for report in reports {
        let measured = report.outcome.unwrap_or_else(|mismatch| panic!("{mismatch}"));
        // A bound that was met was measured: what is no number meets none.
        assert!(measured.value_error >= 0.0 && measured.tolerance.value > 0.0, "{measured:?}");
    }
}

/// Beyond the contract: the CPU looks at every id before it uses it.
#[test]
fn an_id_outside_its_table_is_an_error() {
    use sar_math::ScaleSchedule;
    use sar_math::backend::{RolloutDims, Slot};
    let backend = CpuBackend::<f32>::new();
    let mut ids = backend.ids(5).unwrap();
    backend.upload_ids(&[3], &mut ids, 0).unwrap();
    let mut out = backend.activation(64).unwrap();
    let table = Slot { offset: 0, len: 6 };
    let params = backend.params(6).unwrap();
    let error = backend.class_embedding(1, 2, &ids, &params, table, &mut out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    assert_eq!(
        error.to_string(),
        "class_embedding: id 3 at position 0 is outside a table of 3 rows"
    );

    let schedule = ScaleSchedule::from_sides(&[1, 2]).unwrap();
    let dims = RolloutDims { batch: 1, schedule, scales: 1..2, channels: 2, vocab: 3 };
    let codebook = backend.accum(6).unwrap();
    let error = backend.rollout_inputs(&dims, &ids, &codebook, &mut out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    assert!(error.to_string().starts_with("rollout_inputs: id 3"), "{error}");
}
