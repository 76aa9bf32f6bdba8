//! `quantizer`: from a latent to the ids of every scale, and to the generator's inputs.

use crate::backends::{Transfers, on_backends};
use crate::compare::{Findings, code_margin};
use crate::support::Golden;
use sar_math::backend::{Backend, CodeDims, Distance, MapDims, RolloutDims, TokenSpan};
use sar_math::resample::area_resize;

/// Sixteen products of numbers of order 1.
const TOLERANCE: f64 = 1e-12;

on_backends!(golden_quantizer_ids_and_inputs, ids_and_inputs);

fn ids_and_inputs<B: Backend>(backend: &B) -> Findings {
    let golden = Golden::open("quantizer");
    let mut found = Findings::default();
    let (schedule, vocab) = (golden.schedule(), golden.usize("vocab"));
    let latent_shape = golden.shape("latent");
    let [batch, channels, height, width] = latent_shape[..] else { panic!("{latent_shape:?}") };
    let tokens = schedule.tokens();
    let latent = backend.put(&golden.f64("latent"));
    let codes = golden.f64("codebook_l2");
    let codebook = backend.put_accum(&codes);

    let rows = batch * tokens;
    let mut tokens_btk = backend.activation(rows * channels).unwrap();
    let dims = MapDims { batch, channels, height, width };
    let span = TokenSpan::whole(&schedule);
    backend.area_tokens(dims, &span, &latent, &mut tokens_btk).unwrap();
    let exact = area_tokens(&golden);
    found.value("tokens", backend.get(&tokens_btk, rows * channels), exact.clone(), TOLERANCE);
    let mut ids = backend.ids(rows).unwrap();
    let by_angle = CodeDims { vocab, channels, distance: Distance::Cosine };
    backend.nearest_code(batch, &span, by_angle, &tokens_btk, &codebook, &mut ids).unwrap();
    let (got, want) = (backend.get_ids(&ids, rows), golden.ids("targets"));
    found.ids("targets", &got, &want, "tokens", |row, got, want| {
        code_margin(&exact[row * channels..][..channels], &codes, got, want)
    });

    // What follows is of the recorded ids: where rounding turned one, another code would be compared.
    let ids = backend.put_ids(&want);
    let scales = 1..schedule.len();
    let dims = RolloutDims { batch, schedule, scales, channels, vocab };
    for scale in 0..schedule.len() {
        let range = schedule.range(scale);
        let of_scale = want.chunks(tokens).flat_map(|ids| &ids[range.clone()]);
        let of_scale: Vec<u32> = of_scale.copied().collect();
        assert_eq!(of_scale, golden.ids(&format!("indices_{}", scale + 1)), "the file's own");
        let len = batch * channels * range.len();
        let mut map = backend.activation(len).unwrap();
        let grid = schedule.scales()[scale];
        let grid = (grid.height, grid.width);
        backend.code_map(&dims, scale, grid, &ids, &codebook, &mut map).unwrap();
        let name = format!("quant_{}", scale + 1);
        let quant = golden.f64(&name);
        found.value(name, backend.get(&map, len), quant, TOLERANCE);
    }

    let len = batch * (tokens - 1) * channels;
    let mut inputs = backend.activation(len).unwrap();
    backend.rollout_inputs(&dims, &ids, &codebook, &mut inputs).unwrap();
    let want = golden.f64("teacher_inputs");
    found.value("teacher_inputs", backend.get(&inputs, len), want, TOLERANCE);
    found
}

/// The latent's tokens `[b, T, k]` in f64 (resizing is held to its own vectors in `resample`).
fn area_tokens(golden: &Golden) -> Vec<f64> {
    let (schedule, shape, latent) =
        (golden.schedule(), golden.shape("latent"), golden.f64("latent"));
    let (channels, size) = (shape[1], (shape[2], shape[3]));
    let mut all = vec![f64::NAN; shape[0] * schedule.tokens() * channels];
    for (plane, map) in latent.chunks(size.0 * size.1).enumerate() {
        let (sample, channel) = (plane / channels, plane % channels);
        for (scale, to) in schedule.scales().iter().enumerate() {
            let mut small = vec![0.0; to.tokens()];
            area_resize(map, size, &mut small, (to.height, to.width)).unwrap();
            let first = sample * schedule.tokens() + schedule.range(scale).start;
            for (i, value) in small.into_iter().enumerate() {
                all[(first + i) * channels + channel] = value;
            }
        }
    }
    all
}
