//! Runs that were evaluated on their own, side by side where no summary compares them.

use super::curves::{self, Figures, gallery};
use super::differences::{self, Group};
use super::html::{escape, list, paragraph, section};
use super::read::Run;
use super::summary::{Arm, same_guidance};
use super::tables;
use crate::eval::{EvalReport, Floor, SweepPoint};
use crate::metrics::Measured;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Text above evaluations that cannot be compared.
const UNLIKE: &str = "These runs were not measured alike (other images, another number of them or of seeds, \
                      or other features): their numbers do not say which is better.";

/// Text above the means of several runs of one configuration.
const TRAINING_SEEDS: &str = "Runs that differ in their seed alone, taken together: each is the mean over its own \
                              sampling seeds, and ± is the sample standard deviation over training seeds.";

/// Shows their sweeps in one chart and table, means over training seeds if there are several, and
/// how they were measured.
pub(super) fn evaluations(runs: &[Run], figures: &mut Figures) -> String {
    let evaluated: Vec<(&Run, &EvalReport)> =
        runs.iter().filter_map(|run| Some((run, run.eval.as_ref()?))).collect();
    if evaluated.is_empty() {
        return String::new();
    }
    let evals = || evaluated.iter().map(|(_, eval)| *eval);
    let alike = evals().all(|a| evals().all(|b| a.settings.comparable(&b.settings)));
    let mut out = String::new();
    if !alike {
        out.push_str(&paragraph("warning", UNLIKE));
    }
    for (name, measured, reached) in runs.iter().filter_map(outdated) {
        let text = format!(
            "{name} was measured at step {measured} and has been trained to step {reached} since; `sar eval` \
             measures it as it is."
        );
        out.push_str(&paragraph("warning", &text));
    }
    let (arms, styles) = sweeps(&evaluated);
    let floors = shared_floors(&evaluated);
    out.push_str(&gallery(&curves::sweep(&arms, &styles, &floors, "sampling seeds", figures)));
    out.push_str(&tables::sweep(&arms, alike));
    let groups = if alike { training_groups(&evaluated) } else { Vec::new() };
    out.push_str(&match groups.len() {
        // Numbers of single runs are noise beside those of several.
        0 if alike => differences::of_arms(&arms),
        _ => over_training_seeds(&groups, &floors, figures),
    });
    out.push_str(&how_measured(&evaluated));
    section("Evaluations", &out)
}

/// Returns name, measured step and current step of a run that was measured at fewer steps than it
/// has now.
fn outdated(run: &Run) -> Option<(&str, u64, u64)> {
    let sampler = &run.eval.as_ref()?.settings.sampler;
    let reached = run.saved?;
    let known = !sampler.weights.is_empty() && sampler.step < reached;
    known.then_some((run.name.as_str(), sampler.step, reached))
}

/// Returns one sweep over guidance for every run and filter, and their styles.
fn sweeps(evaluated: &[(&Run, &EvalReport)]) -> (Vec<Arm>, Vec<usize>) {
    let (mut arms, mut styles) = (Vec::new(), Vec::new());
    let mut next = evaluated.iter().map(|(run, _)| run.style + 1).max().unwrap_or(0);
    for (run, eval) in evaluated {
        for (i, (filter, sweep)) in by_filter(eval).into_iter().enumerate() {
            let name =
                if filter.is_empty() { run.name.clone() } else { run.name.clone() + &filter };
            arms.push(Arm { name, sweep, ..Arm::default() });
            styles.push(if i == 0 { run.style } else { next });
            next += usize::from(i > 0);
        }
    }
    (arms, styles)
}

/// Returns the points of each filter in the order of guidance, under its name if there are several.
fn by_filter(eval: &EvalReport) -> Vec<(String, Vec<SweepPoint>)> {
    let mut found: Vec<(String, Vec<SweepPoint>)> = Vec::new();
    for point in &eval.points {
        let name = point.filter();
        match found.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(point.clone()),
            None => found.push((name, vec![point.clone()])),
        }
    }
    for (_, points) in &mut found {
        points.sort_by(|a, b| a.guidance.total_cmp(&b.guidance));
    }
    found
}

