//! Reads the published `.pth` files: PyTorch's ZIP format and the older one, with bare state
//! dictionaries or the wrapped forms `{'model': …}` and `{'trainer': {'var_wo_ddp': …}}`.

mod pickle;

use super::CheckpointError;
use pickle::{Id, Node, Pickle};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _};
use std::path::Path;

/// Longest pickle of tensor descriptions that is read; the published ones have a few hundred kB.
const LONGEST_PICKLE: u64 = 256 << 20;

/// Paths to the state dictionary in the known kinds of files, outermost key first.
const WRAPPERS: [&[&str]; 5] =
    [&["trainer", "var_wo_ddp"], &["var_wo_ddp"], &["model"], &["state_dict"], &[]];

/// A tensor of f32 values.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
}

/// Reads every floating-point tensor of a PyTorch file's state dictionary. Nothing in the file is
/// executed.
///
/// # Errors
/// [`CheckpointError::Read`]; [`CheckpointError::State`] if the file is damaged or has no state
/// dictionary in one of the known places.
pub fn read_pth(path: &Path) -> Result<BTreeMap<String, RawTensor>, CheckpointError> {
    let bad = |reason: String| CheckpointError::State { path: path.to_owned(), reason };
    let mut head = [0; 2];
    let mut file = File::open(path).map_err(|e| CheckpointError::read(path, e))?;
    file.read_exact(&mut head)
        .map_err(|_| bad("not a usable PyTorch file: it has hardly a byte".to_owned()))?;
    let mut start = Vec::new();
    let _ = file.rewind().and_then(|()| (&mut file).take(64).read_to_end(&mut start));
    // A length in 8 bytes, then JSON.
    let safetensors = (start.get(8) == Some(&b'{')).then_some("a safetensors file");
    if let Some(other) = otherwise(&start).or(safetensors) {
        return Err(bad(format!("not a usable PyTorch file, but {other}")));
    }
    let tensors = if &head == b"PK" { read_zip(path) } else { read_legacy(path) };
    tensors.map(bare).map_err(|reason| bad(format!("not a usable PyTorch file: {reason}")))
}

/// Recognises by its beginning what a failed download has left in place of weights.
pub(super) fn otherwise(head: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(head.get(..64).unwrap_or(head)).trim_start().to_lowercase();
    let is = |begins: &str| text.starts_with(begins);
    if is("version https://git-lfs") {
        return Some(
            "the pointer of Git LFS to one: fetch the file itself, as `git lfs pull` does",
        );
    }
    (is("<!doctype html") || is("<html"))
        .then_some("a web page: the link leads to the page about the file, not to the file")
}

/// Removes the prefix that data-parallel training puts before all names.
fn bare(tensors: BTreeMap<String, RawTensor>) -> BTreeMap<String, RawTensor> {
    const PREFIX: &str = "module.";
    match tensors.keys().all(|name| name.starts_with(PREFIX)) {
        true => tensors.into_iter().map(|(name, t)| (name[PREFIX.len()..].to_owned(), t)).collect(),
        false => tensors,
    }
}

fn read_zip(path: &Path) -> Result<BTreeMap<String, RawTensor>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let file = File::open(path).map_err(|e| text(&e))?;
    let length = file.metadata().map_err(|e| text(&e))?.len();
    // The directory of the archive is at its end.
    let mut archive = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|e| format!("{e}; it is cut off or damaged, fetch it again"))?;
    let names: Vec<String> =
        archive.file_names().filter_map(|n| Some(n.ok()?.into_owned())).collect();
    let main = names.iter().find(|n| n.ends_with("/data.pkl")).ok_or("it holds no data.pkl")?;
    let prefix = main.strip_suffix("data.pkl").unwrap_or("").to_owned();
    let mut read = |name: &str, limit: u64| -> Result<Vec<u8>, String> {
        let mut entry = archive.by_name(name).map_err(|e| format!("{name}: {e}"))?;
        if entry.size() > limit.min(length) {
            return Err(format!("{name} has {} bytes, expected at most {limit}", entry.size()));
        }
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
        Ok(bytes)
    };
    let (pickle, _) = Pickle::read(&read(main, LONGEST_PICKLE)?)?;
    tensors(&pickle, &mut |storage| {
        read(&format!("{prefix}data/{}", storage.key), storage.bytes()?)
    })
}

/// Reads the format used before PyTorch 1.6: three small pickles, the object, the storages' keys,
/// then the length and elements of each storage.
fn read_legacy(path: &Path) -> Result<BTreeMap<String, RawTensor>, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let mut at = 0;
    let next = |at: &mut usize| -> Result<Pickle, String> {
        let (pickle, used) = Pickle::read(bytes.get(*at..).unwrap_or(&[]))?;
        *at += used;
        Ok(pickle)
    };
    for _ in 0..3 {
        next(&mut at)?;
    }
    let object = next(&mut at)?;
    let keys = next(&mut at)?;
    let widths = storages(&object);
    let mut places = BTreeMap::new();
    for &key in keys.items(keys.root()).ok_or("it lists no storages")? {
        let key = keys.text(key).ok_or("a storage has no name")?;
        let count = bytes.get(at..).and_then(|b| b.first_chunk::<8>()).ok_or("it is truncated")?;
        let count = usize::try_from(u64::from_le_bytes(*count)).map_err(|e| e.to_string())?;
        at += 8;
        let width = widths.get(key).ok_or_else(|| format!("storage {key} is not described"))?;
        let end = count.checked_mul(*width).and_then(|n| n.checked_add(at));
        let end = end.filter(|&e| e <= bytes.len()).ok_or("it is truncated")?;
        places.insert(key.to_owned(), at..end);
        at = end;
    }
    tensors(&object, &mut |storage| {
        let place = places.get(&storage.key).cloned();
        let part = place.and_then(|place| bytes.get(place));
        part.map(<[u8]>::to_vec).ok_or_else(|| format!("storage {} is missing", storage.key))
    })
}

