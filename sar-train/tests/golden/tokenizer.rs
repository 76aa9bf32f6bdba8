//! The tokenizer: latent, ids, reconstruction, and every gradient of the straight-through
//! reconstruction error.

use crate::support::{Golden, assert_close};
use sar_backend_cpu::CpuBackend;
use sar_math::backend::{Buffers, QuantizeWeights, TokenizerOps};
use sar_train::model::tokenizer::{Tokenizer, TokenizerConfig};

/// Two f64 computations of the same sums in different orders, through some thirty layers.
const TOLERANCE: f64 = 1e-9;
/// Some gradients are zero in exact arithmetic (of a key's bias, which a softmax does not see, and of
/// a bias before a norm with one channel to a group); both sides record only rounding there, of this
/// order relative to the largest gradient of all.
const ROUNDING: f64 = 1e-13;

fn config(golden: &Golden) -> TokenizerConfig {
    let list = golden.meta["ch_mult"].as_array().unwrap();
    TokenizerConfig {
        ch: golden.usize("ch"),
        ch_mult: list.iter().map(|v| v.as_u64().unwrap() as usize).collect(),
        num_res_blocks: golden.usize("num_res_blocks"),
        z_channels: golden.usize("z_channels"),
        latent_channels: golden.usize("latent_channels"),
        vocab: golden.usize("vocab"),
        // Not recorded where it is the published number.
        groups: golden.meta["groups"].as_u64().map_or(32, |v| v as usize),
    }
}

fn parameters(golden: &Golden, tokenizer: &Tokenizer) -> Vec<f64> {
    let mut values = vec![0.0; tokenizer.layout().len()];
    for tensor in tokenizer.layout().tensors() {
        assert_eq!(golden.shape(&tensor.name), tensor.shape, "{}", tensor.name);
        values[tensor.slot.range()].copy_from_slice(&golden.f64(&tensor.name));
    }
    values
}

#[test]
fn golden_tokenizer() {
    let golden = Golden::open("tokenizer");
    let tokenizer = Tokenizer::new(&config(&golden)).unwrap();
    let backend = CpuBackend::<f64>::new();
    let mut params = backend.params(tokenizer.layout().len()).unwrap();
    backend.upload_params(&parameters(&golden, &tokenizer), &mut params, 0).unwrap();
    let [b, _, h, w] = golden.shape("image")[..] else { panic!("image: rank") };
    let f = tokenizer.downsample_factor();

    let mut encoder = tokenizer.encoder().trace(&backend, b, h, w, true).unwrap();
    let mut decoder = tokenizer.decoder().trace(&backend, b, h / f, w / f, true).unwrap();
    let mut space = tokenizer.gradients(&backend, b, h, w).unwrap();
    backend.upload(&golden.f64("image"), encoder.input_mut(), 0).unwrap();
    let z = tokenizer.encoder().forward(&backend, &params, b, h, w, &mut encoder).unwrap();
    assert_close(
        "latent",
        &encoder.output().as_slice()[..z.len()],
        &golden.f64("latent"),
        TOLERANCE,
    );

    let mut ids = backend.ids(b * z.height * z.width).unwrap();
    let (mut loss, vocab) = (backend.accum(1).unwrap(), tokenizer.config().vocab);
    let (codebook, latent) = (tokenizer.codebook(), encoder.output());
    let codes = decoder.input_mut();
    backend
        .vector_quantize(z, vocab, latent, &params, codebook, &mut ids, codes, &mut loss)
        .unwrap();
    assert_eq!(ids.as_slice(), golden.ids("indices"));

    let image =
        tokenizer.decoder().forward(&backend, &params, b, z.height, z.width, &mut decoder).unwrap();
    let reconstruction = &decoder.output().as_slice()[..image.len()];
    assert_close("reconstruction", reconstruction, &golden.f64("reconstruction"), TOLERANCE);
    backend
        .squared_error(
            image.len(),
            decoder.output(),
            encoder.input(),
            1.0,
            &mut loss,
            &mut space.current,
        )
        .unwrap();
    assert_close("mse", loss.as_slice(), &golden.f64("mse"), TOLERANCE);

    let mut grads = backend.accum(tokenizer.layout().len()).unwrap();
    tokenizer
        .decoder()
        .backward(&backend, &params, &decoder, true, &mut space, &mut grads)
        .unwrap();
    let none = QuantizeWeights { codebook: 0.0, commitment: 0.0 };
    backend
        .vector_quantize_backward(
            z,
            vocab,
            &space.current,
            encoder.output(),
            &ids,
            &params,
            codebook,
            none,
            &mut space.other,
            &mut grads,
        )
        .unwrap();
    std::mem::swap(&mut space.current, &mut space.other);
    tokenizer
        .encoder()
        .backward(&backend, &params, &encoder, false, &mut space, &mut grads)
        .unwrap();
    let recorded: Vec<String> =
        golden.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
    let largest = |values: &[f64]| values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let largest_of_all = recorded.iter().map(|n| largest(&golden.f64(n))).fold(0.0, f64::max);
    let mut compared = 0;
    for tensor in tokenizer.layout().tensors() {
        let got = &grads.as_slice()[tensor.slot.range()];
        if tensor.slot == codebook {
            assert!(got.iter().all(|&g| g == 0.0), "straight through: none for the codebook");
            continue;
        }
        let name = format!("grad.{}", tensor.name);
        let want = golden.f64(&name);
        let allowed = (TOLERANCE * largest(&want)).max(ROUNDING * largest_of_all);
        assert_close(&name, got, &want, allowed);
        compared += 1;
    }
    assert_eq!(compared, recorded.len(), "every recorded gradient");
}

#[test]
fn golden_tokenizer_codec() {
    let golden = Golden::open("tokenizer");
    let tokenizer = Tokenizer::new(&config(&golden)).unwrap();
    let backend = CpuBackend::<f64>::new();
    let mut params = backend.params(tokenizer.layout().len()).unwrap();
    backend.upload_params(&parameters(&golden, &tokenizer), &mut params, 0).unwrap();
    let [_, _, h, w] = golden.shape("image")[..] else { panic!("image: rank") };
    // One image at a time, in memory that keeps nothing for a backward.
    let mut codec = tokenizer.codec(&backend, 1, h, w).unwrap();
    let latents = tokenizer
        .encode_latents(&backend, &params, &mut codec, &golden.f64("image"), (h, w))
        .unwrap();
    assert_close("latent", &latents, &golden.f64("latent"), TOLERANCE);
    let codebook = tokenizer.codebook_normalised(&backend, &params).unwrap();
    let (k, f) = (tokenizer.config().latent_channels, tokenizer.downsample_factor());
    let area = h / f * (w / f);
    let mut codes = vec![0.0; latents.len()];
    for (position, &id) in golden.ids("indices").iter().enumerate() {
        for c in 0..k {
            codes[(position / area * k + c) * area + position % area] =
                codebook.as_slice()[id as usize * k + c];
        }
    }
    let images =
        tokenizer.decode_codes(&backend, &params, &mut codec, &codes, (h / f, w / f)).unwrap();
    let clamped: Vec<f64> =
        golden.f64("reconstruction").iter().map(|v| v.clamp(-1.0, 1.0)).collect();
    assert_close("reconstruction", &images, &clamped, TOLERANCE);
}
