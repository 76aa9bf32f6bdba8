//! The tokenizer: latent, ids, reconstruction, and every gradient of the straight-through
//! reconstruction error.

use crate::backends::{Transfers, on_backends};
use crate::compare::{Findings, code_margin};
use crate::support::{Golden, largest};
use sar_math::Real;
use sar_math::backend::{Backend, QuantizeWeights};
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
        residual: 0,
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

/// Rows of the codebook, L2-normalised, in f64.
fn codes(golden: &Golden, tokenizer: &Tokenizer) -> Vec<f64> {
    let mut rows = parameters(golden, tokenizer)[tokenizer.codebook().range()].to_vec();
    for row in rows.chunks_mut(tokenizer.config().latent_channels) {
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v /= norm);
    }
    rows
}

/// The recorded ids as maps of codes `[b, k, positions]`.
fn code_maps(ids: &[u32], codes: &[f64], channels: usize, positions: usize) -> Vec<f64> {
    let mut maps = vec![f64::NAN; ids.len() * channels];
    for (at, &id) in ids.iter().enumerate() {
        for c in 0..channels {
            maps[(at / positions * channels + c) * positions + at % positions] =
                codes[id as usize * channels + c];
        }
    }
    maps
}

on_backends!(golden_tokenizer, forward_and_gradients);

fn forward_and_gradients<B: Backend>(backend: &B) -> Findings {
    let golden = Golden::open("tokenizer");
    let mut found = Findings::default();
    let tokenizer = Tokenizer::new(&config(&golden)).unwrap();
    let params = backend.put_params(&parameters(&golden, &tokenizer));
    let [b, _, h, w] = golden.shape("image")[..] else { panic!("image: rank") };
    let f = tokenizer.downsample_factor();

    let mut encoder = tokenizer.encoder().trace(backend, b, h, w, true).unwrap();
    let mut decoder = tokenizer.decoder().trace(backend, b, h / f, w / f, true).unwrap();
    let mut space = tokenizer.gradients(backend, b, h, w).unwrap();
    *encoder.input_mut() = backend.put(&golden.f64("image"));
    let z = tokenizer.encoder().forward(backend, &params, b, h, w, &mut encoder).unwrap();
    let latent = golden.f64("latent");
    found.value("latent", backend.get(encoder.output(), z.len()), latent.clone(), TOLERANCE);

    let (area, k) = (z.height * z.width, z.channels);
    let mut ids = backend.ids(b * area).unwrap();
    let (mut loss, vocab) = (backend.accum(1).unwrap(), tokenizer.config().vocab);
    let codebook = tokenizer.codebook();
    let quantized = decoder.input_mut();
    backend
        .vector_quantize(
            z,
            vocab,
            encoder.output(),
            &params,
            codebook,
            &mut ids,
            quantized,
            &mut loss,
        )
        .unwrap();
    let (got, want) = (backend.get_ids(&ids, b * area), golden.ids("indices"));
    let codes = codes(&golden, &tokenizer);
    found.ids("indices", &got, &want, "latent", |at, got, want| {
        let here = |c: usize| latent[(at / area * k + c) * area + at % area];
        code_margin(&(0..k).map(here).collect::<Vec<_>>(), &codes, got, want)
    });
    let maps = code_maps(&want, &codes, k, area);
    // Where rounding turned an id, what follows is of the recorded one, or it could not be compared.
    let mut quantized_values = backend.get(quantized, z.len());
    for (i, value) in quantized_values.iter_mut().enumerate() {
        let at = i / (k * area) * area + i % area;
        if got[at] != want[at] {
            *value = maps[i];
        }
    }
    if got != want {
        ids = backend.put_ids(&want);
        *quantized = backend.put(&quantized_values);
    }
    found.value("codes", quantized_values, maps, TOLERANCE);

    let image =
        tokenizer.decoder().forward(backend, &params, b, z.height, z.width, &mut decoder).unwrap();
    let reconstruction = backend.get(decoder.output(), image.len());
    found.value("reconstruction", reconstruction, golden.f64("reconstruction"), TOLERANCE);
    let (output, input) = (decoder.output(), encoder.input());
    backend.squared_error(image.len(), output, input, 1.0, &mut loss, &mut space.current).unwrap();
    found.value("mse", backend.get_accum(&loss, 1), golden.f64("mse"), TOLERANCE);

    let mut grads = backend.accum(tokenizer.layout().len()).unwrap();
    tokenizer.decoder().backward(backend, &params, &decoder, true, &mut space, &mut grads).unwrap();
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
        .backward(backend, &params, &encoder, false, &mut space, &mut grads)
        .unwrap();
    let grads = backend.get_accum(&grads, tokenizer.layout().len());
    add_gradients(&mut found, &golden, &tokenizer, &grads);
    found
}

