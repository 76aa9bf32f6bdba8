//! Says which arm is better, whichever it is.
//!
//! A difference counts as clear if the 95 % interval of the difference of the two means over
//! sampling seeds excludes 0 (Welch's t, which does not assume equal variances of the arms). The
//! interval says nothing about other training seeds, and the text says so.

use super::summary::{Arm, ArmRole, Summary, Verdict};
use crate::eval::SweepPoint;
use crate::metrics::Measured;

/// How one arm compares with another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Standing {
    /// Lower by more than the interval.
    Better,
    /// Higher by more than the interval.
    Worse,
    /// Within the interval.
    NoClearDifference,
    /// Either was measured only once, so that no spread is known.
    SpreadUnknown,
}

/// 97.5 % quantiles of Student's t by degrees of freedom, from 1; beyond the table they decrease by
/// less than 0.09.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// Returns half of the 95 % interval of the difference of two means by Welch's t; `None` if either
/// was measured once.
fn interval(a: &Measured, b: &Measured) -> Option<f64> {
    // Squared standard error of a mean, and its degrees of freedom.
    let of = |m: &Measured| {
        let (spread, count) = (m.spread?, m.values.len() as f64);
        (count > 1.0).then(|| (spread * spread / count, count - 1.0))
    };
    let ((a, of_a), (b, of_b)) = (of(a)?, of(b)?);
    let error = a + b;
    if error == 0.0 {
        return Some(0.0);
    }
    let freedom = error * error / (a * a / of_a + b * b / of_b);
    Some(student(freedom) * error.sqrt())
}

/// Interpolates the quantile between the degrees of freedom of the table, linearly in their
/// inverse. It is a convex function of that, so an interval is never too narrow.
fn student(freedom: f64) -> f64 {
    let freedom = freedom.clamp(1.0, STUDENT.len() as f64);
    let below = (freedom as usize).min(STUDENT.len() - 1);
    let (low, high) = (below as f64, below as f64 + 1.0);
    let part = (1.0 / low - 1.0 / freedom) / (1.0 / low - 1.0 / high);
    STUDENT[below - 1] + part * (STUDENT[below] - STUDENT[below - 1])
}

/// Returns the difference `a − b` of two Fréchet distances, half of its 95 % interval, and how a
/// stands; lower is better.
pub fn compare(a: &Measured, b: &Measured) -> (f64, Option<f64>, Standing) {
    judged(a.mean - b.mean, interval(a, b))
}

/// As [`compare`], of differences that were measured in pairs: their mean, by Student's t.
pub(super) fn compare_pairs(differences: &Measured) -> (f64, Option<f64>, Standing) {
    let count = differences.values.len() as f64;
    let half = differences.spread.map(|spread| student(count - 1.0) * spread / count.sqrt());
    judged(differences.mean, half)
}

/// How a difference stands, of which half of the interval is known or not.
fn judged(difference: f64, half: Option<f64>) -> (f64, Option<f64>, Standing) {
    let standing = match half {
        None => Standing::SpreadUnknown,
        Some(half) if difference.abs() <= half => Standing::NoClearDifference,
        Some(_) if difference < 0.0 => Standing::Better,
        Some(_) => Standing::Worse,
    };
    (difference, half, standing)
}

/// Returns the verdict on the refined arm compared with the control arm of a summary.
///
/// If either is missing or was not measured, the text says that there is no verdict, and why.
pub fn verdict(summary: &Summary) -> Verdict {
    let find = |role| summary.arms.iter().find(|a| a.role == role);
    let (Some(control), Some(refined)) = (find(ArmRole::Control), find(ArmRole::Refined)) else {
        return no_verdict("the run has no pair of a control arm and a refined arm");
    };
    let (Some(best_control), Some(best_refined)) = (control.best(), refined.best()) else {
        return no_verdict("an arm was not measured");
    };
    let mut details = vec![
        at_best(control, best_control, refined, best_refined),
        at_equal_guidance(control, refined),
    ];
    details.extend(at_edge(control, best_control));
    details.extend(at_edge(refined, best_refined));
    details.extend(heldout(control, refined));
    details.push(
        "± of a difference is its 95 % interval over sampling seeds (Welch's t), of a number its sample standard \
         deviation over them, of one training run per arm: another training seed may move the arms by more, and of \
         twenty guidance values one would seem clear by chance. The best guidance was picked on the same images that \
         it is reported for, in both arms alike."
            .into(),
    );
    Verdict { headline: headline(control, best_control, refined, best_refined), details }
}

fn no_verdict(why: &str) -> Verdict {
    Verdict { headline: format!("No verdict: {why}."), details: Vec::new() }
}