/// Returns the number of bytes per element of every storage that a tensor refers to.
fn storages(pickle: &Pickle) -> BTreeMap<String, usize> {
    pickle
        .all()
        .filter_map(|node| match node {
            Node::Persistent(id) => Storage::read(pickle, *id).ok(),
            _ => None,
        })
        .map(|s| (s.key, s.width))
        .collect()
}

/// Contents of a persistent id: `('storage', class, key, location, elements, …)`.
struct Storage {
    key: String,
    class: String,
    width: usize,
    elements: usize,
}

impl Storage {
    fn read(pickle: &Pickle, id: Id) -> Result<Self, String> {
        let items = pickle.items(id).unwrap_or(&[]);
        let &[kind, class, key, _, elements, ..] = items else {
            return Err("a storage is not described".into());
        };
        let (Some("storage"), Node::Global(class), Some(key), Some(elements)) =
            (pickle.text(kind), pickle.node(class), pickle.text(key), pickle.count(elements))
        else {
            return Err("a storage is not described".into());
        };
        let class = class.rsplit(' ').next().unwrap_or("").to_owned();
        let width = match class.as_str() {
            "DoubleStorage" | "LongStorage" => 8,
            "FloatStorage" | "IntStorage" => 4,
            "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
            "ByteStorage" | "CharStorage" | "BoolStorage" => 1,
            other => return Err(format!("storage class {other} is not supported")),
        };
        Ok(Self { key: key.to_owned(), class, width, elements })
    }

    fn bytes(&self) -> Result<u64, String> {
        let bytes = self.elements.checked_mul(self.width).ok_or("a storage of impossible size")?;
        Ok(bytes as u64)
    }

    /// Returns the elements as f32, or `None` for a storage of integers.
    fn decode(&self, bytes: &[u8]) -> Option<Vec<f32>> {
        Some(match self.class.as_str() {
            "FloatStorage" => values(bytes, f32::from_le_bytes),
            "HalfStorage" => values(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
            "BFloat16Storage" => values(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
            "DoubleStorage" => values(bytes, |b| f64::from_le_bytes(b) as f32),
            _ => return None,
        })
    }
}

fn values<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|b| value(*b)).collect()
}

/// Returns the tensors of the state dictionary; `fetch` reads the bytes of a storage.
fn tensors(
    pickle: &Pickle,
    fetch: &mut dyn FnMut(&Storage) -> Result<Vec<u8>, String>,
) -> Result<BTreeMap<String, RawTensor>, String> {
    let found = WRAPPERS.iter().find_map(|path| {
        let dict = path.iter().try_fold(pickle.root(), |at, key| pickle.get(at, key))?;
        let entries = pickle.entries(dict)?;
        let any = entries.iter().any(|(_, v)| matches!(pickle.node(*v), Node::Tensor(_)));
        any.then_some(entries)
    });
    let entries = found.ok_or(
        "no tensors at the top, nor under 'model', 'state_dict' or 'trainer' / 'var_wo_ddp'",
    )?;
    let mut all = BTreeMap::new();
    for (name, value) in entries {
        let Node::Tensor(arguments) = pickle.node(value) else { continue };
        let read = tensor(pickle, *arguments, fetch).map_err(|e| format!("`{name}`: {e}"))?;
        if let Some(tensor) = read {
            all.insert(name.to_owned(), tensor);
        }
    }
    Ok(all)
}

/// Reads a tensor from `(storage, offset, shape, strides, …)`; `None` if it has integers.
fn tensor(
    pickle: &Pickle,
    arguments: Id,
    fetch: &mut dyn FnMut(&Storage) -> Result<Vec<u8>, String>,
) -> Result<Option<RawTensor>, String> {
    let &[storage, offset, shape, strides, ..] = pickle.items(arguments).unwrap_or(&[]) else {
        return Err("it is not described".into());
    };
    let Node::Persistent(storage) = pickle.node(storage) else {
        return Err("it has no storage".into());
    };
    let storage = Storage::read(pickle, *storage)?;
    let list = |id| -> Option<Vec<usize>> {
        pickle.items(id)?.iter().map(|&item| pickle.count(item)).collect()
    };
    let (Some(offset), Some(shape), Some(strides)) =
        (pickle.count(offset), list(shape), list(strides))
    else {
        return Err("its shape is not described".into());
    };
    let length = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let length =
        length.filter(|&n| n <= storage.elements).ok_or("it is larger than its storage")?;
    let Some(data) = storage.decode(&fetch(&storage)?) else { return Ok(None) };
    if shape.len() != strides.len() {
        return Err("its shape and strides differ in number".into());
    }
    let mut gathered = Vec::with_capacity(length);
    for i in 0..length {
        // Computes the position in the storage of the i-th element in row-major order.
        let (mut rest, mut at) = (i, Some(offset));
        for (&side, &stride) in shape.iter().zip(&strides).rev() {
            at = at.and_then(|at| at.checked_add((rest % side).checked_mul(stride)?));
            rest /= side;
        }
        let value = at.and_then(|at| data.get(at)).ok_or("it reaches beyond its storage")?;
        gathered.push(*value);
    }
    Ok(Some(RawTensor { shape, values: gathered }))
}
