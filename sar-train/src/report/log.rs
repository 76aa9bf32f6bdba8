//! The numbers of a run's `log.jsonl`.

use super::read::Run;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::path::Path;

/// Identifies a number in a log: the record's kind, the field, and the scale, if it belongs to one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Field {
    pub kind: String,
    pub name: String,
    pub scale: Option<Scale>,
}

/// Name of a scale, ordered from coarse to fine: its grid, or its position in a list if the grid is
/// unknown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scale {
    Grid { tokens: usize, height: usize, width: usize },
    Place(usize),
}

impl Scale {
    /// Names the scale at `place`, counted from 0, whose grid is `4` or `2x4`, if known.
    fn of(place: usize, grid: Option<&str>) -> Self {
        let sides = |grid: &str| {
            let (height, width) = grid.split_once('x').unwrap_or((grid, grid));
            Some((height.parse::<usize>().ok()?, width.parse::<usize>().ok()?))
        };
        match grid.and_then(sides) {
            Some((height, width)) => {
                Self::Grid { tokens: height.saturating_mul(width), height, width }
            }
            None => Self::Place(place + 1),
        }
    }

    /// Returns its name in a chart or a table.
    pub(super) fn title(&self) -> String {
        match self {
            Self::Grid { height, width, .. } => format!("Grid {height}×{width}"),
            Self::Place(place) => format!("Scale {place}"),
        }
    }
}

/// Fields of a tokenizer's step that refer to the one grid it trained.
const OF_ONE_GRID: [&str; 2] = ["loss", "quantization"];

/// Fields of every record that are not curves: its step and when it was written.
const OF_RECORDS: [&str; 2] = ["step", "time"];

/// Numbers of a `log.jsonl`, by field, in ascending order of steps.
#[derive(Debug, Default)]
pub(super) struct Log {
    fields: BTreeMap<Field, Vec<(f64, f64)>>,
    /// Grids of the run's own schedule, which identify scales; if empty, scales are identified by
    /// position.
    grids: Vec<String>,
}

impl Log {
    /// Returns steps and values of a field.
    pub(super) fn get(&self, kind: &str, name: &str, scale: Option<&Scale>) -> &[(f64, f64)] {
        let field = Field { kind: kind.into(), name: name.into(), scale: scale.cloned() };
        self.fields.get(&field).map_or(&[], Vec::as_slice)
    }

    /// Returns the last value of a field, with its step.
    pub(super) fn last(&self, kind: &str, name: &str, scale: Option<&Scale>) -> Option<(f64, f64)> {
        self.get(kind, name, scale).last().copied()
    }

    /// Returns the scales that a field has values for, from coarse to fine.
    pub(super) fn scales(&self, kind: &str, name: &str) -> BTreeSet<Scale> {
        let of = self.fields().filter(|f| f.kind == kind && f.name == name);
        of.filter_map(|f| f.scale.clone()).collect()
    }

