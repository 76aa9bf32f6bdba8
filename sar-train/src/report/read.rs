//! Reads run folders, and notes what is missing or damaged.

use super::ReportError;
use super::log::{Log, read_log};
use super::pictures::{Picture, read_pictures};
use super::summary::{SUMMARY_FILE, Summary};
use crate::eval::EvalReport;
use crate::hash::sha256_of_file;
use crate::run::{EVAL_FILE, Origin, RUN_TOKENIZER};
use crate::run_files::CONFIG;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Everything a page is made of.
#[derive(Debug, Default)]
pub(super) struct Material {
    pub comparisons: Vec<Comparison>,
    pub runs: Vec<Run>,
    next_style: usize,
    /// Folders read so far.
    seen: BTreeSet<PathBuf>,
}

/// A summary, and the style of its first arm.
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
    /// Colour and marker of its curves: those of its arm, if it has one.
    pub style: usize,
    pub config: Option<String>,
    pub log: Log,
    pub pictures: Vec<Picture>,
    pub eval: Option<EvalReport>,
    /// The weights that it started from, if they were not new.
    pub origin: Option<Origin>,
    /// Step of its newest checkpoint, if it has one.
    pub saved: Option<u64>,
    pub notes: Vec<String>,
}

impl Material {
    /// Prefixes runs that have the same name with the name of their parent folder.
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

    /// Returns what is missing or damaged, run by run.
    pub(super) fn notes(&self) -> Vec<String> {
        self.runs
            .iter()
            .flat_map(|r| r.notes.iter().map(move |n| format!("{}: {n}", r.name)))
            .collect()
    }
}

/// Reads the folders, and the runs inside them that a summary names.
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
        // A comparison shows its arms; if their folders are given as well, they are not shown
        // twice.
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
                    // A summary may only name folders below its own.
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
        // The folder was already given before the comparison.
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

/// Returns the runs in a comparison's folder that its summary does not name (the tokenizer's).
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
    /// Whether its log is a generator's; losses of other models are of another kind.
    pub(super) fn is_generator(&self) -> bool {
        let of_generators = ["loss_tf", "loss_first_pass", "scale_loss", "heldout_loss"];
        self.log.fields().any(|f| of_generators.contains(&f.name.as_str()))
    }

    /// Whether its log is a tokenizer's.
    pub(super) fn is_tokenizer(&self) -> bool {
        self.log.fields().any(|f| ["quantization", "psnr"].contains(&f.name.as_str()))
    }

    fn is_empty(&self) -> bool {
        self.config.is_none()
            && self.log.is_empty()
            && self.pictures.is_empty()
            && self.eval.is_none()
            && self.notes.is_empty()
    }

    /// Returns its training seed.
    pub(super) fn seed(&self) -> Option<i64> {
        let table = self.config.as_deref()?.parse::<toml::Table>().ok()?;
        table.get("train")?.get("seed")?.as_integer()
    }

    /// Identifies the run except for its training seed: configuration, tokenizer and starting
    /// weights. `None` for a run without a configuration.
    pub(super) fn apart_from_seed(&self) -> Option<String> {
        let mut table = self.config.as_deref()?.parse::<toml::Table>().ok()?;
        table.get_mut("train")?.as_table_mut()?.remove("seed");
        // This section is about a tokenizer that the run does not train.
        table.remove("tokenizer_train");
        let from = self.origin.as_ref().map_or("", |origin| origin.sha256.as_str());
        let tokenizer = sha256_of_file(&self.folder.join(RUN_TOKENIZER)).unwrap_or_default();
        Some(format!("{from}\n{tokenizer}\n{table}"))
    }
}

/// Reads one folder; in the folder of a comparison, only the summary is expected.
fn read_run(name: &str, folder: &Path, compares: bool) -> Run {
    let mut run = Run { name: name.into(), folder: canonical(folder), ..Run::default() };
    if !folder.is_dir() {
        run.notes.push(format!("the folder {} is missing", folder.display()));
        return run;
    }
    let anything =
        [CONFIG, "log.jsonl", EVAL_FILE, "samples"].iter().any(|part| folder.join(part).exists());
    let expected = anything && !compares;
    read_config(folder, expected, &mut run);
    read_log(folder, expected, &mut run);
    read_eval(folder, &mut run);
    run.origin = Origin::of(folder);
    read_pictures(folder, &mut run);
    run
}

fn read_config(folder: &Path, expected: bool, run: &mut Run) {
    match std::fs::read(folder.join(CONFIG)) {
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

/// Returns the step of the newest checkpoint, judging by its name.
fn newest(folder: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(folder.join("checkpoints")).ok()?;
    let step = |name: &str| name.strip_prefix("step-")?.parse().ok();
    entries.flatten().filter_map(|entry| step(entry.file_name().to_str()?)).max()
}

fn read_eval(folder: &Path, run: &mut Run) {
    run.saved = newest(folder);
    let Ok(text) = std::fs::read(folder.join(EVAL_FILE)) else { return };
    match serde_json::from_slice(&text) {
        Ok(eval) => run.eval = Some(eval),
        Err(e) => run.notes.push(format!("{EVAL_FILE} is damaged: {e}")),
    }
    let replaced = replaced_evaluations(folder);
    if !replaced.is_empty() {
        run.notes.push(format!(
            "{EVAL_FILE} is of the last evaluation; those that it replaced are not shown: {}",
            replaced.join(", ")
        ));
    }
}

/// Names of the evaluations, such as `eval-1.json`, that another one has replaced.
fn replaced_evaluations(folder: &Path) -> Vec<String> {
    let number = |name: &str| -> Option<u64> {
        name.strip_prefix("eval-")?.strip_suffix(".json")?.parse().ok()
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbered: Vec<(u64, String)> =
        names.filter_map(|name| Some((number(&name)?, name))).collect();
    numbered.sort();
    numbered.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_cannot_name_folders_elsewhere() {
        assert!(is_beneath("arms/sar") && is_beneath("./base"));
        assert!(!is_beneath("../other") && !is_beneath("/etc"));
    }
}
