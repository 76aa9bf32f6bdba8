//! The conformance kit on the driver's side.

use crate::fake::{Fake, scenario};
use sar_backend_cuda::{CudaBackend, Emulator, Storage, bf16};
use sar_math::conformance::{Case, checks};

/// Every op passes on the driver, or fails on both devices alike, which `tests/conformance.rs` reports.
fn check_all<S: Storage>(fake: &Fake) {
    let driver = fake.backend::<S>().unwrap();
    let emulator = CudaBackend::<S, Emulator>::new(Emulator::new()).unwrap();
    let mut passed = 0;
    for ((op, on_driver), (_, on_emulator)) in checks().into_iter().zip(checks()) {
        match on_driver(&driver, Case::new(0)) {
            Ok(_) => passed += 1,
            Err(mismatch) => {
                let other = on_emulator(&emulator, Case::new(0)).err();
                assert_eq!(other, Some(mismatch), "{op}: on the emulator, and on the driver");
            }
        }
    }
    assert!(passed >= 2, "buffers and linear at least");
    drop(driver);
    fake.expect_clean();
}

scenario! {
    fn ops_in_f32(fake) on []; { check_all::<f32>(fake) }
}

scenario! {
    fn ops_in_bf16(fake) on []; { check_all::<bf16>(fake) }
}