fn add_gradients(found: &mut Findings, golden: &Golden, tokenizer: &Tokenizer, grads: &[f64]) {
    let recorded: Vec<String> =
        golden.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
    let largest_of_all = recorded.iter().map(|n| largest(&golden.f64(n))).fold(0.0, f64::max);
    let mut compared = 0;
    for tensor in tokenizer.layout().tensors() {
        let got = &grads[tensor.slot.range()];
        if tensor.slot == tokenizer.codebook() {
            assert!(got.iter().all(|&g| g == 0.0), "straight through: none for the codebook");
            continue;
        }
        let name = format!("grad.{}", tensor.name);
        let want = golden.f64(&name);
        let allowed = (TOLERANCE * largest(&want)).max(ROUNDING * largest_of_all);
        found.gradient(name, got.to_vec(), want, allowed);
        compared += 1;
    }
    assert_eq!(compared, recorded.len(), "every recorded gradient");
}

on_backends!(golden_tokenizer_codec, codec);

fn codec<B: Backend>(backend: &B) -> Findings {
    let golden = Golden::open("tokenizer");
    let mut found = Findings::default();
    let tokenizer = Tokenizer::new(&config(&golden)).unwrap();
    let params = backend.put_params(&parameters(&golden, &tokenizer));
    let [_, _, h, w] = golden.shape("image")[..] else { panic!("image: rank") };
    let host = |name: &str| golden.f64(name).into_iter().map(B::Host::of).collect::<Vec<_>>();
    let wide = |values: &[B::Host]| values.iter().map(|v| v.wide()).collect::<Vec<_>>();
    // One image at a time, in memory that keeps nothing for a backward.
    let mut memory = tokenizer.encoder_memory(backend, 1, (h, w)).unwrap();
    let images = host("image");
    let b = images.len() / (3 * h * w);
    let f = tokenizer.downsample_factor();
    let latent = tokenizer.encoder().output(b, h, w).len();
    let mut latents = backend.activation(latent).unwrap();
    tokenizer.encode(backend, &params, &mut memory, &images, (h, w), &mut latents).unwrap();
    let mut on_host = vec![B::Host::default(); latent];
    backend.download(&latents, 0, &mut on_host).unwrap();
    found.value("latent", wide(&on_host), golden.f64("latent"), TOLERANCE);
    let quantizer = tokenizer.quantizer(backend, &params).unwrap();
    let k = tokenizer.config().latent_channels;
    let rows = backend.get_accum(quantizer.codebook(), tokenizer.codebook().len);
    let maps = code_maps(&golden.ids("indices"), &rows, k, h / f * (w / f));
    let maps: Vec<B::Host> = maps.into_iter().map(B::Host::of).collect();
    let grid = (h / f, w / f);
    let mut memory = tokenizer.decoder_memory(backend, b, grid).unwrap();
    backend.upload(&maps, memory.codes_mut(), 0).unwrap();
    let mut images = vec![B::Host::default(); images.len()];
    tokenizer.decode(backend, &params, &mut memory, b, grid, &mut images).unwrap();
    let clamped = golden.f64("reconstruction").iter().map(|v| v.clamp(-1.0, 1.0)).collect();
    found.value("reconstruction", wide(&images), clamped, TOLERANCE);
    found
}
