//! Every property of every op in f64, on cases that proptest draws: shapes, operands, random
//! cotangents; backward against fourth-order central differences of the formula.
//!
//! A failing seed is a whole case: `linear::check(&backend, Case::new(seed))` repeats it.

use proptest::prelude::*;
use sar_backend_cpu::CpuBackend;
use sar_math::conformance::Case;

/// Cases of each op; each is several shapes and several random cotangents.
const CASES: u32 = 64;

macro_rules! properties {
    ([$($op:ident)*]) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]
            $(
                #[test]
                fn $op(seed in any::<u64>()) {
                    let backend = CpuBackend::<f64>::new();
                    let outcome = sar_math::conformance::$op::check(&backend, Case::new(seed));
                    if let Err(mismatch) = outcome {
                        prop_assert!(false, "{}", mismatch);
                    }
                }
            )*
        }
    };
}

sar_math::for_each_op!(properties);
