use super::*;
use crate::model::tokenizer::{IMAGE_CHANNELS, TokenizerConfig};
use sar_backend_cpu::CpuBackend;

/// Relative tolerance of a few roundings in f32.
const ROUNDING: f32 = 1e-6;

/// Relative tolerance of sums in f64 that are added in another order, after AdamW's division has made them larger.
const REORDERED: f64 = 1e-9;

/// Tolerance of roundings in f64 for some twenty decibels.
const DECIBEL: f64 = 1e-9;

fn tiny() -> Tokenizer {
    Tokenizer::new(&TokenizerConfig {
        ch: 4,
        ch_mult: vec![1, 2],
        num_res_blocks: 1,
        z_channels: 6,
        latent_channels: 4,
        vocab: 12,
        groups: 2,
        residual: 0,
    })
    .unwrap()
}

fn options() -> TokenizerTrainConfig {
    TokenizerTrainConfig {
        steps: 60,
        batch: 3,
        lr: 4e-3,
        warmup: 5,
        revive_after: 4,
        ..TokenizerTrainConfig::default()
    }
}

/// Discs of random size and position.
fn images(count: usize, side: usize, step: u64) -> Vec<f32> {
    let mut stream = Stream::new(1, Purpose::Test, step);
    let mut all = Vec::new();
    for _ in 0..count {
        let (y0, x0) = (stream.uniform() * side as f64, stream.uniform() * side as f64);
        let radius = (1.0 + stream.uniform() * 3.0).powi(2);
        for _ in 0..IMAGE_CHANNELS {
            for p in 0..side * side {
                let (y, x) = ((p / side) as f64 - y0, (p % side) as f64 - x0);
                all.push(if y * y + x * x < radius { 1.0 } else { -1.0 });
            }
        }
    }
    all
}

#[test]
fn training_lowers_the_error_and_counts_what_it_used() {
    let (backend, tokenizer) = (CpuBackend::<f32>::new(), tiny());
    let mut trainer = TokenizerTrainer::new(&backend, &tokenizer, &options(), (8, 8)).unwrap();
    let held_out = images(7, 8, 1 << 40);
    let grids = [(4, 4), (2, 2), (1, 3)];
    let mut reconstructor = Reconstructor::new(&backend, &tokenizer, 3, (8, 8)).unwrap();
    let before = reconstructor.evaluate(trainer.params(), &held_out, &grids).unwrap();
    let first = trainer.step(&mut || Ok(images(3, 8, 0))).unwrap();
    assert!(first.revived > 0, "the first batch places the codes it does not use");
    let mut coarse = 0;
    for step in 1..60 {
        let losses = trainer.step(&mut || Ok(images(3, 8, step))).unwrap();
        assert!(!losses.skipped && losses.grad_norm > 0.0);
        coarse += u32::from(losses.grid != (4, 4));
    }
    // 59 draws with probability ½ fall outside 10..50 less than once in a million times.
    assert!((10..50).contains(&coarse), "{coarse}");
    let after = reconstructor.evaluate(trainer.params(), &held_out, &grids).unwrap();
    for (before, after) in before.scales.iter().zip(&after.scales) {
        assert!(after.mse < 0.8 * before.mse, "{before:?} {after:?}");
        assert!(after.codebook_used > 0.0);
        assert_eq!(after.ssim, None, "eight pixels, and a window of eleven");
        assert!((after.psnr - 10.0 * (4.0 / after.mse).log10()).abs() < DECIBEL);
    }
    let of_scales: Vec<f64> = after.scales.iter().map(|s| s.codebook_used).collect();
    assert!(of_scales.iter().all(|&used| used <= after.codebook_used), "{of_scales:?}");
    assert!(after.codebook_used <= of_scales.iter().sum::<f64>().min(1.0));
    assert!(after.perplexity >= 1.0 && after.perplexity <= 12.0);
}

