//! Reads run folders: what is there, and what is missing or damaged.

use super::ReportError;
use super::summary::{SUMMARY_FILE, Summary};
use crate::eval::EvalReport;
use crate::run::EVAL_FILE;
use base64::Engine as _;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

/// Larger images are left out: the page would no longer open everywhere.
const LARGEST_IMAGE: u64 = 8 << 20;

/// Everything a page is made of.
#[derive(Debug, Default)]
pub(super) struct Material {
    pub comparisons: Vec<Comparison>,
    pub runs: Vec<Run>,
    next_style: usize,
    /// Folders read so far.
    seen: BTreeSet<PathBuf>,
}

/// A summary and where it lies.
#[derive(Debug)]
pub(super) struct Comparison {
    pub summary: Summary,
    /// Style of the first arm; the others follow.
    pub first_style: usize,
}

/// One run folder.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub name: String,
    pub folder: PathBuf,
    /// Colour and marker of its curves: those of its arm, where it has one.
    pub style: usize,
    pub config: Option<String>,
    pub log: Log,
    pub pictures: Vec<Picture>,
    pub eval: Option<EvalReport>,
    pub notes: Vec<String>,
}

/// A sample grid or strip.
#[derive(Debug)]
pub(super) struct Picture {
    /// The file's name without its ending.
    pub name: String,
    pub base64: String,
    pub width: u32,
    pub height: u32,
}

impl Picture {
    /// Whether it shows one image at every scale, by its name.
    pub(super) fn is_strip(&self) -> bool {
        ["strip", "scale"].iter().any(|word| self.name.to_lowercase().contains(word))
    }
}

/// What a value in a log is: the record's kind, the field, and for lists the place in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Field {
    pub kind: String,
    pub name: String,
    pub index: Option<usize>,
}

/// Numbers of `log.jsonl`, by field, in ascending order of steps.
#[derive(Debug, Default)]
pub(super) struct Log {
    fields: BTreeMap<Field, Vec<(f64, f64)>>,
}

impl Log {
    /// Steps and values of a field.
    pub(super) fn get(&self, kind: &str, name: &str, index: Option<usize>) -> &[(f64, f64)] {
        let field = Field { kind: kind.into(), name: name.into(), index };
        self.fields.get(&field).map_or(&[], Vec::as_slice)
    }

    /// All fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.keys()
    }

    fn push(&mut self, kind: &str, name: &str, index: Option<usize>, step: f64, value: f64) {
        let field = Field { kind: kind.into(), name: name.into(), index };
        self.fields.entry(field).or_default().push((step, value));
    }

    /// Adds one record; false where it is none.
    fn record(&mut self, line: &[u8]) -> bool {
        let Ok(serde_json::Value::Object(record)) = serde_json::from_slice(line) else {
            return false;
        };
        let Some(step) = record.get("step").and_then(serde_json::Value::as_f64) else {
            return false;
        };
        let kind = record.get("kind").and_then(serde_json::Value::as_str).unwrap_or("train");
        for (name, value) in record.iter().filter(|(name, _)| *name != "step") {
            if let Some(value) = value.as_f64() {
                self.push(kind, name, None, step, value);
            } else if let Some(values) = value.as_array() {
                for (index, value) in values.iter().enumerate() {
                    if let Some(value) = value.as_f64() {
                        self.push(kind, name, Some(index), step, value);
                    }
                }
            }
        }
        true
    }

    /// A resumed run writes some steps twice; the later record is the one that counts.
    fn settle(&mut self) {
        for values in self.fields.values_mut() {
            values.reverse();
            values.sort_by(|a, b| a.0.total_cmp(&b.0));
            values.dedup_by(|a, b| a.0 == b.0);
        }
    }
}

impl Material {
    /// Runs of one name take that of the folder around them before it.
    fn tell_apart(&mut self) {
        let names: Vec<String> = self.runs.iter().map(|run| run.name.clone()).collect();
        for run in &mut self.runs {
            let shared = names.iter().filter(|name| **name == run.name).count() > 1;
            let around = run.folder.parent().and_then(Path::file_name).filter(|_| shared);
            if let Some(around) = around {
                run.name = format!("{}/{}", around.to_string_lossy(), run.name);
            }
        }
    }

    /// What is missing or damaged, run by run.
    pub(super) fn notes(&self) -> Vec<String> {
        self.runs
            .iter()
            .flat_map(|r| r.notes.iter().map(move |n| format!("{}: {n}", r.name)))
            .collect()
    }
}

