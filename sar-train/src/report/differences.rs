//! Differences between arms that were measured at the same guidance, with their intervals.

use super::html::{Cell, paragraph, table};
use super::read::Run;
use super::summary::{Arm, same_guidance};
use super::verdict::{Standing, compare, compare_pairs};
use crate::eval::EvalReport;
use crate::metrics::Measured;

/// Runs of one configuration that differ in their training seed alone, with their evaluations.
pub(super) type Group<'a> = Vec<(&'a Run, &'a EvalReport)>;

/// What is told of single training runs.
const ONE_RUN: &str = "± is the 95 % interval over sampling seeds (Welch's t), bold where it excludes 0, which by \
                       chance one of twenty differences does. Training seeds are not in it: another may move a run by more.";

/// Shows by how much each arm differs from the first; empty if there is only one.
pub(super) fn of_arms(arms: &[Arm]) -> String {
    let Some((first, others)) = arms.split_first() else { return String::new() };
    let rows = others.iter().map(|arm| {
        let difference = |guidance: f64| {
            let (a, b) = (arm.at(guidance)?, first.at(guidance)?);
            Some(compare(&a.frechet, &b.frechet))
        };
        (arm.name.clone(), difference)
    });
    let guidances: Vec<f64> = first.sweep.iter().map(|point| point.guidance).collect();
    shown(&first.name, &guidances, rows, ONE_RUN)
}

