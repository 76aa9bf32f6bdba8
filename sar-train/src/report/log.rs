//! The numbers of a run's `log.jsonl`.

use super::read::Run;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

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
    /// Grids of the run's own schedule, by which numbers of single scales are told apart; none: by their place.
    grids: Vec<String>,
}

impl Log {
    /// Steps and values of a field.
    pub(super) fn get(&self, kind: &str, name: &str, index: Option<usize>) -> &[(f64, f64)] {
        let field = Field { kind: kind.into(), name: name.into(), index };
        self.fields.get(&field).map_or(&[], Vec::as_slice)
    }

    /// The grid of a scale in the run's own schedule, as `4` or `2x4`; none where that is not known.
    pub(super) fn grid(&self, index: usize) -> Option<&str> {
        self.grids.get(index).map(String::as_str)
    }

    /// All fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.keys()
    }

    /// Whether there is no number at all.
    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty()
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
        // The third scale of one step is not that of the next where schedules are drawn.
        let schedule = record.get("schedule").and_then(serde_json::Value::as_str);
        let grids: Option<Vec<&str>> =
            schedule.filter(|_| !self.grids.is_empty()).map(|s| s.split('_').collect());
        let place = |index: usize| match &grids {
            Some(grids) => {
                self.grids.iter().position(|own| Some(&own.as_str()) == grids.get(index))
            }
            None => Some(index),
        };
        let mut found = Vec::new();
        for (name, value) in record.iter().filter(|(name, _)| *name != "step") {
            if let Some(value) = value.as_f64() {
                found.push((name, None, value));
            } else if let Some(values) = value.as_array() {
                for (index, value) in values.iter().enumerate() {
                    if let (Some(value), Some(index)) = (value.as_f64(), place(index)) {
                        found.push((name, Some(index), value));
                    }
                }
            }
        }
        for (name, index, value) in found {
            self.push(kind, name, index, step, value);
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

/// Reads the log of a run; one that is `expected` is missed.
pub(super) fn read_log(folder: &Path, expected: bool, run: &mut Run) {
    let file = match std::fs::File::open(folder.join("log.jsonl")) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !expected => return,
        Err(e) => {
            run.notes.push(format!("log.jsonl cannot be read, so there are no curves: {e}"));
            return;
        }
    };
    run.log.grids = run.config.as_deref().map(grids_of).unwrap_or_default();
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

/// The grids that a run's configuration says its generator draws.
fn grids_of(config: &str) -> Vec<String> {
    let table = config.parse::<toml::Table>().unwrap_or_default();
    let schedule =
        table.get("generator").and_then(|g| g.get("schedule")).and_then(toml::Value::as_str);
    schedule.map(|s| s.split('_').map(str::to_owned).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn scales_of_drawn_schedules_are_told_apart_by_their_grids() {
        let grids = grids_of("[generator]\nschedule = \"1_2_2x4_8\"\n");
        assert_eq!(grids, ["1", "2", "2x4", "8"]);
        let mut log = Log { grids, ..Log::default() };
        assert!(log.record(br#"{"step":1,"schedule":"1_2_2x4_8","scale_loss":[1,2,3,4]}"#));
        assert!(log.record(br#"{"step":2,"schedule":"1_2_5_8","scale_loss":[1,2,7,9]}"#));
        assert!(log.record(br#"{"step":3,"schedule":"1_8","scale_loss":[1,8]}"#));
        assert!(log.record(br#"{"step":2,"kind":"eval","heldout_scale_loss":[1,2,3,4]}"#));
        assert_eq!(log.get("train", "scale_loss", Some(2)), [(1.0, 3.0)]);
        assert_eq!(log.get("train", "scale_loss", Some(3)), [(1.0, 4.0), (2.0, 9.0), (3.0, 8.0)]);
        assert_eq!(log.get("eval", "heldout_scale_loss", Some(2)), [(2.0, 3.0)]);
    }
}
