//! Sampling runs on the CUDA backend beside the CPU backend's.

use super::{CHANNELS, CLASSES, KINDS, Kind, VOCAB, World, as_var, config, each, emulated, gpu};
use sar_backend_cpu::CpuBackend;
use sar_backend_cuda::{CudaBackend, Device as _, ORDERS, Storage, TestDevice, bf16};
use sar_math::backend::{Backend, Buffers as _, Choice, DrawKeys, Filter, MapDims};
use sar_math::guidance::Guidance;
use sar_math::philox::{Purpose, Stream};
use sar_math::{MAX_SCALES, Real, ScaleSchedule};
use sar_train::config::{Config, Mode};
use sar_train::model::tokenizer::{Tokenizer, TokenizerConfig};
use sar_train::sample::{
    Decoder, Decoding, Edit, Editor, Given, Hole, Mask, Model, Painter, SampleSettings, Sampler,
};

/// Codes on every device there is.
fn sample_on_each<S: Storage>(
    config: &Config,
    choice: Choice,
    labels: &[u32],
    kept: Kept<'_>,
) -> Vec<Vec<u32>> {
    each::<S>().iter().map(|backend| sample(backend, config, choice, labels, kept)).collect()
}

/// The models of FlexVAR and of VAR.
fn both() -> [Config; 2] {
    [config(Mode::Teacher), as_var(config(Mode::Teacher))]
}

/// Codes that a sampler is given, and which of them it is to keep.
type Kept<'a> = Option<[&'a [u32]; 2]>;

fn sample<B: Backend<Host = f32>>(
    backend: &B,
    config: &Config,
    choice: Choice,
    labels: &[u32],
    kept: Kept<'_>,
) -> Vec<u32> {
    let world = World::new(config);
    let schedule: ScaleSchedule = config.generator.schedule;
    let mut params = backend.params(world.weights.len()).unwrap();
    backend.upload_params(&world.weights, &mut params, 0).unwrap();
    let frozen = world.generator.frozen(backend, &world.weights).unwrap();
    let quantizer = &world.quantizer(backend);
    let mut sampler =
        Sampler::new(backend, &world.generator, quantizer, labels.len(), &schedule, true).unwrap();
    let guidance = Guidance::Sampling(1.5).ramp(schedule.len());
    let decoding = Decoding { guidance, choice };
    let put = |codes: &[u32]| {
        let mut ids = backend.ids(codes.len()).unwrap();
        backend.upload_ids(codes, &mut ids, 0).unwrap();
        ids
    };
    let kept = kept.map(|kept| kept.map(put));
    let given = kept.as_ref().map(|[ids, kept]| Given {
        ids,
        scales: [false; MAX_SCALES],
        kept: Some(kept),
        latents: None,
    });
    let given = given.as_ref();
    let mut codes_of = |params: &_, labels: &[u32]| {
        let model = Model { generator: &world.generator, params, quantizer };
        sampler.run(backend, model, labels, &decoding, given).unwrap();
        let mut ids = vec![0; labels.len() * schedule.tokens()];
        backend.download_ids(&sampler.ids, 0, &mut ids).unwrap();
        ids
    };
    // A device that records runs the first, records the second and replays the third.
    let first = codes_of(&params, labels);
    let others: Vec<u32> = labels.iter().map(|label| (label + 1) % CLASSES as u32).collect();
    assert_ne!(codes_of(&params, &others), first, "classes make a difference");
    assert_eq!(codes_of(&params, labels), first, "a replay chooses other codes");
    assert_eq!(codes_of(&frozen, labels), first, "frozen weights choose other codes");
    first
}

