//! AdamW (Loshchilov & Hutter, arXiv 1711.05101), with clipping fused in: one pass over memory.
//!
//! For each element, with g the clipped gradient: p *= 1 − lr·wd; m += (1−β₁)(g − m);
//! v = β₂v + (1−β₂)g²; p −= lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε).

use crate::Element;
use crate::simd::vectorized;
use rayon::prelude::*;
use sar_math::backend::{AdamW, ShapeError, Slot};

/// Elements of one task.
const CHUNK: usize = 1 << 15;
/// Keeps the clip factor finite for a zero gradient; the published value.
const CLIP_EPS: f64 = 1e-6;

/// A run of neighbouring parameters that decay alike.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    from: usize,
    to: usize,
    decays: bool,
}

/// The flat buffers of one step, all of the same layout.
pub(crate) struct State<'a, T> {
    pub grads: &'a [T],
    pub first: &'a mut [T],
    pub second: &'a mut [T],
    pub params: &'a mut [T],
}

/// What the update of an element needs of the hyperparameters.
#[derive(Clone, Copy)]
struct Factors<T> {
    clip: T,
    keep1: T,
    beta2: T,
    keep2: T,
    /// ε·√(1−β₂ᵗ).
    eps: T,
    /// lr·√(1−β₂ᵗ)/(1−β₁ᵗ).
    step_size: T,
}

/// One step of the parameters in `decayed` and `plain`; nothing where `norm` is not finite.
///
/// # Errors
/// Shape, where a slot reaches past the buffers or two slots overlap.
pub(crate) fn forward<T: Element>(
    hyper: &AdamW,
    decayed: &[Slot],
    plain: &[Slot],
    norm: T,
    state: State<'_, T>,
) -> Result<(), ShapeError> {
    let runs = runs(decayed, plain, state.params.len())?;
    if !norm.is_finite() {
        return Ok(());
    }
    let factors = factors::<T>(hyper, norm);
    let decay = T::of(hyper.lr * hyper.weight_decay);
    (
        state.params.par_chunks_mut(CHUNK),
        state.grads.par_chunks(CHUNK),
        state.first.par_chunks_mut(CHUNK),
        state.second.par_chunks_mut(CHUNK),
    )
        .into_par_iter()
        .enumerate()
        .for_each(|(task, (p, g, m, v))| {
            let start = task * CHUNK;
            let end = start + p.len();
            let first = runs.partition_point(|run| run.to <= start);
            for run in runs[first..].iter().take_while(|run| run.from < end) {
                let part = run.from.max(start) - start..run.to.min(end) - start;
                let decay = if run.decays { decay } else { T::zero() };
                let (p, g) = (&mut p[part.clone()], &g[part.clone()]);
                let (m, v) = (&mut m[part.clone()], &mut v[part]);
                vectorized!(update(factors, decay, p, g, m, v));
            }
        });
    Ok(())
}

/// The slots in memory order, with neighbours of the same kind joined.
fn runs(decayed: &[Slot], plain: &[Slot], len: usize) -> Result<Vec<Run>, ShapeError> {
    let of = |slots: &[Slot], decays| -> Result<Vec<Run>, ShapeError> {
        let mut found = Vec::with_capacity(slots.len());
        for slot in slots.iter().filter(|slot| slot.len > 0) {
            let to = slot.offset.saturating_add(slot.len);
            ShapeError::at_least("adamw", "params (slot)", to, len)?;
            found.push(Run { from: slot.offset, to, decays });
        }
        Ok(found)
    };
    let mut sorted = of(decayed, true)?;
    sorted.extend(of(plain, false)?);
    sorted.sort_unstable_by_key(|run| run.from);
    let mut joined: Vec<Run> = Vec::with_capacity(sorted.len());
    for run in sorted {
        match joined.last_mut() {
            Some(last) if run.from < last.to => {
                ShapeError::at_least("adamw", "slot offset (slots overlap)", last.to, run.from)?;
            }
            Some(last) if run.from == last.to && run.decays == last.decays => last.to = run.to,
            _ => joined.push(run),
        }
    }
    Ok(joined)
}