/// Returns the floors that are the same in all evaluations.
fn shared_floors(evaluated: &[(&Run, &EvalReport)]) -> Vec<Floor> {
    let in_all = |f: &&Floor| evaluated.iter().all(|(_, eval)| eval.floors.contains(f));
    let first = evaluated.first().map(|(_, eval)| eval.floors.iter());
    first.map_or_else(Vec::new, |floors| floors.filter(in_all).cloned().collect())
}

/// Returns the runs that differ in their training seed alone, where there are several, in the order in which they were
/// named.
fn training_groups<'a>(evaluated: &[(&'a Run, &'a EvalReport)]) -> Vec<Group<'a>> {
    let mut groups: Vec<(String, Group<'a>)> = Vec::new();
    for &(run, eval) in evaluated.iter().filter(|(_, eval)| !eval.sweeps_filters()) {
        let Some(key) = run.apart_from_seed() else { continue };
        // They must have been measured after the same number of steps, with the same kind of
        // weights and sampler.
        let s = &eval.settings.sampler;
        let sampler = (s.step, s.ema, s.top_k, s.top_p, &s.ramp, &s.schedule, s.published_greedy);
        let key = format!("{key}\n{sampler:?}");
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push((run, eval)),
            None => groups.push((key, vec![(run, eval)])),
        }
    }
    // A copy of a run does not count as another seed.
    let seeds =
        |group: &Group<'_>| group.iter().map(|(run, _)| run.seed()).collect::<BTreeSet<_>>().len();
    let groups = groups.into_iter().map(|(_, group)| group);
    groups.filter(|group| group.len() > 1 && seeds(group) == group.len()).collect()
}

