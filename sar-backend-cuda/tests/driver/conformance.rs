//! The conformance kit on the driver's side.

use crate::fake::{Fake, scenario};
use sar_backend_cpu::CpuBackend;
use sar_backend_cuda::{Storage, bf16};
use sar_math::ScaleSchedule;
use sar_math::backend::{Choice, ChooseDims, DrawKeys, Filter, RolloutOps};
use sar_math::conformance::run_all;
use sar_math::philox::{Purpose, Stream};

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
    fn all_ops_in_f32_on_a_workstation_card(fake) on [("SAR_FAKE_CAPABILITY", "89")]; {
        check_all::<f32>(fake)
    }
}

scenario! {
    fn all_ops_in_bf16_on_a_workstation_card(fake) on [("SAR_FAKE_CAPABILITY", "89")]; {
        check_all::<bf16>(fake)
    }
}

/// Codebooks whose rows fill most of an A100's shared memory.
fn draws<S: Storage>(fake: &Fake) {
    let (gpu, cpu) = (fake.backend::<S>().unwrap(), CpuBackend::<f32>::new());
    let schedule = ScaleSchedule::from_sides(&[1]).unwrap();
    for (vocab, top_k, top_p) in
        [(16_384, 0, 0.0), (16_384, 0, 0.96), (16_384, 4_000, 0.96), (19_000, 900, 0.0)]
    {
        let mut stream = Stream::new(5, Purpose::Test, vocab as u64);
        let logits: Vec<f32> =
            (0..2 * vocab).map(|_| S::store(stream.normal() as f32).load()).collect();
        let choice = Choice::Draw(Filter { top_k, top_p }, DrawKeys { seed: 3, first_image: 0 });
        let dims = ChooseDims {
            batch: 2,
            first_sample: 0,
            schedule,
            scales: 0..1,
            vocab,
            guidance: None,
            choice,
        };
        let wanted = drawn(&cpu, &dims, &logits);
        assert_eq!(drawn(&gpu, &dims, &logits), wanted, "{vocab} codes, top-k {top_k}");
    }
    drop(gpu);
    fake.expect_clean();
}

fn drawn<B: RolloutOps<Host = f32>>(backend: &B, dims: &ChooseDims, logits: &[f32]) -> Vec<u32> {
    let mut held = backend.activation(logits.len()).unwrap();
    backend.upload(logits, &mut held, 0).unwrap();
    let (mut ids, mut found) = (backend.ids(dims.batch).unwrap(), vec![0; dims.batch]);
    backend.choose_codes(dims, &held, &mut ids).unwrap();
    backend.download_ids(&ids, 0, &mut found).unwrap();
    found
}

scenario! {
    fn rows_of_large_codebooks_are_drawn_from(fake) on []; {
        draws::<f32>(fake);
        draws::<bf16>(fake);
    }
}

scenario! {
    fn rows_of_large_codebooks_are_drawn_from_on_a_workstation_card(fake)
    on [("SAR_FAKE_CAPABILITY", "89")]; {
        draws::<f32>(fake);
        draws::<bf16>(fake);
    }
}

scenario! {
    fn all_ops_in_bf16(fake) on []; { check_all::<bf16>(fake) }
}