fn headline(control: &Arm, c: &SweepPoint, refined: &Arm, r: &SweepPoint) -> String {
    let (difference, spread, standing) = compare(&r.frechet, &c.frechet);
    let percent = relative(difference, c.frechet.mean);
    let signed = signed(difference);
    let spread = spread.map(|spread| format!(" ± {spread:.2}")).unwrap_or_default();
    let by = format!("Fréchet distance {signed}{spread}, {percent}");
    let (name, other) = (&refined.name, &control.name);
    match standing {
        Standing::Better => {
            format!("{name} is better than {other}, each at its best guidance ({by}).")
        }
        Standing::Worse => {
            format!("{name} is worse than {other}, each at its best guidance ({by}).")
        }
        Standing::NoClearDifference => format!(
            "No clear difference between {name} and {other}, each at its best guidance ({by})."
        ),
        Standing::SpreadUnknown => format!(
            "{name} measures {} than {other}, each at its best guidance ({by}), but with one \
             sampling seed the spread is unknown, so this is not a clear difference.",
            if difference < 0.0 { "lower" } else { "no lower" }
        ),
    }
}

fn at_best(control: &Arm, c: &SweepPoint, refined: &Arm, r: &SweepPoint) -> String {
    let one = |arm: &Arm, p: &SweepPoint| {
        format!(
            "{} reaches Fréchet distance {} at guidance {} (precision {}, recall {}, class \
             accuracy {})",
            arm.name,
            p.frechet.text(2),
            plain(p.guidance),
            p.precision.text(3),
            p.recall.text(3),
            p.class_accuracy.text(3)
        )
    };
    format!("At its best guidance {}; {}.", one(refined, r), one(control, c))
}

/// Groups the guidance values at which both arms were measured by which arm is better there.
fn at_equal_guidance(control: &Arm, refined: &Arm) -> String {
    let (mut better, mut worse, mut same, mut unknown) = (vec![], vec![], vec![], vec![]);
    for r in &refined.sweep {
        let Some(c) = control.at(r.guidance) else { continue };
        let (difference, spread, standing) = compare(&r.frechet, &c.frechet);
        let percent = relative(difference, c.frechet.mean);
        let signed = signed(difference);
        let entry = match spread {
            Some(s) => format!("{} ({signed} ± {s:.2}, {percent})", plain(r.guidance)),
            None => format!("{} ({signed}, {percent})", plain(r.guidance)),
        };
        match standing {
            Standing::Better => better.push(entry),
            Standing::Worse => worse.push(entry),
            Standing::NoClearDifference => same.push(entry),
            Standing::SpreadUnknown => unknown.push(entry),
        }
    }
    let groups = [
        ("better at", better),
        ("worse at", worse),
        ("not clearly different at", same),
        ("of unknown spread (one seed) at", unknown),
    ];
    let parts: Vec<String> = groups
        .iter()
        .filter(|(_, entries)| !entries.is_empty())
        .map(|(words, entries)| format!("{words} {}", entries.join(", ")))
        .collect();
    if parts.is_empty() {
        return "The arms share no guidance value, so they cannot be compared at equal guidance."
            .into();
    }
    format!(
        "At equal guidance, Fréchet distance of {} minus {}: {}.",
        refined.name,
        control.name,
        parts.join("; ")
    )
}

/// Says so if the best guidance is at the edge of the sweep, since the true best may lie outside.
fn at_edge(arm: &Arm, best: &SweepPoint) -> Option<String> {
    let first = arm.sweep.first()?.guidance;
    let last = arm.sweep.last()?.guidance;
    let outermost = best.guidance <= first || best.guidance >= last;
    (arm.sweep.len() > 1 && outermost).then(|| {
        format!(
            "The best guidance of {} ({}) is at the edge of the sweep ({} to {}); a wider sweep may find a better one.",
            arm.name,
            plain(best.guidance),
            plain(first),
            plain(last)
        )
    })
}

fn heldout(control: &Arm, refined: &Arm) -> Option<String> {
    let (c, r) = (control.heldout_loss?, refined.heldout_loss?);
    Some(format!(
        "Held-out teacher-forcing loss: {} {r:.3}, {} {c:.3} ({}).",
        refined.name,
        control.name,
        relative(r - c, c)
    ))
}

/// Formats a number unrounded, with a minus sign.
fn plain(value: f64) -> String {
    value.to_string().replace('-', "−")
}

/// Formats a difference: `−2.20`.
fn signed(difference: f64) -> String {
    format!("{difference:+.2}").replace('-', "−")
}

