use super::*;
use crate::params::Layout;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The tensors of a generator that determine its shape.
fn layout(depth: usize, width: usize, vocab: usize) -> Layout {
    let mut layout = Layout::new();
    layout.push("pos_start", &[1, 1, width]);
    layout.push("word_embed.weight", &[width, 6]);
    layout.push("class_emb.weight", &[11, width]);
    for i in 0..depth {
        layout.push(format!("blocks.{i}.attn.scale_mul_1H11"), &[1, 2, 1, 1]);
        layout.push(format!("blocks.{i}.attn.proj.weight"), &[width, width]);
    }
    layout.push("head.weight", &[vocab, width]);
    layout
}

/// Values of every sign, magnitude and class of f32, including subnormals; zero between tensors.
fn values(layout: &Layout, seed: u32) -> Vec<f32> {
    let mut flat = vec![0.0; layout.len()];
    for i in layout.tensors().iter().flat_map(|t| t.slot.range()) {
        let value = f32::from_bits((i as u32 ^ seed).wrapping_mul(2_654_435_761));
        flat[i] = if value.is_finite() { value } else { 1.0 };
    }
    flat
}

fn bits(flat: &[f32]) -> Vec<u32> {
    flat.iter().map(|v| v.to_bits()).collect()
}

fn header(step: u64) -> Header {
    Header::new(Kind::Generator, step, &serde_json::json!({ "depth": 2 })).unwrap()
}

fn saved(folder: &Path, depth: usize, vocab: usize) -> std::path::PathBuf {
    let path = folder.join("model.safetensors");
    let layout = layout(depth, 8, vocab);
    save_weights(&path, &header(7), &layout, &values(&layout, 1)).unwrap();
    path
}

fn error(path: &Path, layout: &Layout) -> String {
    load_weights(path, Kind::Generator, layout).unwrap_err().to_string()
}

#[test]
fn weights_come_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path(), 2, 24);
    let layout = layout(2, 8, 24);
    let back = load_weights(&path, Kind::Generator, &layout).unwrap();
    assert_eq!(bits(&back.flat), bits(&values(&layout, 1)));
    assert_eq!(back.header, Some(header(7)));
    assert_eq!(read_header(&path).unwrap(), Some(header(7)));
    assert_eq!(read_shapes(&path).unwrap()["pos_start"], [1, 1, 8]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside the file");
    // Other readers of the format can read the file.
    let bytes = fs::read(&path).unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 8);
}

/// More memory than any machine that runs the tests has, but not a single block on disk.
const SPARSE: u64 = 1 << 42;

#[test]
fn a_header_is_read_without_its_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let about = serde_json::to_string(&header(7)).unwrap();
    let json = serde_json::to_string(&serde_json::json!({
        "__metadata__": { "sar": about },
        "head.weight": { "dtype": "F32", "shape": [SPARSE / 4], "data_offsets": [0, SPARSE] },
    }));
    let json = json.unwrap();
    fs::write(&path, [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat()).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    // ext4 files end at 16 TiB, those of other file systems earlier; then this cannot be tested.
    if file.set_len(8 + json.len() as u64 + SPARSE).is_err() {
        eprintln!("SKIPPED: this file system has no files of {SPARSE} bytes");
        return;
    }
    assert_eq!(read_header(&path).unwrap(), Some(header(7)));
    assert_eq!(read_shapes(&path).unwrap()["head.weight"], [SPARSE as usize / 4]);
    let text = error(&path, &layout(2, 8, 24));
    assert!(text.contains("head.weight"), "{text}");
}

#[test]
fn other_models_are_named_by_their_likely_cause() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path(), 6, 24);
    let text = error(&path, &layout(4, 8, 24));
    assert!(text.contains("this file is depth 6, the configuration says depth 4"), "{text}");
    let text = error(&path, &layout(6, 8, 512));
    assert!(text.contains("this file is vocabulary 24"), "{text}");
    assert!(text.contains("`head.weight` has shape [24, 8], expected [512, 8]"), "{text}");
    let text = error(&path, &layout(6, 16, 24));
    assert!(text.contains("width 8") && text.contains("width 16"), "{text}");
    let wrong = load_weights(&path, Kind::Tokenizer, &layout(6, 8, 24)).unwrap_err();
    assert!(wrong.to_string().contains("holds a generator, expected a tokenizer"), "{wrong}");
}

