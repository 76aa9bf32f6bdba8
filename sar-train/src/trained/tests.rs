use super::*;
use crate::checkpoint::save_weights;
use crate::config::GeneratorSection;
use crate::model::generator::{Generator, GeneratorShape};
use crate::model::tokenizer::{Tokenizer, TokenizerConfig};
use sar_backend_cpu::CpuBackend;
use std::fs;

fn section() -> GeneratorSection {
    let mut section = GeneratorSection { depth: 1, width: 8, heads: 2, ..Default::default() };
    (section.vocab, section.channels, section.classes) = (6, 4, 2);
    section
}

fn tokenizer() -> Tokenizer {
    let config = TokenizerConfig { vocab: 6, latent_channels: 4, ..Default::default() };
    Tokenizer::new(&config).unwrap()
}

fn weights(section: &GeneratorSection) -> Vec<f32> {
    Generator::new(&GeneratorShape::from(section)).unwrap().initial(3)
}

#[test]
fn what_is_kept_is_what_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generator.safetensors");
    let (section, names) = (section(), vec!["a".to_owned(), "b".to_owned()]);
    let kept = TrainedGenerator::keep(&path, &section, weights(&section), 7, Some(names)).unwrap();
    let opened = TrainedGenerator::open(&path, false).unwrap();
    assert_eq!((&opened.weights, &opened.section), (&kept.weights, &section));
    assert_eq!((opened.step, &opened.classes, opened.ema), (7, &kept.classes, false));
    assert!(kept.classes.is_some());

    let backend = CpuBackend::<f32>::new();
    let path = folder.path().join("tokenizer.safetensors");
    let tokenizer = tokenizer();
    let weights = tokenizer.initial(1);
    let made = TrainedTokenizer::new(&backend, tokenizer, weights, 5).unwrap();
    made.save(&path).unwrap();
    let again = TrainedTokenizer::open(&backend, &path).unwrap();
    assert_eq!((&again.weights, again.step, again.side), (&made.weights, 5, None));
    again.fits(&section).unwrap();
    let error = again.fits(&GeneratorSection { vocab: 7, ..section }).unwrap_err().to_string();
    assert!(error.contains("6 codes of 4 channels") && error.contains("7 of 4"), "{error}");
}

#[test]
fn weights_that_are_not_all_there_are_refused() {
    let backend = CpuBackend::<f32>::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generator.safetensors");
    let (section, all) = (section(), weights(&section()));
    let short = all[1..].to_vec();
    assert!(TrainedGenerator::keep(&path, &section, short, 1, None).is_err());
    assert!(!path.exists());
    let mut kept = TrainedGenerator::keep(&path, &section, all, 1, None).unwrap();
    kept.params(&backend).unwrap();
    kept.origin().unwrap();
    kept.hand_over(&backend).unwrap();
    for error in [kept.params(&backend).err(), kept.origin().err()] {
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("weights"), "{error}");
    }
    let tokenizer = tokenizer();
    let short = tokenizer.initial(1)[1..].to_vec();
    let error = TrainedTokenizer::new(&backend, tokenizer, short, 1).err().unwrap();
    assert!(matches!(error, TrainedError::Checkpoint(CheckpointError::Length { .. })), "{error}");
}

/// Headers are not trusted: impossibly large sizes are refused before anything is laid out by them.
#[test]
fn a_shape_that_nothing_could_hold_is_named_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generator.safetensors");
    let generator = Generator::new(&GeneratorShape::from(&section())).unwrap();
    for (depth, width) in [(1_000_000_000_000, 8), (usize::MAX, 0), (1, 1 << 40)] {
        let told = GeneratorSection { depth, width, ..section() };
        let header = Header::new(Kind::Generator, 1, &told).unwrap();
        save_weights(&path, &header, generator.layout(), &weights(&section())).unwrap();
        let error = TrainedGenerator::open(&path, false).unwrap_err().to_string();
        assert!(error.contains("generator.safetensors: generator."), "{error}");
    }
}

/// Other files of a run may be damaged or of another version: the weights are as good as before.
#[test]
fn records_of_a_run_do_not_stand_in_the_way_of_its_weights() {
    let backend = CpuBackend::<f32>::new();
    let run = tempfile::tempdir().unwrap();
    let step = run.path().join("checkpoints/step-1");
    fs::create_dir_all(&step).unwrap();
    fs::write(run.path().join("config.toml"), "[train]\nof_tomorrow = 1\n").unwrap();
    fs::write(run.path().join("classes.json"), "[\"a\", ").unwrap();
    let path = step.join("model.safetensors");
    let names = vec!["x".to_owned(), "y".to_owned()];
    TrainedGenerator::keep(&path, &section(), weights(&section()), 1, Some(names.clone())).unwrap();
    let opened = TrainedGenerator::open(&path, false).unwrap();
    assert_eq!(opened.classes, Some(names));
    assert!(opened.warnings.iter().any(|w| w.contains("classes.json")), "{:?}", opened.warnings);
    assert!(opened.run_config().is_err());

    let tokenizer = tokenizer();
    let weights = tokenizer.initial(1);
    TrainedTokenizer::new(&backend, tokenizer, weights, 1).unwrap().save(&path).unwrap();
    fs::copy(&path, run.path().join("tokenizer.safetensors")).unwrap();
    let kept = TrainedTokenizer::open(&backend, run.path()).unwrap();
    assert_eq!(kept.file, Some(run.path().join("tokenizer.safetensors")));
    let opened = TrainedTokenizer::open(&backend, &path).unwrap();
    assert!(opened.warnings.iter().any(|w| w.contains("of_tomorrow")), "{:?}", opened.warnings);
}