/// Shows mean and spread over training seeds of groups of runs, and what they differ by; empty if there are none.
fn over_training_seeds(groups: &[Group<'_>], floors: &[Floor], figures: &mut Figures) -> String {
    if groups.is_empty() {
        return String::new();
    }
    let (mut arms, mut styles) = (Vec::new(), Vec::new());
    for group in groups {
        let name = format!("{} ({} training seeds)", shared_name(group), group.len());
        arms.push(Arm { name, sweep: means(group), ..Arm::default() });
        styles.push(group.first().map_or(0, |(run, _)| run.style));
    }
    let names: Vec<String> = groups.iter().map(|group| shared_name(group)).collect();
    format!("<h3>Over training seeds</h3>\n{}", paragraph("", TRAINING_SEEDS))
        + &gallery(&curves::sweep(&arms, &styles, floors, "training seeds", figures))
        + &tables::sweep(&arms, true)
        + &differences::of_groups(groups, &names)
}

/// Returns mean and spread of the runs' means, at each guidance at which all of them were measured.
fn means(group: &[(&Run, &EvalReport)]) -> Vec<SweepPoint> {
    let Some((_, first)) = group.first() else { return Vec::new() };
    let mut points: Vec<SweepPoint> = Vec::new();
    for point in &first.points {
        let same = |eval: &EvalReport| {
            eval.points.iter().find(|p| same_guidance(p.guidance, point.guidance)).cloned()
        };
        let all: Option<Vec<SweepPoint>> = group.iter().map(|(_, eval)| same(eval)).collect();
        let Some(all) = all else { continue };
        let over = |value: fn(&SweepPoint) -> f64| Measured::of(all.iter().map(value).collect());
        if let (Ok(frechet), Ok(precision), Ok(recall), Ok(class_accuracy)) = (
            over(|p| p.frechet.mean),
            over(|p| p.precision.mean),
            over(|p| p.recall.mean),
            over(|p| p.class_accuracy.mean),
        ) {
            points.push(SweepPoint { frechet, precision, recall, class_accuracy, ..point.clone() });
        }
    }
    points
}

/// Returns the common beginning of the names of runs, without what numbers them: `tf` for `tf-s0`
/// and `tf-s1`.
fn shared_name(group: &[(&Run, &EvalReport)]) -> String {
    let names: Vec<&str> = group.iter().map(|(run, _)| run.name.as_str()).collect();
    let first = names.first().copied().unwrap_or_default();
    let shared = |end: usize| names.iter().all(|name| name.get(..end) == first.get(..end));
    let end = (0..=first.len()).rev().find(|end| first.is_char_boundary(*end) && shared(*end));
    let separators = ['-', '_', '.', ' ', '/'];
    let shared = &first[..end.unwrap_or(0)];
    // A common beginning must not end within a number or a word, as `tf-s1` for `tf-s10` and
    // `tf-s11` would.
    let inside = |name: &&str| {
        let next = name[shared.len()..].chars().next();
        next.is_some_and(char::is_alphanumeric) && shared.ends_with(char::is_alphanumeric)
    };
    let numbers = shared.trim_end_matches(|c: char| c.is_ascii_digit());
    let stem = match names.iter().any(inside) {
        true => numbers.trim_end_matches(separators),
        false => shared.trim_end_matches(separators),
    };
    let numbered = ["seed", "s"].iter().find_map(|word| {
        let rest = stem.strip_suffix(word)?;
        rest.ends_with(separators).then(|| rest.trim_end_matches(separators))
    });
    match numbered.unwrap_or(stem) {
        "" => names.join(", "),
        stem => stem.to_owned(),
    }
}

/// Describes how the runs were measured: once what all have in common, the rest run by run.
fn how_measured(evaluated: &[(&Run, &EvalReport)]) -> String {
    let items = |eval: &EvalReport| -> Vec<String> {
        let mut items = tables::settings_items(&eval.settings, eval.sweeps_filters());
        items.extend(eval.warnings.iter().cloned());
        items
    };
    let all: Vec<Vec<String>> = evaluated.iter().map(|(_, eval)| items(eval)).collect();
    let in_all = |item: &&String| all.iter().all(|items| items.contains(item));
    let shared: Vec<String> =
        all.first().map_or_else(Vec::new, |items| items.iter().filter(in_all).cloned().collect());
    let same_floors = evaluated.iter().all(|(_, eval)| eval.floors == evaluated[0].1.floors);
    let mut out = String::from("<h3>How they were measured</h3>\n");
    out.push_str(&list("", &shared));
    let own = |items: &[String]| -> Vec<String> {
        items.iter().filter(|item| !shared.contains(item)).cloned().collect()
    };
    if same_floors {
        let named = evaluated.iter().zip(&all).flat_map(|((run, _), items)| {
            own(items).into_iter().map(|item| format!("{}: {item}", run.name))
        });
        out.push_str(&list("", &named.collect::<Vec<_>>()));
        return out + &tables::floors(&evaluated[0].1.floors);
    }
    for ((run, eval), items) in evaluated.iter().zip(&all) {
        let _ = writeln!(out, "<h3>{}</h3>", escape(&run.name));
        out.push_str(&list("", &own(items)));
        out.push_str(&tables::floors(&eval.floors));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_called_by_what_its_names_share_but_for_their_numbers() {
        for (names, shared) in [
            (["tf-s0", "tf-s1"], "tf"),
            (["tf-s10", "tf-s11"], "tf"),
            (["tf-s1", "tf-s10"], "tf"),
            (["runs/a_seed3", "runs/a_seed4"], "runs/a"),
            (["one", "two"], "one, two"),
        ] {
            let runs = names.map(|name| Run { name: name.into(), ..Run::default() });
            let eval = EvalReport {
                settings: Default::default(),
                floors: Vec::new(),
                points: Vec::new(),
                held_out: None,
                warnings: Vec::new(),
            };
            let group: Vec<_> = runs.iter().map(|run| (run, &eval)).collect();
            assert_eq!(shared_name(&group), shared);
        }
    }
}