#[test]
fn single_tensors_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path(), 2, 24);
    let mut more = layout(2, 8, 24);
    more.push("head.bias", &[24]);
    let text = error(&path, &more);
    assert!(text.contains("lacks 1 tensors") && text.contains("`head.bias`"), "{text}");
    save_weights(&path, &header(1), &more, &values(&more, 2)).unwrap();
    let text = error(&path, &layout(2, 8, 24));
    assert!(text.contains("the model lacks") && text.contains("`head.bias`"), "{text}");

    // Published buffers are ignored.
    let mut buffers = layout(2, 8, 24);
    buffers.push("blocks.0.attn.zero_k_bias", &[8]);
    buffers.push("attn_bias_for_masking", &[1, 1, 4, 4]);
    save_weights(&path, &header(1), &buffers, &values(&buffers, 3)).unwrap();
    let plain = layout(2, 8, 24);
    let back = load_weights(&path, Kind::Generator, &plain).unwrap();
    assert_eq!(bits(&back.flat), bits(&values(&plain, 3)));

    let mut diverged = values(&plain, 4);
    let slot = plain.get("blocks.1.attn.proj.weight").unwrap().slot;
    diverged[slot.offset + 3] = f32::NAN;
    save_weights(&path, &header(1), &plain, &diverged).unwrap();
    let text = error(&path, &plain);
    assert!(text.contains("`blocks.1.attn.proj.weight` holds 1 values"), "{text}");
}

#[test]
fn unusable_files_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path(), 2, 24);
    let layout = layout(2, 8, 24);
    let whole = fs::read(&path).unwrap();
    // Every truncation is an error, reported as a truncation once the header length can be read.
    for length in (0..whole.len()).step_by(41).chain([1, 7, 8, 9, whole.len() - 1]) {
        fs::write(&path, &whole[..length]).unwrap();
        let text = error(&path, &layout);
        let expected = if length < 9 { "is not a safetensors file" } else { "is truncated" };
        assert!(text.contains(expected), "{length}: {text}");
    }
    fs::write(&path, [&whole[..], &[0; 3]].concat()).unwrap();
    assert!(error(&path, &layout).contains("is too long"), "{}", error(&path, &layout));
    for (content, expected) in [
        (&b"PK\x03\x04 and more than eight bytes"[..], "sar convert"),
        (b"not a model at all, just text", "does not begin with a safetensors header"),
    ] {
        fs::write(&path, content).unwrap();
        let text = error(&path, &layout);
        assert!(text.contains(expected), "{text}");
    }
    assert!(error(&folder.path().join("absent"), &layout).contains("cannot read"));

    let newer = Header { format: FORMAT + 1, program: "9.9.9".into(), ..header(1) };
    save_weights(&path, &newer, &layout, &values(&layout, 1)).unwrap();
    let text = error(&path, &layout);
    assert!(text.contains("has format 2") && text.contains("sar 9.9.9: update sar"), "{text}");
    let short = save_weights(&path, &header(1), &layout, &[0.0]).unwrap_err();
    assert!(short.to_string().contains("weights: 1 values, expected"), "{short}");
}

#[test]
fn halves_are_exact() {
    for (half, value) in [
        (0x3c00, 1.0),
        (0xc000, -2.0),
        (0x7bff, 65504.0),
        (0x0001, 2f32.powi(-24)),
        (0x3555, 0.333_251_95),
        (0x7c00, f32::INFINITY),
    ] {
        assert_eq!(half::f16::from_bits(half).to_f32(), value);
    }
    assert!(half::f16::from_bits(0x7e00).to_f32().is_nan());
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    cursor: u64,
    best: f64,
}

/// Saves a checkpoint whose content is derived from its step.
fn save(to: &Checkpoints, step: u64) -> Result<Saved, CheckpointError> {
    let layout = layout(2, 8, 24);
    let flat = |k: u32| values(&layout, step as u32 * 8 + k);
    to.save(&Snapshot {
        header: &header(step),
        layout: &layout,
        weights: &flat(0),
        ema: Some(&flat(1)),
        first_moment: &flat(2),
        second_moment: &flat(3),
        state: &State { cursor: step * 64, best: 1.0 / step as f64 },
    })
}

/// Asserts that a checkpoint is the one that [`save`] made for its step.
fn assert_whole(found: &Found) {
    let layout = layout(2, 8, 24);
    let back: Resumed<State> = Checkpoints::load(found, Kind::Generator, &layout).unwrap();
    let flat = |k: u32| bits(&values(&layout, found.step as u32 * 8 + k));
    assert_eq!(back.header.step, found.step);
    assert_eq!(bits(&back.weights), flat(0));
    assert_eq!(bits(&back.ema.unwrap()), flat(1));
    assert_eq!(bits(&back.first_moment), flat(2));
    assert_eq!(bits(&back.second_moment), flat(3));
    assert_eq!(back.state, State { cursor: found.step * 64, best: 1.0 / found.step as f64 });
}