/// Weights of one checkpoint after the other, each where the one before lay on the host: what was recorded with
/// weights that are gone is not replayed.
#[test]
fn weights_that_take_the_place_of_others_are_seen_to_be_others() {
    for backend in &each::<f32>() {
        let config = config(Mode::Teacher);
        let (world, labels) = (World::new(&config), [0, 2]);
        let (generator, schedule) = (&world.generator, config.generator.schedule);
        let quantizer = &world.quantizer(backend);
        let mut sampler =
            Sampler::new(backend, generator, quantizer, labels.len(), &schedule, false).unwrap();
        let decoding = Decoding { guidance: None, choice: Choice::Argmax };
        let mut codes_of = |params: &_| {
            let model = Model { generator, params, quantizer };
            sampler.run(backend, model, &labels, &decoding, None).unwrap();
            let mut ids = vec![0; labels.len() * schedule.tokens()];
            backend.download_ids(&sampler.ids, 0, &mut ids).unwrap();
            ids
        };
        let uploaded = |seed: u64| {
            let weights = generator.initial(seed);
            let mut params = backend.params(weights.len()).unwrap();
            backend.upload_params(&weights, &mut params, 0).unwrap();
            params
        };
        let mut place = uploaded(0);
        let mut codes = Vec::new();
        for seed in 1..4 {
            // Allocated while the last ones live, so that they lie elsewhere on the device.
            place = uploaded(seed);
            let first = codes_of(&place);
            assert!((0..2).all(|_| codes_of(&place) == first), "seed {seed}");
            codes.push(first);
        }
        drop(place);
        assert!(codes[0] != codes[1] && codes[1] != codes[2], "seeds make a difference");
        for (seed, codes) in (1..4).zip(codes) {
            assert_eq!(codes_of(&uploaded(seed)), codes, "seed {seed}");
        }
    }
}

/// Where a device records, each scale is recorded once and replayed from then on: whatever is drawn, for whomever.
#[test]
fn each_scale_is_recorded_once() {
    let Some(driver) = gpu() else { return };
    let backend = CudaBackend::<bf16, _>::new(TestDevice::Gpu(driver)).unwrap();
    let recorded = || match backend.device() {
        TestDevice::Gpu(driver) => driver.recorded(),
        _ => unreachable!("it was made of a driver"),
    };
    let (config, filter) = (config(Mode::Teacher), Filter { top_k: 20, top_p: 0.95 });
    let (world, schedule) = (World::new(&config), config.generator.schedule);
    let (generator, quantizer) = (&world.generator, world.quantizer(&backend));
    let frozen = world.generator.frozen(&backend, &world.weights).unwrap();
    let mut sampler = Sampler::new(&backend, generator, &quantizer, 2, &schedule, true).unwrap();
    let model = Model { generator, params: &frozen, quantizer: &quantizer };
    let mut expected = 0;
    for (batch, calls) in [(2, 4), (1, 3)] {
        for call in 0..calls {
            let keys = DrawKeys { seed: call, first_image: 7 * call };
            let guidance = Guidance::Sampling(1.0 + call as f64).ramp(schedule.len());
            let decoding = Decoding { guidance, choice: Choice::Draw(filter, keys) };
            let labels = [call as u32 % 2, 2];
            sampler.run(&backend, model, &labels[..batch], &decoding, None).unwrap();
            // The first call of a size runs, the second records.
            expected += if call == 1 { schedule.len() } else { 0 };
            assert_eq!(recorded(), expected, "call {call} of {batch} images");
        }
    }
    drop((sampler, frozen, quantizer));
}

