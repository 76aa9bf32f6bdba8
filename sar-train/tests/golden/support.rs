//! Reads golden vectors and compares with them.
#![allow(dead_code)]

use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// One file of golden vectors: tensors, and the settings in its metadata.
pub struct Golden {
    bytes: Vec<u8>,
    pub meta: serde_json::Value,
}

/// The directory of the vectors: `SAR_GOLDEN`, or the repository's copy.
pub fn directory() -> PathBuf {
    // Cargo runs tests in the crate's folder; a relative path is meant from the workspace's.
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    root.join(std::env::var_os("SAR_GOLDEN").unwrap_or_else(|| "golden".into()))
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let path = directory().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let meta = header
            .metadata()
            .as_ref()
            .and_then(|m| m.get("json"))
            .map_or(serde_json::Value::Null, |text| serde_json::from_str(text).unwrap());
        Self { bytes, meta }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    /// Names of all tensors, in the order of the alphabet.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.tensors().names().into_iter().map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensors().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).shape().to_vec()
    }

    /// A float64 tensor, flat.
    pub fn f64(&self, name: &str) -> Vec<f64> {
        let all = self.tensors();
        let view = all.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), safetensors::Dtype::F64, "{name}");
        view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// An int64 tensor, flat, as ids.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let all = self.tensors();
        let view = all.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype(), safetensors::Dtype::I64, "{name}");
        view.data()
            .chunks_exact(8)
            .map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap())
            .collect()
    }

    pub fn usize(&self, key: &str) -> usize {
        // Python writes some whole numbers as 20.0.
        let value = self.number(key);
        assert!(value >= 0.0 && value.fract() == 0.0, "metadata {key}: {value}");
        value as usize
    }

    pub fn number(&self, key: &str) -> f64 {
        self.meta[key].as_f64().unwrap_or_else(|| panic!("metadata {key}"))
    }

    /// The schedule of the metadata: sides or [h, w] pairs, or the text of them all.
    pub fn schedule(&self) -> sar_math::ScaleSchedule {
        if let Some(text) = self.meta["schedule"].as_str() {
            return text.parse().unwrap();
        }
        let scales: Vec<sar_math::Scale> = self.meta["schedule"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| match s.as_array() {
                Some(pair) => sar_math::Scale {
                    height: pair[0].as_u64().unwrap() as usize,
                    width: pair[1].as_u64().unwrap() as usize,
                },
                None => sar_math::Scale::square(s.as_u64().unwrap() as usize),
            })
            .collect();
        sar_math::ScaleSchedule::new(&scales).unwrap()
    }
}

/// Asserts that every element differs by at most `tolerance`.
#[track_caller]
pub fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    assert!(!want.is_empty(), "{what}: empty");
    let (worst, at) = worst(got, want);
    assert!(
        worst <= tolerance,
        "{what}: differs by {worst:e} at {at} ({} against {}), allowed {tolerance:e}",
        got[at],
        want[at]
    );
}

/// As [`assert_close`], relative to the largest element of `want`.
#[track_caller]
pub fn assert_close_to_largest(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_close(what, got, want, tolerance * largest(want));
}

/// The largest element by magnitude; the smallest normal number where all are zero.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()))
}

/// The largest difference and where it is; infinite where one is not a number.
pub fn worst(got: &[f64], want: &[f64]) -> (f64, usize) {
    let mut found = (0.0, 0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let d = (g - w).abs();
        if d.is_nan() || d > found.0 {
            found = (if d.is_nan() { f64::INFINITY } else { d }, i);
        }
    }
    found
}