#[test]
fn the_last_checkpoints_are_kept_and_found() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("checkpoints");
    let checkpoints = Checkpoints::open(&folder, 2).unwrap();
    assert_eq!(checkpoints.latest().unwrap(), None);
    for step in [9, 10, 100, 100] {
        save(&checkpoints, step).unwrap();
    }
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["step-10", "step-100"]);
    let found = checkpoints.latest().unwrap().unwrap();
    assert_eq!((found.step, found.warnings.len()), (100, 0));
    assert_whole(&found);

    fs::write(run.path().join("config.toml"), "").unwrap();
    let file = found.folder.join("model.safetensors");
    for path in [run.path(), &found.folder, &file] {
        let located = locate(path, false).unwrap();
        assert_eq!(located.file, file);
        assert_eq!(located.run.as_deref(), Some(run.path()), "{}", path.display());
    }
    let average = locate(run.path(), true).unwrap();
    assert!(average.file.ends_with("ema.safetensors") && average.ema);
    // The name of a file decides what it is, and no other file is used instead.
    assert!(locate(&average.file, false).unwrap().ema && !locate(&file, false).unwrap().ema);
    assert_eq!(locate(&average.file, true).unwrap(), locate(&average.file, false).unwrap());
    let text = locate(&file, true).unwrap_err().to_string();
    assert!(text.contains("is a file") && text.contains("name its folder"), "{text}");
    let text = locate(&folder.join("absent"), false).unwrap_err().to_string();
    assert!(text.contains("does not exist"), "{text}");
}

#[test]
fn a_download_that_went_wrong_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("var_d16.pth");
    for (content, word) in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS"),
        ("\n  <!DOCTYPE html>\n<html>", "a web page"),
        ("<HTML><head>", "a web page"),
        ("versions of something", "not a usable PyTorch file: "),
        ("PK\u{3}\u{4}and no more of it", "it is cut off or damaged, fetch it again"),
    ] {
        fs::write(&path, content).unwrap();
        let text = read_pth(&path).unwrap_err().to_string();
        assert!(text.contains("var_d16.pth") && text.contains(word), "{text}");
    }
}

/// Folders of other origin next to them.
#[test]
fn names_that_are_not_written_here_are_not_taken_for_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path(), 9).unwrap();
    save(&checkpoints, 7).unwrap();
    for name in ["step-0012", "step-+30", "step-99.old"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let found = checkpoints.take_up().unwrap().unwrap();
    assert_eq!((found.step, found.warnings), (7, Vec::new()));
    assert!(checkpoints.has(7) && !checkpoints.has(12));
    assert!(folder.path().join("step-0012").exists());
}

#[test]
fn a_tensor_of_the_last_number_there_is_makes_no_depth() {
    let name = format!("blocks.{}.attn.proj.weight", usize::MAX);
    let facts = Facts::of([(name.as_str(), &[8usize, 8][..])]);
    assert_eq!(facts.depth, Some(usize::MAX));
}