#[test]
fn a_resumed_run_is_the_same_to_the_bit_on_one_thread_and_two() {
    let run = |threads: usize, stop: Option<u64>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (backend, tokenizer) = (CpuBackend::<f32>::new(), tiny());
            let new = || TokenizerTrainer::new(&backend, &tokenizer, &options(), (8, 8)).unwrap();
            let mut trainer = new();
            let mut losses = Vec::new();
            for step in 0..12 {
                if stop == Some(step) {
                    let [first, second] = trainer.moments().unwrap();
                    let (weights, progress) =
                        (trainer.weights().unwrap(), trainer.progress().clone());
                    trainer = new();
                    trainer.restore(&weights, [&first, &second], &progress).unwrap();
                }
                losses.push(trainer.step(&mut || Ok(images(3, 8, step))).unwrap());
            }
            (losses, trainer.weights().unwrap(), trainer.progress().clone())
        })
    };
    let whole = run(1, None);
    assert_eq!(whole, run(2, None));
    assert_eq!(whole, run(2, Some(5)));
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_and_is_counted() {
    let (backend, tokenizer) = (CpuBackend::<f32>::new(), tiny());
    let mut trainer = TokenizerTrainer::new(&backend, &tokenizer, &options(), (8, 8)).unwrap();
    trainer.step(&mut || Ok(images(3, 8, 0))).unwrap();
    let (weights, moments) = (trainer.weights().unwrap(), trainer.moments().unwrap());
    let mut broken = images(3, 8, 1);
    broken[5] = f32::NAN;
    assert!(trainer.step(&mut || Ok(broken.clone())).unwrap().skipped);
    assert_eq!(trainer.weights().unwrap(), weights);
    assert_eq!(trainer.moments().unwrap(), moments);
    assert_eq!((trainer.progress().step, trainer.progress().skipped), (2, 1));
    // A run that goes on continues the count.
    let progress = serde_json::to_string(trainer.progress()).unwrap();
    trainer
        .restore(&weights, [&moments[0], &moments[1]], &serde_json::from_str(&progress).unwrap())
        .unwrap();
    assert!(trainer.step(&mut || Ok(broken.clone())).unwrap().skipped);
    assert_eq!(trainer.progress().skipped_in_a_row, 2);
    assert!(!trainer.step(&mut || Ok(images(3, 8, 2))).unwrap().skipped);
    assert_eq!((trainer.progress().skipped, trainer.progress().skipped_in_a_row), (2, 0));
}

#[test]
fn wrong_sizes_are_errors() {
    let (backend, tokenizer) = (CpuBackend::<f32>::new(), tiny());
    let new = |size| TokenizerTrainer::new(&backend, &tokenizer, &options(), size).err();
    assert!(new((7, 8)).is_some() && new((0, 8)).is_some());
    let mut trainer = TokenizerTrainer::new(&backend, &tokenizer, &options(), (8, 8)).unwrap();
    assert!(trainer.step(&mut || Ok(vec![])).is_err());
    assert!(trainer.step(&mut || Ok(vec![0.0; 7])).is_err());
    assert!(trainer.step(&mut || Ok(images(4, 8, 0))).is_err(), "more than the configured batch");
    let mut reconstructor = Reconstructor::new(&backend, &tokenizer, 3, (8, 8)).unwrap();
    let mut evaluate =
        |images: &[f32], grid| reconstructor.evaluate(trainer.params(), images, &[grid]).is_err();
    assert!(evaluate(&images(1, 8, 0), (5, 4)) && evaluate(&[0.0; 7], (4, 4)));
    assert!(trainer.restore(&[], [&[], &[]], &TokenizerProgress::new(12)).is_err());
}

/// Rows of the codebook.
fn codes(trainer: &TokenizerTrainer<'_, CpuBackend<f32>>, of: &[f32]) -> Vec<Vec<f32>> {
    let slot = trainer.replica.tokenizer.codebook();
    of[slot.range()]
        .chunks(trainer.replica.tokenizer.config().latent_channels)
        .map(<[f32]>::to_vec)
        .collect()
}

/// Codes are moved when nothing has used them for a number of steps, and their moments start anew.
#[test]
fn codes_that_nothing_used_are_put_on_latents_in_their_turn() {
    let (backend, tokenizer) = (CpuBackend::<f32>::new(), tiny());
    let config = TokenizerTrainConfig { coarse_probability: 0.0, ..options() };
    let mut trainer = TokenizerTrainer::new(&backend, &tokenizer, &config, (8, 8)).unwrap();
    // One image without a pattern: most of the twelve codes have nothing to stand for.
    let blank = vec![0.5; 3 * IMAGE_CHANNELS * 64];
    let first = trainer.step(&mut || Ok(blank.clone())).unwrap();
    assert!(first.revived > 0, "as if never used");
    let mut ages = trainer.progress().unused.clone();
    let mut later = 0;
    for step in 1..20 {
        let [before, _] = trainer.moments().unwrap();
        let losses = trainer.step(&mut || Ok(blank.clone())).unwrap();
        let [after, _] = trainer.moments().unwrap();
        let ages_now = trainer.progress().unused.clone();
        // Only after four steps without use.
        let ripe = ages.iter().filter(|&&age| age + 1 >= 4).count();
        assert!(losses.revived <= ripe, "step {step}: {} of {ripe}", losses.revived);
        let put: Vec<usize> =
            (0..12).filter(|&code| ages[code] + 1 >= 4 && ages_now[code] == 0).collect();
        assert!(put.len() >= losses.revived);
        let reset = |code: &&usize| codes(&trainer, &after)[**code].iter().all(|m| *m == 0.0);
        assert!(put.iter().filter(reset).count() >= losses.revived, "step {step}");
        assert_ne!(before, after);
        later += losses.revived;
        ages = ages_now;
    }
    assert!(later > 0, "unused codes come to their turn");
    let never = TokenizerTrainConfig { revive_after: 0, ..config };
    let mut trainer = TokenizerTrainer::new(&backend, &tokenizer, &never, (8, 8)).unwrap();
    assert!((0..8).all(|_| trainer.step(&mut || Ok(blank.clone())).unwrap().revived == 0));
}

