use super::train::ClassifierTraining;
use super::*;
use sar_backend_cpu::CpuBackend;

/// A few f64 rounding errors of numbers of order 1.
const ROUNDING: f64 = 1e-12;

/// Images with a bright upper or left half, plus noise: two classes that a small network learns at
/// once.
fn halves(count: usize) -> (Vec<f32>, Vec<u32>) {
    let mut stream =
        sar_math::philox::Stream::new(1, sar_math::philox::Purpose::Test, count as u64);
    let mut images = Vec::new();
    let labels: Vec<u32> = (0..count).map(|i| (i % 2) as u32).collect();
    for label in &labels {
        for y in 0..12 {
            for x in 0..10 {
                let bright = if *label == 0 { y < 6 } else { x < 5 };
                let noise = 0.4 * stream.uniform_f32() - 0.2;
                images.push(if bright { 0.7 } else { -0.7 } + noise);
            }
        }
    }
    (images, labels)
}

fn training() -> ClassifierTraining {
    ClassifierTraining { steps: 20, batch: 8, shift: 1, ..ClassifierTraining::default() }
}

fn config() -> ClassifierConfig {
    ClassifierConfig::for_images(1, 12, 10, 2)
}

#[test]
fn it_learns_and_gives_features_and_probabilities() {
    let backend = CpuBackend::<f32>::new();
    let (images, labels) = halves(64);
    let mut steps = 0;
    let trained =
        Classifier::train(&backend, config(), &training(), &images, &labels, |_| steps += 1)
            .unwrap();
    assert_eq!(steps, 20);
    let (unseen, unseen_labels) = halves(42);
    let accuracy = trained.classifier.accuracy(&backend, &unseen, &unseen_labels).unwrap();
    assert!(accuracy > 0.9, "{accuracy}");

    let found = trained.classifier.extract(&backend, &unseen).unwrap();
    assert_eq!(found.features.dims(), FEATURES);
    for row in found.probabilities().chunks_exact(2) {
        assert!((row.iter().sum::<f64>() - 1.0).abs() < ROUNDING);
    }
}

#[test]
fn one_seed_gives_one_set_of_bits_on_any_number_of_threads() {
    let (images, labels) = halves(32);
    let weights = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let backend = CpuBackend::<f32>::new();
            let training = ClassifierTraining { steps: 5, ..training() };
            let trained =
                Classifier::train(&backend, config(), &training, &images, &labels, |_| ()).unwrap();
            trained.classifier.weights(&backend).unwrap()
        })
    };
    assert_eq!(weights(1), weights(2));
}

#[test]
fn gradients_are_those_of_central_differences() {
    /// Step of the differences, and the tolerance for their error of order ε² and rounding.
    const STEP: f64 = 1e-5;
    const TOLERANCE: f64 = 1e-6;
    let backend = CpuBackend::<f64>::new();
    let small = ClassifierConfig { stages: vec![4, 6], groups: 2, ..config() };
    let network = Network::new(small).unwrap();
    let (images, _) = halves(3);
    let mut weights = network.initial(7);
    let mut space = Workspace::new(&backend, &network, 3).unwrap();
    // The loss is a fixed weighting of the logits, so that their gradient is that weighting.
    let cotangent = [0.3, -1.0, 0.8, 0.5, -0.2, 0.9];
    let mut params = backend.params(weights.len()).unwrap();
    use sar_math::backend::Buffers as _;
    let mut loss = |weights: &[f64], space: &mut Workspace<CpuBackend<f64>>| {
        backend.upload_params(weights, &mut params, 0).unwrap();
        space.upload(&backend, &images).unwrap();
        network.forward(&backend, 3, &params, space).unwrap();
        let mut logits = [0.0; 6];
        backend.download(&space.logits, 0, &mut logits).unwrap();
        let value = logits.iter().zip(&cotangent).map(|(a, b)| a * b).sum::<f64>();
        backend.upload(&cotangent, &mut space.logits, 0).unwrap();
        let mut grads = backend.accum(weights.len()).unwrap();
        network.backward(&backend, 3, &params, space, &mut grads).unwrap();
        (value, grads)
    };
    let (_, grads) = loss(&weights, &mut space);
    for tensor in network.layout().tensors() {
        let at = tensor.slot.offset + tensor.slot.len / 2;
        let kept = weights[at];
        weights[at] = kept + STEP;
        let up = loss(&weights, &mut space).0;
        weights[at] = kept - STEP;
        let down = loss(&weights, &mut space).0;
        weights[at] = kept;
        let want = (up - down) / (2.0 * STEP);
        let got = grads.as_slice()[at];
        assert!(
            (got - want).abs() < TOLERANCE * (1.0 + want.abs()),
            "{}: {got} {want}",
            tensor.name
        );
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let backend = CpuBackend::<f32>::new();
    let (images, labels) = halves(8);
    let train = |config, images: &[f32], labels: &[u32]| {
        Classifier::train(&backend, config, &training(), images, labels, |_| ()).err().unwrap()
    };
    assert!(matches!(train(config(), &images[1..], &labels), ClassifierError::Data { .. }));
    assert!(matches!(train(config(), &images, &labels[1..]), ClassifierError::Data { .. }));
    assert!(matches!(train(config(), &images, &[2; 8]), ClassifierError::Label { image: 0, .. }));
    let one = ClassifierConfig { classes: 1, ..config() };
    assert!(matches!(train(one, &images, &[0; 8]), ClassifierError::Config { .. }));
    let odd = ClassifierConfig { groups: 5, ..config() };
    assert!(matches!(train(odd, &images, &labels), ClassifierError::Config { found: 16, .. }));
    let nan = vec![f32::NAN; images.len()];
    assert!(matches!(train(config(), &nan, &labels), ClassifierError::Diverged { .. }));
}

#[test]
fn stages_follow_the_size() {
    let stages = |side| ClassifierConfig::for_images(3, side, side, 10).stages;
    assert_eq!(stages(32), [16, 64]);
    assert_eq!(stages(64), [16, 64, 64]);
    assert_eq!(stages(8), [16, 64]);
}