/// Reads the folders, and the runs within them that a summary names.
pub(super) fn read(folders: &[PathBuf]) -> Result<Material, ReportError> {
    let mut material = Material::default();
    for folder in folders {
        let found = std::fs::metadata(folder).map_err(|e| e.to_string());
        let problem = match found {
            Ok(found) if found.is_dir() => None,
            Ok(_) => Some("it is a file".to_owned()),
            Err(problem) => Some(problem),
        };
        if let Some(problem) = problem {
            return Err(ReportError::Folder { path: folder.clone(), problem });
        }
        // A comparison shows its arms; naming their folders as well does not show them twice.
        if material.seen.contains(&canonical(folder)) {
            continue;
        }
        let before = (material.runs.len(), material.comparisons.len());
        read_folder(folder, &mut material);
        if (material.runs.len(), material.comparisons.len()) == before {
            return Err(ReportError::Empty { path: folder.clone() });
        }
    }
    material.tell_apart();
    Ok(material)
}

fn read_folder(folder: &Path, material: &mut Material) {
    let mut notes = Vec::new();
    let mut children: Vec<(String, PathBuf, usize)> = Vec::new();
    let mut next_style = material.next_style;
    let compares = folder.join(SUMMARY_FILE).exists();
    if compares {
        match Summary::read(folder) {
            Ok(summary) => {
                for (i, arm) in summary.arms.iter().enumerate() {
                    // A summary names folders beneath its own, never others.
                    if let Some(run) = arm.run.as_deref().filter(|r| is_beneath(r)) {
                        children.push((arm.name.clone(), folder.join(run), next_style + i));
                    }
                }
                let first_style = next_style;
                next_style += summary.arms.len();
                material.comparisons.push(Comparison { summary, first_style });
            }
            Err(error) => notes.push(error.to_string()),
        }
        for (name, path) in other_children(folder, &children) {
            children.push((name, path, next_style));
            next_style += 1;
        }
    }
    material.seen.insert(canonical(folder));
    let own = read_run(&folder_name(folder), folder, compares);
    let mut own = Run { style: next_style, ..own };
    own.notes.splice(0..0, notes);
    if !own.is_empty() {
        material.runs.push(own);
        next_style += 1;
    }
    for (name, folder, style) in children {
        // Named on its own before the comparison.
        if !material.seen.insert(canonical(&folder)) {
            continue;
        }
        material.runs.push(Run { style, ..read_run(&name, &folder, false) });
    }
    material.next_style = next_style;
}

fn is_beneath(relative: &str) -> bool {
    use std::path::Component;
    Path::new(relative).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// Runs in a comparison's folder that its summary does not name (the tokenizer's).
fn other_children(folder: &Path, known: &[(String, PathBuf, usize)]) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("log.jsonl").is_file())
        .filter(|path| !known.iter().any(|(_, k, _)| k == path))
        .map(|path| (folder_name(&path), path))
        .collect();
    found.sort();
    found
}

fn canonical(folder: &Path) -> PathBuf {
    folder.canonicalize().unwrap_or_else(|_| folder.into())
}

fn folder_name(folder: &Path) -> String {
    let name = canonical(folder);
    name.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into())
}

impl Run {
    /// Whether its log is a generator's: others' losses are of another kind.
    pub(super) fn is_generator(&self) -> bool {
        let of_generators = ["loss_tf", "scale_loss", "heldout_loss"];
        self.log.fields().any(|f| of_generators.contains(&f.name.as_str()))
    }

    fn is_empty(&self) -> bool {
        self.config.is_none()
            && self.log.fields.is_empty()
            && self.pictures.is_empty()
            && self.eval.is_none()
            && self.notes.is_empty()
    }
}

/// Reads one folder; in a folder of a comparison nothing but the summary is expected.
fn read_run(name: &str, folder: &Path, compares: bool) -> Run {
    let mut run = Run { name: name.into(), folder: canonical(folder), ..Run::default() };
    if !folder.is_dir() {
        run.notes.push(format!("the folder {} is missing", folder.display()));
        return run;
    }
    let anything = ["config.toml", "log.jsonl", EVAL_FILE, "samples"]
        .iter()
        .any(|part| folder.join(part).exists());
    let expected = anything && !compares;
    read_config(folder, expected, &mut run);
    read_log(folder, expected, &mut run);
    read_eval(folder, &mut run);
    read_pictures(folder, &mut run);
    run
}

fn read_config(folder: &Path, expected: bool, run: &mut Run) {
    match std::fs::read(folder.join("config.toml")) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Err(error) = text.parse::<toml::Table>() {
                let message = error.message().to_owned();
                run.notes.push(format!("config.toml is damaged ({message}); shown as it is"));
            }
            run.config = Some(text);
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !expected => {}
        Err(e) => run.notes.push(format!("config.toml cannot be read: {e}")),
    }
}