/// Modulation vectors are made once for all scales, and the head sees guided features alone.
#[test]
fn a_sampling_run_conditions_its_blocks_once() {
    let backend = emulated::<f32>();
    let config = config(Mode::Teacher);
    let (width, depth) = (config.generator.width, config.generator.depth as u64);
    let scales = config.generator.schedule.len() as u64;
    backend.device().begin_profile().unwrap();
    sample(&backend, &config, Choice::Argmax, &[0, 2], None);
    let tallies = backend.device().end_profile().unwrap();
    let calls = |outputs: usize| {
        let name = format!("product [.., {width}]·[{width}, {outputs}]");
        tallies.iter().find(|t| t.name == name).map_or(0, |t| t.calls)
    };
    // `sample` runs four times. One product has the modulation of all blocks and of the head.
    assert_eq!(calls((6 * depth as usize + 2) * width), 4, "modulation");
    assert_eq!(calls(3 * width), 4 * depth * scales, "queries, keys and values");
    let head = format!("product [.., {width}]·[{width}, {VOCAB}]");
    let head = tallies.iter().find(|t| t.name == head).unwrap();
    let tokens = config.generator.schedule.tokens() as u64;
    assert_eq!(
        head.work.flops,
        4 * 2 * tokens * 2 * (width * VOCAB) as u64,
        "two images, no twins"
    );
}