/// Shows by how much each group differs from the first, training seed by training seed; empty if there is only one.
/// `names` are theirs.
pub(super) fn of_groups(groups: &[Group<'_>], names: &[String]) -> String {
    let (Some((first, others)), Some((name, named))) = (groups.split_first(), names.split_first())
    else {
        return String::new();
    };
    let rows = others.iter().zip(named).map(|(group, name)| {
        let difference = |guidance: f64| Some(compare_pairs(&differences(group, first, guidance)?));
        (name.clone(), difference)
    });
    let guidances: Vec<f64> = first
        .first()
        .map_or_else(Vec::new, |(_, eval)| eval.points.iter().map(|p| p.guidance).collect());
    let text = "Runs of the same training seed are compared with each other: mean over the seeds, and ± is its 95 % \
                interval (Student's t), bold where it excludes 0, which by chance one of twenty differences does.";
    shown(name, &guidances, rows, text)
}

/// The difference of the runs of each training seed that both groups have, at a guidance at which all of those were
/// measured.
fn differences(group: &Group<'_>, of: &Group<'_>, guidance: f64) -> Option<Measured> {
    let at = |eval: &EvalReport| {
        let point = eval.points.iter().find(|p| same_guidance(p.guidance, guidance));
        point.map(|point| point.frechet.mean)
    };
    let pairs = group.iter().filter_map(|(run, eval)| {
        let (_, other) = of.iter().find(|(other, _)| other.seed() == run.seed())?;
        Some((at(eval), at(other)))
    });
    let values: Option<Vec<f64>> = pairs.map(|(a, b)| Some(a? - b?)).collect();
    Measured::of(values?).ok()
}

/// Shows a row for each arm and a column for each guidance.
fn shown<F: Fn(f64) -> Option<(f64, Option<f64>, Standing)>>(
    first: &str,
    guidances: &[f64],
    rows: impl Iterator<Item = (String, F)>,
    text: &str,
) -> String {
    let minus = |number: String| number.replace('-', "−");
    let cell = |found: Option<(f64, Option<f64>, Standing)>| {
        let clear = found
            .is_some_and(|(.., standing)| matches!(standing, Standing::Better | Standing::Worse));
        Cell::of(found, |(difference, half, _)| {
            let half = half.map_or(String::new(), |half| format!(" ± {half:.2}"));
            minus(format!("{difference:+.2}{half}"))
        })
        .best(clear)
    };
    let rows: Vec<(String, F)> = rows.collect();
    let in_any = |&&guidance: &&f64| rows.iter().any(|(_, of)| of(guidance).is_some());
    let guidances: Vec<f64> = guidances.iter().filter(in_any).copied().collect();
    if guidances.is_empty() {
        return String::new();
    }
    let columns = guidances.iter().map(|guidance| minus(format!("at guidance {guidance}")));
    let head: Vec<String> = std::iter::once(String::new()).chain(columns).collect();
    let rows: Vec<Vec<Cell>> = rows
        .into_iter()
        .map(|(name, difference)| {
            let cells = guidances.iter().map(|&guidance| cell(difference(guidance)));
            std::iter::once(Cell::new(name)).chain(cells).collect()
        })
        .collect();
    let caption = format!("Fréchet distance minus that of {first}; below zero is better. {text}");
    format!("<h3>Differences from {}</h3>\n", super::html::escape(first))
        + &table("Differences", &head, &rows)
        + &paragraph("caption", &caption)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::SweepPoint;

    fn run(name: &str, seed: u64) -> Run {
        let config = Some(format!("[train]\nseed = {seed}\n"));
        Run { name: name.into(), config, ..Run::default() }
    }

    fn eval(points: &[(f64, f64)]) -> EvalReport {
        let point = |&(guidance, frechet): &(f64, f64)| SweepPoint {
            guidance,
            top_k: None,
            top_p: None,
            frechet: Measured::once(frechet).unwrap(),
            precision: Measured::once(0.5).unwrap(),
            recall: Measured::once(0.5).unwrap(),
            class_accuracy: Measured::once(0.5).unwrap(),
        };
        EvalReport {
            settings: Default::default(),
            floors: Vec::new(),
            points: points.iter().map(point).collect(),
            held_out: None,
            warnings: Vec::new(),
        }
    }

    /// Seeds move both arms alike by far more than the arms differ: only pairs show the difference.
    #[test]
    fn runs_of_one_seed_are_compared_with_each_other() {
        let runs = [run("tf-s0", 0), run("tf-s1", 1), run("sar-s1", 1), run("sar-s0", 0)];
        let evals = [
            eval(&[(0.0, 10.0), (0.5, 20.0)]),
            eval(&[(0.0, 30.0), (0.5, 25.0)]),
            eval(&[(0.0, 28.95)]),
            eval(&[(0.0, 9.05), (0.5, 21.0)]),
        ];
        let of = |i: usize| (&runs[i], &evals[i]);
        let groups = [vec![of(0), of(1)], vec![of(2), of(3)]];
        let found = differences(&groups[1], &groups[0], 0.0).unwrap();
        assert!((found.mean + 1.0).abs() < 1e-9 && found.spread.unwrap() < 0.08, "{found:?}");
        assert!(
            differences(&groups[1], &groups[0], 0.5).is_none(),
            "one of the four was not measured"
        );
        let page = of_groups(&groups, &["tf".into(), "sar".into()]);
        // t = 12.706 for two seeds, a sample deviation of 0.0707: 12.706·0.0707/√2 = 0.64.
        assert!(
            page.contains("Differences from tf") && page.contains("−1.00\u{a0}±\u{a0}0.64"),
            "{page}"
        );
        assert!(page.contains("class=\"best\""), "the interval excludes 0: {page}");
        assert_eq!(of_groups(&groups[..1], &["tf".into()]), "");
    }

    #[test]
    fn arms_that_were_measured_once_have_no_interval() {
        let arm = |name: &str, points: &[(f64, f64)]| Arm {
            name: name.into(),
            sweep: eval(points).points,
            ..Arm::default()
        };
        let page = of_arms(&[arm("a", &[(0.0, 3.0), (1.0, 4.0)]), arm("b", &[(0.0, 3.5)])]);
        assert!(!page.contains("guidance 1"), "of which there is no difference: {page}");
        assert!(page.contains("<td>+0.50</td>") && !page.contains("class=\"best\""), "{page}");
        assert_eq!(of_arms(&[arm("a", &[(0.0, 3.0)])]), "");
    }
}