fn read_log(folder: &Path, expected: bool, run: &mut Run) {
    let file = match std::fs::File::open(folder.join("log.jsonl")) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !expected => return,
        Err(e) => {
            run.notes.push(format!("log.jsonl cannot be read, so there are no curves: {e}"));
            return;
        }
    };
    let mut bad = Vec::new();
    for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
        match line {
            Ok(line) if line.trim_ascii().is_empty() => {}
            Ok(line) if run.log.record(&line) => {}
            Ok(_) => bad.push(number + 1),
            Err(e) => {
                run.notes.push(format!("log.jsonl breaks off after line {number}: {e}"));
                break;
            }
        }
    }
    run.log.settle();
    if let Some(first) = bad.first() {
        let count = bad.len();
        run.notes.push(format!(
            "log.jsonl: {count} unreadable line(s) left out, the first is line {first}"
        ));
    }
    if expected && run.log.fields.is_empty() {
        run.notes.push("log.jsonl has no records yet".into());
    }
}

fn read_eval(folder: &Path, run: &mut Run) {
    let Ok(text) = std::fs::read(folder.join(EVAL_FILE)) else { return };
    match serde_json::from_slice(&text) {
        Ok(eval) => run.eval = Some(eval),
        Err(e) => run.notes.push(format!("{EVAL_FILE} is damaged: {e}")),
    }
}

fn read_pictures(folder: &Path, run: &mut Run) {
    let entries = match std::fs::read_dir(folder.join("samples")) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
        Err(e) => {
            run.notes.push(format!("samples cannot be read: {e}"));
            return;
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")))
        .collect();
    paths.sort_by_cached_key(|p| natural(&p.to_string_lossy()));
    for path in paths {
        match read_picture(&path) {
            Ok(picture) => run.pictures.push(picture),
            Err(problem) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                run.notes.push(format!("samples/{name} is not shown: {problem}"));
            }
        }
    }
}

fn read_picture(path: &Path) -> Result<Picture, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > LARGEST_IMAGE {
        return Err(format!("{size} bytes, more than {LARGEST_IMAGE}"));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    // Decoded in full: a truncated file would show as a broken image.
    let image = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png)
        .map_err(|e| e.to_string())?;
    Ok(Picture {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        base64: base64::engine::general_purpose::STANDARD.encode(&bytes),
        width: image.width(),
        height: image.height(),
    })
}

/// A sort key by which step-2 comes before step-10.
fn natural(name: &str) -> Vec<(u128, String)> {
    let mut parts = vec![(0u128, String::new())];
    let mut digits = String::new();
    for c in name.chars().chain(std::iter::once('\0')) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        if !digits.is_empty() {
            parts.push((digits.parse().unwrap_or(u128::MAX), String::new()));
            digits.clear();
        }
        if let Some((_, text)) = parts.last_mut() {
            text.push(c);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_sort_as_numbers() {
        let mut names = ["step-10.png", "step-2.png", "base.png", "step-2-strip.png"];
        names.sort_by_cached_key(|n| natural(n));
        assert_eq!(names, ["base.png", "step-2-strip.png", "step-2.png", "step-10.png"]);
    }

    #[test]
    fn a_log_keeps_the_later_of_two_records_and_skips_what_is_none() {
        let mut log = Log::default();
        assert!(log.record(br#"{"step":2,"kind":"train","loss":1.0,"scale_loss":[1,null,3]}"#));
        assert!(log.record(br#"{"step":1,"loss":2.0}"#));
        assert!(log.record(br#"{"step":2,"loss":0.5,"note":"resumed"}"#));
        assert!(!log.record(br#"{"loss":0.5}"#));
        assert!(!log.record(br#"{"step":3,"lo"#));
        assert!(!log.record(b"\xff\xfe"));
        log.settle();
        assert_eq!(log.get("train", "loss", None), [(1.0, 2.0), (2.0, 0.5)]);
        assert_eq!(log.get("train", "scale_loss", Some(2)), [(2.0, 3.0)]);
        assert!(log.get("train", "scale_loss", Some(1)).is_empty());
        assert!(log.get("eval", "loss", None).is_empty());
    }

    #[test]
    fn a_summary_cannot_name_folders_elsewhere() {
        assert!(is_beneath("arms/sar") && is_beneath("./base"));
        assert!(!is_beneath("../other") && !is_beneath("/etc"));
    }
}