/// A step is that of its images, however they are split: its gradients (by the moments), its codes, and the latents that
/// unused codes are put on.
#[test]
fn micro_batches_are_the_batch() {
    let (backend, tokenizer) = (CpuBackend::<f64>::new(), tiny());
    let steps = |batch: usize, accumulate: usize| {
        let config = TokenizerTrainConfig { batch, accumulate, ..options() };
        let mut trainer = TokenizerTrainer::new(&backend, &tokenizer, &config, (8, 8)).unwrap();
        let all: Vec<f64> = images(24, 8, 0).into_iter().map(f64::from).collect();
        let mut batches = all.chunks(batch * IMAGE_CHANNELS * 64).map(<[f64]>::to_vec);
        let mut losses = Vec::new();
        for _ in 0..4 {
            losses.push(trainer.step(&mut || Ok(batches.next().unwrap())).unwrap());
        }
        assert!(batches.next().is_none(), "every image is taken");
        (losses, trainer.weights().unwrap(), trainer.moments().unwrap(), trainer.progress().clone())
    };
    let near = |found: &[f64], expected: &[f64]| {
        let largest = expected.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
        let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart <= REORDERED * largest, "{apart:e} of {largest:e}");
    };
    let whole = steps(6, 1);
    assert!(whole.0[0].revived > 0 && whole.0.iter().any(|losses| losses.grid != (4, 4)));
    for (batch, accumulate) in [(3, 2), (2, 3), (1, 6)] {
        let parts = steps(batch, accumulate);
        near(&parts.1, &whole.1);
        near(&parts.2[0], &whole.2[0]);
        near(&parts.2[1], &whole.2[1]);
        assert_eq!(parts.3, whole.3);
        for (part, whole) in parts.0.iter().zip(&whole.0) {
            assert_eq!((part.grid, part.revived), (whole.grid, whole.revived));
            let of = |l: &TokenizerLosses| [l.reconstruction, l.quantization, l.grad_norm];
            near(&of(part), &of(whole));
        }
    }
}

/// Each loss has its own weight: one for how the codebook follows the latents, one for how the
/// encoder follows its codes.
#[test]
fn the_weights_of_the_losses_reach_what_they_are_for() {
    let (backend, tokenizer) = (CpuBackend::<f32>::new(), tiny());
    let trained = |codebook: f64, commitment: f64| {
        let config = TokenizerTrainConfig {
            codebook,
            commitment,
            revive_after: 0,
            weight_decay: 0.0,
            clip: 0.0,
            ..options()
        };
        let mut trainer = TokenizerTrainer::new(&backend, &tokenizer, &config, (8, 8)).unwrap();
        let before = trainer.weights().unwrap();
        trainer.step(&mut || Ok(images(3, 8, 0))).unwrap();
        let [moment, _] = trainer.moments().unwrap();
        let after = trainer.weights().unwrap();
        let moved = codes(&trainer, &after) != codes(&trainer, &before);
        let encoder = tokenizer.layout().get("quant_conv.weight").unwrap().slot;
        (moved, codes(&trainer, &moment), moment[encoder.range()].to_vec())
    };
    let (moved, codes_once, encoder) = trained(1.0, 0.25);
    assert!(moved);
    let (moved, _, same) = trained(0.0, 0.25);
    assert!(!moved, "a codebook without a loss stays");
    assert_eq!(encoder, same, "and is nothing to the encoder");
    let (_, codes_twice, other) = trained(2.0, 0.5);
    assert_ne!(encoder, other, "the commitment is");
    for (once, twice) in codes_once.iter().flatten().zip(codes_twice.iter().flatten()) {
        assert!((2.0 * once - twice).abs() <= ROUNDING * twice.abs(), "{once} {twice}");
    }
}
