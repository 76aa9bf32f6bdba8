//! The published file formats, on tiny files made by PyTorch.
#![allow(clippy::unwrap_used)]

use sar_train::checkpoint::{RawTensor, read_header, read_pth};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Rounding of a weight to binary16, relative.
const HALF_ROUNDING: f32 = 1.0 / 2048.0;

/// The file in the directory of the vectors; other vectors may come without files of this format,
/// which are then the repository's.
fn golden(name: &str) -> PathBuf {
    // Cargo runs tests in the crate's folder; a relative path is meant from the workspace's.
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let own = root.join("golden/pth");
    let given = std::env::var_os("SAR_GOLDEN").map(|folder| root.join(folder).join("pth"));
    match given {
        Some(folder) if folder.is_dir() => folder.join(name),
        Some(folder) => {
            eprintln!("no {}: reading the repository's files", folder.display());
            own.join(name)
        }
        None => own.join(name),
    }
}

fn read(name: &str) -> BTreeMap<String, RawTensor> {
    read_pth(&golden(name)).unwrap()
}

fn convert(from: &Path, to: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sar")).arg("convert").args([from, to]).output().unwrap()
}

#[test]
fn golden_pth_wrapped_and_bare_files_agree() {
    let bare = read("flexvar_bare.pth");
    assert!(bare.len() > 20 && bare.values().all(|t| !t.values.is_empty()));
    for (name, tensor) in &bare {
        assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>(), "{name}");
    }
    let half = read("flexvar_half.pth");
    assert!(half.keys().eq(bare.keys()));
    for (name, tensor) in &half {
        let full = &bare[name];
        assert_eq!(tensor.shape, full.shape, "{name}");
        for (h, f) in tensor.values.iter().zip(&full.values).filter(|(_, f)| f.is_finite()) {
            // Below the smallest normal half the rounding is absolute.
            assert!((h - f).abs() <= f.abs() * HALF_ROUNDING + 6e-8, "{name}: {h} for {f}");
        }
    }
    assert!(read("trainer_checkpoint.pth").keys().eq(bare.keys()));
    assert_eq!(read("flexvae.pth"), read("flexvae_legacy.pth"));
}

#[test]
fn golden_pth_files_convert() {
    let folder = tempfile::tempdir().unwrap();
    for (name, kind) in [
        ("flexvar_bare.pth", "generator"),
        ("flexvar_half.pth", "generator"),
        ("trainer_checkpoint.pth", "generator"),
        ("flexvae.pth", "tokenizer"),
        ("flexvae_legacy.pth", "tokenizer"),
    ] {
        let to = folder.path().join(name).with_extension("safetensors");
        let output = convert(&golden(name), &to);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{name}: {said}");
        assert_eq!(read_header(&to).unwrap().unwrap().kind.to_string(), kind);

        // Converting what was converted changes nothing.
        let again = folder.path().join("again.safetensors");
        assert!(convert(&to, &again).status.success());
        assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&to).unwrap(), "{name}");
        let refused = convert(&to, &again);
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
        std::fs::remove_file(&again).unwrap();
    }
}

#[test]
fn golden_pth_damage_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pth");
    for name in ["flexvar_bare.pth", "flexvae_legacy.pth"] {
        let whole = std::fs::read(golden(name)).unwrap();
        for length in [0, 1, 2, 30, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let text = read_pth(&path).unwrap_err().to_string();
            assert!(text.contains("damaged.pth"), "{name} cut to {length}: {text}");
        }
        // No damage makes it panic; where it is not noticed, only values may differ.
        for at in (0..whole.len().min(40_000)).step_by(97) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            std::fs::write(&path, &bytes).unwrap();
            if let Err(e) = read_pth(&path) {
                assert!(e.to_string().contains("damaged.pth"), "{e}");
            }
        }
    }
}