/// Formats a relative difference: `−3.1 %`, or `0.0 %` if it rounds to that.
fn relative(difference: f64, of: f64) -> String {
    let percent = 100.0 * difference / of;
    match percent {
        p if !p.is_finite() => "not comparable in percent".into(),
        p if p.abs() < 0.05 => "0.0 %".into(),
        p => format!("{}{:.1} %", if p < 0.0 { "−" } else { "+" }, p.abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(name: &str, role: ArmRole, points: &[(f64, &[f64])]) -> Arm {
        let sweep = points
            .iter()
            .map(|(guidance, frechet)| SweepPoint {
                guidance: *guidance,
                top_k: None,
                top_p: None,
                frechet: Measured::of(frechet.to_vec()).unwrap(),
                precision: Measured::once(0.2).unwrap(),
                recall: Measured::once(0.7).unwrap(),
                class_accuracy: Measured::once(0.9).unwrap(),
            })
            .collect();
        Arm { name: name.into(), role, sweep, ..Arm::default() }
    }

    fn judged(control: &[(f64, &[f64])], refined: &[(f64, &[f64])]) -> Verdict {
        let arms = vec![
            arm("more teacher forcing", ArmRole::Control, control),
            arm("SAR", ArmRole::Refined, refined),
        ];
        verdict(&Summary { arms, ..Summary::default() })
    }

    #[test]
    fn it_can_turn_out_either_way() {
        let low: &[(f64, &[f64])] =
            &[(0.0, &[40.0, 41.0]), (0.5, &[30.0, 31.0]), (1.0, &[45.0, 44.0])];
        let high: &[(f64, &[f64])] =
            &[(0.0, &[50.0, 51.0]), (0.5, &[40.0, 41.0]), (1.0, &[44.6, 44.6])];
        let better = judged(high, low);
        assert!(better.headline.starts_with("SAR is better"), "{}", better.headline);
        let worse = judged(low, high);
        assert!(worse.headline.starts_with("SAR is worse"), "{}", worse.headline);
        assert!(worse.details[1].contains("worse at 0 (+10.00 ± 3.04"), "{}", worse.details[1]);
        assert!(worse.details[1].contains("not clearly different at 1 ("), "{}", worse.details[1]);
    }

    #[test]
    fn the_interval_is_welchs() {
        let of = |values: &[f64]| Measured::of(values.to_vec()).unwrap();
        // Spreads 1 and 3 of three values each: √(10/3), with (1/3+3)²/((1/9+9)/2) = 2.44 degrees
        // of freedom.
        let (wide, narrow) = (of(&[7.0, 10.0, 13.0]), of(&[1.0, 2.0, 3.0]));
        let half = interval(&narrow, &wide).unwrap();
        // The quantile for 2.44 degrees is 3.66, between 4.303 for two and 3.182 for three.
        let quantile = half / (10.0f64 / 3.0).sqrt();
        assert!((3.66..3.75).contains(&quantile), "{quantile}");
        assert_eq!(
            (student(1.0), student(2.0), student(30.0), student(1e9)),
            (12.706, 4.303, 2.042, 2.042)
        );
        assert!((student(4.0 - 1e-15) - 2.776).abs() < 1e-9);
        assert_eq!(interval(&of(&[1.0, 1.0]), &of(&[2.0, 2.0])), Some(0.0));
        assert_eq!(interval(&of(&[1.0]), &narrow), None);
        // A difference larger than the spread of one draw, which still occurs by chance once in six
        // times.
        assert_eq!(
            compare(&of(&[1.0, 2.0, 3.0]), &of(&[2.5, 3.5, 4.5])).2,
            Standing::NoClearDifference
        );
    }

    #[test]
    fn a_difference_within_the_spread_is_none() {
        let found = judged(&[(0.0, &[40.0, 42.0])], &[(0.0, &[39.0, 42.0])]);
        assert!(found.headline.starts_with("No clear difference"), "{}", found.headline);
        let once = judged(&[(0.0, &[40.0])], &[(0.0, &[30.0])]);
        assert!(once.headline.contains("spread is unknown"), "{}", once.headline);
    }

    #[test]
    fn a_best_at_the_edge_of_the_sweep_is_said() {
        let found = judged(
            &[(0.0, &[40.0, 41.0]), (0.5, &[30.0, 31.0]), (1.0, &[50.0, 51.0])],
            &[(0.0, &[40.0, 41.0]), (0.5, &[39.0, 38.0]), (1.0, &[30.0, 31.0])],
        );
        let edges: Vec<_> = found.details.iter().filter(|d| d.contains("edge")).collect();
        assert_eq!(edges.len(), 1);
        assert!(edges[0].contains("SAR (1)"), "{}", edges[0]);
    }

    #[test]
    fn without_a_pair_there_is_no_verdict() {
        assert!(verdict(&Summary::default()).headline.starts_with("No verdict"));
        assert!(judged(&[], &[]).headline.contains("not measured"));
        let apart = judged(&[(0.0, &[1.0, 2.0])], &[(1.0, &[1.0, 2.0])]);
        assert!(apart.details[1].contains("share no guidance"), "{}", apart.details[1]);
    }
}