    /// Returns all fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.keys()
    }

    /// Whether there are no numbers at all.
    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Adds one record; returns false if the line is not one.
    fn record(&mut self, line: &[u8]) -> bool {
        let Ok(Value::Object(record)) = serde_json::from_slice(line) else {
            return false;
        };
        let Some(step) = record.get("step").and_then(Value::as_f64) else {
            return false;
        };
        let text = |name: &str| record.get(name).and_then(Value::as_str);
        let kind = text("kind").unwrap_or("train");
        let grid = text("grid").map(|grid| Scale::of(0, Some(grid)));
        let mut found = Vec::new();
        for (name, value) in record.iter().filter(|(name, _)| !OF_RECORDS.contains(&name.as_str()))
        {
            if let Some(value) = value.as_f64() {
                let scale = grid.clone().filter(|_| OF_ONE_GRID.contains(&name.as_str()));
                found.push((name, scale, value));
            } else if let Some(values) = value.as_array() {
                for (place, value) in values.iter().enumerate() {
                    if let (Some(value), Some(scale)) = (value.as_f64(), self.scale(&record, place))
                    {
                        found.push((name, Some(scale), value));
                    }
                }
            }
        }
        for (name, scale, value) in found {
            let field = Field { kind: kind.into(), name: name.into(), scale };
            self.fields.entry(field).or_default().push((step, value));
        }
        true
    }

    /// Returns the scale at a position of a record's lists; `None` if its grid is not in the run's
    /// own schedule.
    fn scale(&self, record: &Map<String, Value>, place: usize) -> Option<Scale> {
        let named =
            record.get("grids").and_then(Value::as_array).and_then(|grids| grids.get(place));
        if let Some(grid) = named.and_then(Value::as_str) {
            return Some(Scale::of(place, Some(grid)));
        }
        let own = self.grids.get(place).map(String::as_str);
        // With drawn schedules, the third scale of one step may not be that of the next.
        let drawn =
            record.get("schedule").and_then(Value::as_str).filter(|_| !self.grids.is_empty());
        match drawn.map(|schedule| schedule.split('_').nth(place)) {
            Some(grid) => {
                let grid = grid.filter(|grid| self.grids.iter().any(|own| own == grid))?;
                Some(Scale::of(place, Some(grid)))
            }
            None => Some(Scale::of(place, own)),
        }
    }

    /// Removes duplicates: a resumed run writes some steps twice, and the later record counts.
    fn settle(&mut self) {
        for values in self.fields.values_mut() {
            values.reverse();
            values.sort_by(|a, b| a.0.total_cmp(&b.0));
            values.dedup_by(|a, b| a.0 == b.0);
        }
    }
}

/// Reads the log of a run; if `expected`, a missing log is noted.
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

/// Returns the grids of the generator's schedule in a run's configuration.
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
        assert!(log.record(br#"{"step":1,"loss":2.0,"time":1700000000}"#));
        assert!(log.record(br#"{"step":2,"loss":0.5,"note":"resumed"}"#));
        assert!(!log.record(br#"{"loss":0.5}"#));
        assert!(!log.record(br#"{"step":3,"lo"#));
        assert!(!log.record(b"\xff\xfe"));
        log.settle();
        assert_eq!(log.get("train", "loss", None), [(1.0, 2.0), (2.0, 0.5)]);
        let third = |kind: &str, name: &str| log.get(kind, name, Some(&Scale::Place(3))).to_vec();
        assert_eq!(third("train", "scale_loss"), [(2.0, 3.0)]);
        assert!(log.get("train", "scale_loss", Some(&Scale::Place(2))).is_empty());
        assert!(log.get("eval", "loss", None).is_empty());
        assert!(log.get("train", "time", None).is_empty(), "when it was written is no curve");
        assert_eq!(log.last("train", "loss", None), Some((2.0, 0.5)));
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
        let of = |kind, name, grid| log.get(kind, name, Some(&Scale::of(0, Some(grid)))).to_vec();
        assert_eq!(of("train", "scale_loss", "2x4"), [(1.0, 3.0)]);
        assert_eq!(of("train", "scale_loss", "8"), [(1.0, 4.0), (2.0, 9.0), (3.0, 8.0)]);
        assert_eq!(of("eval", "heldout_scale_loss", "2x4"), [(2.0, 3.0)]);
        assert_eq!(log.scales("train", "scale_loss").len(), 4);
    }

    #[test]
    fn a_tokenizers_steps_are_told_apart_by_the_grid_that_they_train() {
        let mut log = Log::default();
        assert!(log.record(br#"{"step":1,"grid":"8x8","loss":3.0,"lr":0.5}"#));
        assert!(log.record(br#"{"step":2,"grid":"2x4","loss":4.0,"lr":0.25}"#));
        assert!(log.record(br#"{"step":2,"kind":"eval","grids":["1x1","8x8"],"psnr":[5,6]}"#));
        let of = |kind, name, grid| log.get(kind, name, Some(&Scale::of(0, Some(grid)))).to_vec();
        assert_eq!(of("train", "loss", "8x8"), [(1.0, 3.0)]);
        assert_eq!(of("train", "loss", "2x4"), [(2.0, 4.0)]);
        assert_eq!(log.get("train", "lr", None), [(1.0, 0.5), (2.0, 0.25)]);
        assert_eq!(of("eval", "psnr", "8"), [(2.0, 6.0)]);
    }
}
