//! The conformance kit on the driver's side.

use crate::fake::{Fake, scenario};
use sar_backend_cuda::{Storage, bf16};
use sar_math::conformance::run_all;

fn check_all<S: Storage>(fake: &Fake) {
    let backend = fake.backend::<S>().unwrap();
    let reports = run_all(&backend, 0);
    let failed = |op: &sar_math::conformance::OpReport| {
        op.outcome.as_ref().err().map(|mismatch| format!("{mismatch}\n"))
    };
    let faults: String = reports.iter().filter_map(failed).collect();
    assert!(faults.is_empty() && !reports.is_empty(), "{faults}");
    assert_eq!(backend.device().products_apart(), Vec::<String>::new());
    drop(backend);
    fake.expect_clean();
}

scenario! {
    fn all_ops_in_f32(fake) on []; { check_all::<f32>(fake) }
}

scenario! {
    fn all_ops_in_bf16(fake) on []; { check_all::<bf16>(fake) }
}