#[test]
fn sampling_chooses_the_cpus_codes() {
    let filter = Filter { top_k: 20, top_p: 0.95 };
    let draw = Choice::Draw(filter, DrawKeys { seed: 9, first_image: 4 });
    for (config, choice) in both().iter().flat_map(|c| [(c, Choice::Argmax), (c, draw)]) {
        let expected = sample(&CpuBackend::<f32>::new(), config, choice, &[1, 0], None);
        assert!(expected.iter().any(|&id| id != expected[0]), "the codes say something");
        for found in sample_on_each::<f32>(config, choice, &[1, 0], None) {
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn sampling_has_the_same_bits_whatever_the_order_of_threads() {
    KINDS[..2].iter().for_each(|device| same_bits_of_samples(*device));
}

#[test]
fn sampling_on_a_gpu_has_the_same_bits_each_time() {
    same_bits_of_samples(KINDS[2]);
}

fn same_bits_of_samples(device: Kind) {
    let filter = Filter { top_k: 20, top_p: 0.95 };
    let draw = Choice::Draw(filter, DrawKeys { seed: 9, first_image: 4 });
    for config in both() {
        let devices = ORDERS.into_iter().filter_map(|(threads, order)| device(threads, order));
        let mut runs = devices.map(|device| {
            let backend = CudaBackend::<bf16, _>::new(device).unwrap();
            sample(&backend, &config, draw, &[1, 0], None)
        });
        let first = runs.next();
        runs.for_each(|codes| assert_eq!(Some(codes), first));
    }
}

#[test]
fn an_image_is_the_same_in_any_batch() {
    let filter = Filter { top_k: 0, top_p: 0.9 };
    let draw = |first_image| Choice::Draw(filter, DrawKeys { seed: 2, first_image });
    for config in &both() {
        let devices = sample_on_each::<bf16>(config, draw(0), &[0, 1, 2], None);
        for image in 0..3 {
            let alone = sample_on_each::<bf16>(config, draw(image as u64), &[image as u32], None);
            for (alone, three) in alone.iter().zip(&devices) {
                let tokens = three.len() / 3;
                assert_eq!(alone[..], three[image * tokens..][..tokens], "image {image}");
            }
        }
    }
}

#[test]
fn kept_codes_stand_and_change_what_is_drawn_after_them() {
    let filter = Filter { top_k: 20, top_p: 0.95 };
    let draw = Choice::Draw(filter, DrawKeys { seed: 9, first_image: 4 });
    let (cpu, config) = (CpuBackend::<f32>::new(), config(Mode::Teacher));
    let free = sample(&cpu, &config, draw, &[1, 0], None);
    let given: Vec<u32> = free.iter().map(|id| (id + 1) % VOCAB as u32).collect();
    // Of each image the second token of the scale 2 and every third token after that scale.
    let tokens = free.len() / 2;
    let kept: Vec<u32> = (0..free.len())
        .map(|i| i % tokens)
        .map(|token| u32::from(token == 2 || (token >= 5 && token % 3 == 0)))
        .collect();
    let expected = sample(&cpu, &config, draw, &[1, 0], Some([&given, &kept]));
    for (i, kept) in kept.iter().enumerate() {
        match (*kept, i % tokens) {
            (1, _) => assert_eq!(expected[i], given[i], "token {i} is kept"),
            (_, 0..5) => assert_eq!(expected[i], free[i], "token {i} saw nothing that is kept"),
            _ => {}
        }
    }
    let changed = (0..free.len()).filter(|&i| kept[i] == 0 && expected[i] != free[i]).count();
    assert!(changed > 0, "what is kept feeds what is drawn");
    for found in sample_on_each::<f32>(&config, draw, &[1, 0], Some([&given, &kept])) {
        assert_eq!(found, expected);
    }
}

/// Pictures of images edited at once and one at a time, and their errors of shape.
fn edit<B: Backend<Host = f32>>(backend: &B) -> Vec<f32> {
    let coder = TokenizerConfig {
        ch: 8,
        ch_mult: vec![1, 1, 2],
        num_res_blocks: 1,
        z_channels: 8,
        latent_channels: CHANNELS,
        vocab: VOCAB,
        groups: 4,
        residual: 0,
    };
    let config = config(Mode::Teacher);
    let (world, schedule) = (World::new(&config), config.generator.schedule);
    let tokenizer = Tokenizer::new(&coder).unwrap();
    let put = |weights: &[f32]| {
        let mut params = backend.params(weights.len()).unwrap();
        backend.upload_params(weights, &mut params, 0).unwrap();
        params
    };
    let (params, coder) = (put(&world.weights), put(&tokenizer.initial(5)));
    let quantizer = tokenizer.quantizer(backend, &coder).unwrap();
    let decoder = Decoder { tokenizer: &tokenizer, params: &coder, quantizer: &quantizer };
    let side = 4 * tokenizer.downsample_factor();
    let image: Vec<f32> = (0..3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
    let masked: Vec<bool> = (0..side * side).map(|i| i % side < side / 2).collect();
    let mask = Mask::new(side, side, masked.clone()).unwrap();
    let hole = |known: &[f32]| Some(Hole { mask: mask.clone(), known_3hw: known.to_vec() });
    let edit = Edit {
        hole: hole(&image),
        image_3hw: image.clone(),
        keep_scales: 1,
        passes: 2,
        decoded: false,
    };
    for wrong in [
        Edit { image_3hw: image[1..].to_vec(), ..edit.clone() },
        Edit { hole: hole(&image[..9]), ..edit.clone() },
        Edit { keep_scales: schedule.len() + 1, ..edit.clone() },
    ] {
        assert!(Editor::new(backend, decoder, &schedule, wrong, 2).is_err());
    }
    let settings = SampleSettings {
        guidance: Guidance::Sampling(1.5),
        filter: Filter { top_k: 0, top_p: 0.9 },
        seed: 3,
        published_greedy: false,
    };
    let paint = |labels: &[u32], first_image, batch| {
        let mut painter =
            Painter::new(backend, &world.generator, decoder, &schedule, batch, true).unwrap();
        let mut editor = Editor::new(backend, decoder, &schedule, edit.clone(), batch).unwrap();
        let mut paint =
            |labels: &[u32]| editor.paint(&mut painter, &params, labels, first_image, &settings, 0);
        assert!(paint(&vec![0; batch + 1]).is_err(), "more than there is room for");
        paint(labels).unwrap().images
    };
    let together = paint(&[2, 0], 6, 2);
    let alone = [paint(&[2], 6, 1), paint(&[0], 7, 2)].concat();
    assert!(together == alone, "a picture depends on its batch");
    for (i, value) in together.iter().enumerate() {
        let own = !masked[i % masked.len()];
        assert!(!own || *value == image[i % image.len()], "value {i} is the image's own");
    }
    let (first, second) = together.split_at(image.len());
    assert_ne!(first, second, "two pictures are drawn");
    together
}

#[test]
fn an_edit_is_the_same_in_any_batch_and_keeps_what_is_known() {
    edit(&CpuBackend::<f32>::new());
    for backend in each::<f32>() {
        edit(&backend);
    }
    for backend in each::<bf16>() {
        edit(&backend);
    }
}

/// Where scales add up, what is left of a latent is stored in 16 bits on the way. A code that this turns turns some of
/// those after it; what they all add up to is as near to the latent.
#[test]
fn codes_of_sums_in_bf16_are_as_good_as_those_in_f32() {
    const IMAGES: usize = 16;
    const SIDE: usize = 16;
    /// Of the codes 5.8 % were others, and what they left of the latents was larger by 0.12 %.
    const OTHERS: f64 = 0.1;
    const WORSE: f64 = 5e-3;
    let mut world = World::new(&as_var(config(Mode::Teacher)));
    // Maps that are half of the codes and a little of them convolved, so that what is left shrinks.
    if let Some((tokenizer, weights)) = &mut world.adding {
        let phis = tokenizer.layout().tensors().iter().filter(|t| t.name.contains("resi"));
        phis.for_each(|t| weights[t.slot.range()].iter_mut().for_each(|w| *w *= 0.05));
    }
    let mut stream = Stream::new(7, Purpose::Test, 0);
    let latents: Vec<f32> =
        (0..IMAGES * CHANNELS * SIDE * SIDE).map(|_| stream.normal() as f32).collect();
    let (cpu, schedule) = (CpuBackend::<f32>::new(), ScaleSchedule::published_256());
    let exact = codes(&cpu, &world, &latents, SIDE);
    for backend in &each::<f32>() {
        assert_eq!(codes(backend, &world, &latents, SIDE), exact);
    }
    let quantizer = world.quantizer(&cpu);
    let left = |codes: &[u32]| {
        let mut memory = quantizer.memory(&cpu, IMAGES, &schedule).unwrap();
        let mut ids = cpu.ids(codes.len()).unwrap();
        cpu.upload_ids(codes, &mut ids, 0).unwrap();
        let mut sum = cpu.activation(latents.len()).unwrap();
        let last = schedule.len() - 1;
        quantizer.map(&cpu, &mut memory, IMAGES, &schedule, last, &ids, &mut sum).unwrap();
        let off = sum.as_slice().iter().zip(&latents).map(|(a, b)| f64::from(a - b).powi(2));
        off.sum::<f64>()
    };
    let rest = left(&exact);
    for backend in &each::<bf16>() {
        let stored = codes(backend, &world, &latents, SIDE);
        let others = exact.iter().zip(&stored).filter(|(a, b)| a != b).count();
        assert!((others as f64) < OTHERS * exact.len() as f64, "{others} of {}", exact.len());
        let stored = left(&stored);
        assert!(stored < rest * (1.0 + WORSE), "{others} others, {stored} for {rest}");
    }
}

/// Codes of square latents on the ten published grids.
fn codes<B: Backend>(backend: &B, world: &World, latents: &[f32], side: usize) -> Vec<u32> {
    let (batch, schedule) =
        (latents.len() / (CHANNELS * side * side), ScaleSchedule::published_256());
    let quantizer = world.quantizer(backend);
    let host: Vec<B::Host> = latents.iter().map(|&v| B::Host::of(f64::from(v))).collect();
    let mut held = backend.activation(host.len()).unwrap();
    backend.upload(&host, &mut held, 0).unwrap();
    let mut memory = quantizer.memory(backend, batch, &schedule).unwrap();
    let mut ids = backend.ids(batch * schedule.tokens()).unwrap();
    let dims = MapDims { batch, channels: CHANNELS, height: side, width: side };
    quantizer.codes(backend, &mut memory, dims, &schedule, &held, &mut ids).unwrap();
    let mut found = vec![0; batch * schedule.tokens()];
    backend.download_ids(&ids, 0, &mut found).unwrap();
    found
}
