//! `quantizer`: from a latent to the ids of every scale, and to the generator's inputs.

use crate::support::{Golden, assert_close};
use sar_backend_cpu::{Buffer, CpuBackend};
use sar_math::backend::{Buffers, LatentDims, RolloutDims, RolloutOps};

/// Sixteen products of numbers of order 1.
const TOLERANCE: f64 = 1e-12;

fn uploaded(backend: &CpuBackend<f64>, host: &[f64]) -> Buffer<f64> {
    let mut buffer = backend.activation(host.len()).unwrap();
    backend.upload(host, &mut buffer, 0).unwrap();
    buffer
}

#[test]
fn golden_quantizer_ids_and_inputs() {
    let golden = Golden::open("quantizer");
    let (schedule, vocab) = (golden.schedule(), golden.usize("vocab"));
    let latent_shape = golden.shape("latent");
    let [batch, channels, height, width] = latent_shape[..] else { panic!("{latent_shape:?}") };
    let tokens = schedule.tokens();
    let backend = CpuBackend::<f64>::new();
    let latent = uploaded(&backend, &golden.f64("latent"));
    let codebook = uploaded(&backend, &golden.f64("codebook_l2"));

    let mut tokens_btk = backend.activation(batch * tokens * channels).unwrap();
    let dims = LatentDims { batch, channels, height, width };
    backend.area_tokens(dims, &schedule, &latent, &mut tokens_btk).unwrap();
    let mut ids = backend.ids(batch * tokens).unwrap();
    let rows = batch * tokens;
    backend.nearest_code(rows, vocab, channels, &tokens_btk, &codebook, &mut ids).unwrap();
    assert_eq!(ids.as_slice(), golden.ids("targets"), "targets");

    let scales = 1..schedule.len();
    let dims = RolloutDims { batch, schedule, scales, channels, vocab };
    for scale in 0..schedule.len() {
        let range = schedule.range(scale);
        let want = golden.ids(&format!("indices_{}", scale + 1));
        let got = ids.as_slice().chunks(tokens).flat_map(|ids| &ids[range.clone()]);
        assert_eq!(got.copied().collect::<Vec<_>>(), want, "scale {}", scale + 1);
        let mut map = backend.activation(batch * channels * range.len()).unwrap();
        backend.code_map(&dims, scale, &ids, &codebook, &mut map).unwrap();
        let want = golden.f64(&format!("quant_{}", scale + 1));
        assert_close("quant", map.as_slice(), &want, TOLERANCE);
    }

    let mut inputs = backend.activation(batch * (tokens - 1) * channels).unwrap();
    backend.rollout_inputs(&dims, &ids, &codebook, &mut inputs).unwrap();
    let want = golden.f64("teacher_inputs");
    assert_close("teacher_inputs", inputs.as_slice(), &want, TOLERANCE);
}