fn factors<T: Element>(hyper: &AdamW, norm: T) -> Factors<T> {
    let step = hyper.step.max(1) as f64;
    let correction1 = 1.0 - hyper.beta1.powf(step);
    let correction2 = 1.0 - hyper.beta2.powf(step);
    let clip =
        if hyper.clip > 0.0 { (hyper.clip / (norm.wide() + CLIP_EPS)).min(1.0) } else { 1.0 };
    Factors {
        clip: T::of(clip),
        keep1: T::of(1.0 - hyper.beta1),
        beta2: T::of(hyper.beta2),
        keep2: T::of(1.0 - hyper.beta2),
        eps: T::of(hyper.eps * correction2.sqrt()),
        step_size: T::of(hyper.lr * correction2.sqrt() / correction1),
    }
}

#[inline(always)]
fn update<T: Element>(f: Factors<T>, decay: T, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * f.clip;
        *m += f.keep1 * (g - *m);
        *v = f.beta2 * *v + f.keep2 * (g * g);
        // Both sides of the fraction are multiplied by √(1−β₂ᵗ), which saves a division.
        let step = f.step_size * (*m / (v.sqrt() + f.eps));
        // Not p·(1 − decay): that factor rounds away most of a small decay in f32.
        *p = (*p - decay * *p) - step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Effect of ε = 1e-8 on a step of 0.1 with gradients of 1.2 and more: 1e-9 at most.
    const EPS_IN_STEP: f64 = 2e-9;

    const HYPER: AdamW = AdamW {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.5,
        step: 1,
        clip: 2.0,
    };

    fn step(norm: f64, decayed: &[Slot], plain: &[Slot]) -> Result<Vec<f64>, ShapeError> {
        let (mut p, mut m, mut v) = (vec![1.0; 4], vec![0.0; 4], vec![0.0; 4]);
        let state =
            State { grads: &[3.0, -4.0, 5.0, 0.0], first: &mut m, second: &mut v, params: &mut p };
        forward(&HYPER, decayed, plain, norm, state).map(|()| p)
    }

    #[test]
    fn first_step_is_the_sign_and_only_decayed_slots_decay() {
        let p = step(5.0, &[Slot { offset: 0, len: 1 }], &[Slot { offset: 1, len: 1 }]).unwrap();
        // After one step m/√v is the gradient's sign, whatever the clipping.
        let want = [1.0 - 0.05 - 0.1, 1.0 + 0.1, 1.0, 1.0];
        for (p, want) in p.iter().zip(want) {
            assert!((p - want).abs() < EPS_IN_STEP, "{p} {want}");
        }
    }

    #[test]
    fn a_norm_that_is_not_finite_changes_nothing() {
        for norm in [f64::NAN, f64::INFINITY] {
            assert_eq!(step(norm, &[Slot { offset: 0, len: 4 }], &[]).unwrap(), [1.0; 4]);
        }
    }

    #[test]
    fn slots_that_overlap_or_reach_past_the_end_are_errors() {
        let slot = |offset, len| Slot { offset, len };
        assert!(step(1.0, &[slot(0, 2)], &[slot(1, 2)]).is_err());
        assert!(step(1.0, &[slot(3, 2)], &[]).is_err());
        assert!(step(1.0, &[slot(usize::MAX, 2)], &[]).is_err());
    }

    #[test]
    fn neighbours_of_a_kind_are_joined_in_any_order() {
        let slot = |offset, len| Slot { offset, len };
        let found = runs(&[slot(5, 5), slot(0, 5)], &[slot(12, 1), slot(10, 2)], 20).unwrap();
        let run = |from, to, decays| Run { from, to, decays };
        assert_eq!(found, [run(0, 10, true), run(10, 13, false)]);
    }
}
