use super::*;
use crate::model::classifier::ClassifierConfig;
use sar_backend_cpu::CpuBackend;

/// Distance of a set from itself: square roots of f64 rounding errors.
const SELF_DISTANCE: f64 = 1e-6;

const SIDE: usize = 8;

/// Images of two classes, dark and bright on average.
fn images(labels: &[u32], seed: u64, contrast: f32) -> Vec<f32> {
    let mut stream = Stream::new(seed, Purpose::Test, 0);
    let mut out = Vec::new();
    for label in labels {
        let mean = if *label == 0 { -contrast } else { contrast };
        out.extend((0..SIDE * SIDE).map(|_| mean + stream.uniform_f32() - 0.5));
    }
    out
}

fn evaluator(backend: &CpuBackend<f32>) -> Evaluator<'_, CpuBackend<f32>> {
    let config = ClassifierConfig::for_images(1, SIDE, SIDE, 2);
    let classifier = Classifier::new(backend, config, 3).unwrap();
    let labels = balanced_labels(80, 2);
    let validation = images(&labels, 1, 0.5);
    let options = EvalOptions {
        count: 79,
        seeds: vec![5, 6],
        data: String::new(),
        sampler: SamplerSettings::default(),
    };
    let validation = Labelled { images: &validation, labels: &labels };
    Evaluator::new(backend, classifier, validation, &options).unwrap()
}

#[test]
fn labels_come_in_whole_rounds() {
    assert_eq!(balanced_labels(4, 3), [0, 1, 2, 0, 1, 2]);
    assert_eq!(balanced_labels(0, 3), [0u32; 0]);
}

#[test]
fn a_worse_generator_is_further_away_and_the_knobs_are_kept() {
    let backend = CpuBackend::<f32>::new();
    let mut evaluator = evaluator(&backend);
    let labels = balanced_labels(200, 2);
    let training = images(&labels, 9, 0.5);
    let validation_labels = balanced_labels(80, 2);
    let same = images(&validation_labels, 1, 0.5);
    let reconstructions = Labelled { images: &same, labels: &validation_labels };
    let training = Labelled { images: &training, labels: &labels };
    evaluator.measure_floors(reconstructions, training).unwrap();
    let floors = evaluator.floors();
    assert_eq!(floors.len(), 3);
    // The "reconstructions" are the validation images themselves.
    assert!(
        floors[0].frechet < SELF_DISTANCE && floors[0].precision == 1.0 && floors[0].recall == 1.0
    );
    assert_eq!(floors[2].count, 80);
    assert!(floors[1].frechet < floors[2].frechet);

    // Guidance acts as a contrast whose correct value is 0.5.
    let mut generator = |labels: &[u32], seed: u64, guidance: f64| -> Result<Vec<f32>, AnyError> {
        Ok(images(labels, 100 + seed, guidance as f32))
    };
    let report = evaluator.sweep(&mut generator, &[0.5, 0.0]).unwrap();
    let [wrong, right] = &report.points[..] else { panic!("two points") };
    assert_eq!((wrong.guidance, right.guidance), (0.0, 0.5));
    assert!(right.frechet.mean < wrong.frechet.mean);
    assert_eq!(right.frechet.values.len(), 2);
    assert!(right.frechet.spread.is_some());
    assert_eq!(report.settings.count, 80);
    assert!(report.settings.extractor.contains("not Inception"));
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<EvalReport>(&json).unwrap(), report);
}

#[test]
fn a_failing_or_short_generator_is_named() {
    let backend = CpuBackend::<f32>::new();
    let evaluator = evaluator(&backend);
    let mut fails =
        |_: &[u32], _: u64, _: f64| -> Result<Vec<f32>, AnyError> { Err("no memory".into()) };
    let text = evaluator.measure(&mut fails, 1.5).unwrap_err().to_string();
    assert!(text.contains("seed 5 at guidance 1.5: no memory"), "{text}");
    let mut short = |_: &[u32], _: u64, _: f64| -> Result<Vec<f32>, AnyError> { Ok(vec![0.0; 5]) };
    assert!(matches!(evaluator.measure(&mut short, 0.0), Err(EvalError::Shape { found: 5, .. })));
}

#[test]
fn a_data_set_is_all_that_an_evaluator_needs() {
    let mut config = crate::data::DataConfig::glyphs10();
    config.image_side = 8;
    let mut data = crate::data::open(&config).unwrap();
    let few: Vec<usize> = (0..data.train.len()).step_by(41).collect();
    data.train = data.train.subset(&few).unwrap();
    let few: Vec<usize> = (0..data.validation.len()).step_by(13).collect();
    data.validation = data.validation.subset(&few).unwrap();
    let training = crate::model::classifier::ClassifierTraining {
        steps: 30,
        batch: 8,
        ..crate::model::classifier::ClassifierTraining::quick()
    };
    let options = EvalOptions {
        count: 20,
        seeds: vec![1],
        data: String::new(),
        sampler: SamplerSettings::default(),
    };
    let backend = CpuBackend::<f32>::new();
    let dim = |images: &[f32]| Ok(images.iter().map(|v| 0.5 * v).collect());
    let mut steps = 0;
    let count = |_| steps += 1;
    let evaluator = prepare(&backend, &data, &training, &options, dim, count).unwrap();
    assert_eq!(steps, 30);
    let floors = evaluator.floors();
    assert_eq!(floors.iter().map(|f| f.count).collect::<Vec<_>>(), [72, 91, 72]);
    assert!(floors[0].frechet > 0.0);
    assert_eq!(evaluator.settings().reference_count, 72);
    assert!(evaluator.warnings().iter().any(|w| w.contains("One sampling seed")));
    let fails = |_: &[f32]| Err("no codebook".into());
    let error = prepare(&backend, &data, &training, &options, fails, |_| ()).err().unwrap();
    assert!(error.to_string().contains("no codebook"), "{error}");
}