#[test]
fn damage_falls_back_to_the_checkpoint_before() {
    let run = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(run.path(), 3).unwrap();
    for step in [1, 2, 3] {
        save(&checkpoints, step).unwrap();
    }
    let file = |step: u64, name: &str| run.path().join(format!("step-{step}")).join(name);
    let mut bytes = fs::read(file(3, "optimizer.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file(3, "optimizer.safetensors"), &bytes).unwrap();
    let found = checkpoints.latest().unwrap().unwrap();
    assert_eq!(found.step, 2);
    assert!(found.warnings[0].contains("optimizer.safetensors is damaged"), "{:?}", found.warnings);
    assert_whole(&found);
    // To use the weights, moments are not looked at; other weights than the newest are not taken in their place.
    let weights = || latest_in(run.path(), Purpose::Weights);
    assert_eq!(weights().unwrap().unwrap().step, 3);
    let model = fs::read(file(3, "model.safetensors")).unwrap();
    fs::write(file(3, "model.safetensors"), b"").unwrap();
    let text = weights().unwrap_err().to_string();
    assert!(text.contains("is damaged") && text.contains("step-2"), "{text}");
    fs::write(file(3, "model.safetensors"), model).unwrap();

    // A record that can still be read, but has another step or key.
    let record = fs::read_to_string(file(2, "state.json")).unwrap();
    for (was, is) in
        [("\"step\": 2", "\"step\": 6"), ("\"run\"", "\"rum\""), ("own_crc32", "own_crc33")]
    {
        assert!(record.contains(was), "{record}");
        fs::write(file(2, "state.json"), record.replacen(was, is, 1)).unwrap();
        let step = checkpoints.latest().unwrap().unwrap().step;
        // Without a checksum there is nothing to compare, as in records of older programs.
        assert_eq!(step, if was == "own_crc32" { 2 } else { 1 }, "{is}");
    }
    fs::write(file(2, "state.json"), record).unwrap();
    assert_eq!(checkpoints.latest().unwrap().unwrap().step, 2);

    fs::write(file(2, "model.safetensors"), b"").unwrap();
    let found = checkpoints.latest().unwrap().unwrap();
    assert_eq!((found.step, found.warnings.len()), (1, 2));
    fs::remove_file(file(1, "state.json")).unwrap();
    let text = checkpoints.latest().unwrap_err().to_string();
    assert!(text.contains("has 3 checkpoints, all damaged"), "{text}");
}

#[test]
fn a_run_that_goes_on_before_damaged_checkpoints_does_not_lose_its_own_to_them() {
    let run = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(run.path(), 1).unwrap();
    let damaged = |step: u64| fs::write(run.path().join(format!("step-{step}/state.json")), b"");
    let all = Checkpoints::open(run.path(), 9).unwrap();
    for again in ["damaged", "damaged-2"] {
        for step in [10, 20, 30] {
            save(&all, step).unwrap();
        }
        for step in [20, 30] {
            damaged(step).unwrap();
        }
        let found = checkpoints.take_up().unwrap().unwrap();
        assert_eq!(found.step, 10);
        let told = format!("step-30 is kept as step-30.{again}");
        assert_eq!(found.warnings.last().unwrap(), &told);
        // This also holds if fewer are kept than there were after it.
        assert_eq!(save(&checkpoints, 18).unwrap().warning, None);
        assert_whole(&checkpoints.latest().unwrap().unwrap());
        let mut names: Vec<_> =
            fs::read_dir(run.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.retain(|name| !name.to_string_lossy().contains("damaged"));
        assert_eq!(names, ["step-18"]);
        fs::remove_dir_all(run.path().join("step-18")).unwrap();
    }
    // What was just saved also stays if the run did not continue from the one before.
    save(&all, 30).unwrap();
    damaged(30).unwrap();
    save(&checkpoints, 18).unwrap();
    assert_eq!(checkpoints.latest().unwrap().unwrap().step, 18);
}

#[test]
fn one_that_cannot_be_removed_stops_nothing() {
    let run = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(run.path(), 1).unwrap();
    save(&checkpoints, 1).unwrap();
    // The place to which it is moved before removal is occupied.
    fs::create_dir_all(run.path().join(".step-1.old.tmp/held")).unwrap();
    for step in [2, 3] {
        let saved = save(&checkpoints, step).unwrap();
        assert!(saved.warning.unwrap().contains("earlier checkpoints cannot be removed"));
        assert_eq!(checkpoints.latest().unwrap().unwrap().step, step);
    }
    assert!(!run.path().join("step-2").exists(), "others are removed all the same");
}

#[test]
fn an_interrupted_save_leaves_nothing_behind() {
    let run = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(run.path(), 3).unwrap();
    save(&checkpoints, 5).unwrap();
    // As if killed while writing step 6, and between the two renames of saving step 5 again.
    fs::create_dir(run.path().join(".step-6.tmp")).unwrap();
    fs::write(run.path().join(".step-6.tmp/model.safetensors"), b"part").unwrap();
    fs::rename(run.path().join("step-5"), run.path().join(".step-5.replaced")).unwrap();
    let checkpoints = Checkpoints::open(run.path(), 3).unwrap();
    assert_whole(&checkpoints.latest().unwrap().unwrap());
    assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1);
}

/// A disk with room for a limited number of bytes.
struct Small(Arc<AtomicU64>);

struct SmallFile(Box<dyn Sink>, Arc<AtomicU64>);

impl Storage for Small {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        Ok(Box::new(SmallFile(Disk.create(path)?, Arc::clone(&self.0))))
    }
}

impl Write for SmallFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = self.1.load(Ordering::SeqCst).min(data.len() as u64);
        if room == 0 && !data.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.1.fetch_sub(room, Ordering::SeqCst);
        self.0.write(&data[..room as usize])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Sink for SmallFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    let room = Arc::new(AtomicU64::new(u64::MAX));
    let open = || Checkpoints::open_on(run.path(), 1, Arc::new(Small(Arc::clone(&room)))).unwrap();
    let checkpoints = open();
    save(&checkpoints, 1).unwrap();
    let size: u64 = fs::read_dir(run.path().join("step-1"))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    for available in (0..size).step_by(size as usize / 40) {
        room.store(available, Ordering::SeqCst);
        let text = save(&checkpoints, 2).unwrap_err().to_string();
        assert!(text.contains("the disk is full"), "{text}");
        assert!(text.contains("the checkpoint of step 1 is still there"), "{text}");
        assert_whole(&checkpoints.latest().unwrap().unwrap());
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1, "no partial file stays");
    }
    room.store(u64::MAX, Ordering::SeqCst);
    save(&checkpoints, 2).unwrap();
    assert_eq!(checkpoints.latest().unwrap().unwrap().step, 2);
}
