//! What a backend gave for recorded tensors, and how far from them it may be.

use crate::support::{assert_close, largest, worst};
use sar_backend_cuda::Storage;
use std::collections::BTreeMap;

/// How many times the error of the CPU backend at the same precision a value may have: another order
/// of the same sums rounds differently, not more. It holds of each tensor and of all together.
const VALUE_FACTOR: f64 = 2.0;
/// As [`VALUE_FACTOR`], of gradients, which pass through every layer twice.
const GRADIENT_FACTOR: f64 = 3.0;
/// Allowed besides, in roundings to storage of the tensor's largest number, for values and gradients: the
/// reference may lie nearer to the recorded value than it usually does, most of all where a tensor is a few
/// numbers, or where all of a model's gradients come through one number that it happened to hit. Of 110
/// random sets of vectors the worst error is 0.81 of what these allow in f32 and 0.87 in bf16. A rounding of
/// f32 is 6e-8, so that 256 are 1.5e-5; TF32 or bf16 in between would be 5e-4 and more.
const F32_FLOORS: [f64; 2] = [16.0, 256.0];
/// As [`F32_FLOORS`]; a rounding of bf16, 2⁻⁸, is much of any error there, so there is less luck. 32 of them are
/// wide, an eighth of a gradient's largest number: what one tensor of 150 in one set of 110 takes; all together are
/// held far nearer.
const BF16_FLOORS: [f64; 2] = [4.0, 32.0];
/// As [`F32_FLOORS`], of the root mean square of all tensors' errors: few are lucky at once. The worst is 0.82.
const F32_MEAN_FLOORS: [f64; 2] = [2.0, 32.0];
/// As [`F32_MEAN_FLOORS`]. The worst is 0.76, of values, and 0.46 of gradients.
const BF16_MEAN_FLOORS: [f64; 2] = [2.0, 2.0];
/// Where a tensor's gradient is smaller than this much of the largest of all, its terms have cancelled
/// (entirely, for a key's bias, which a softmax does not see), and the floor is relative to this.
const CANCELLED: f64 = 1e-2;

/// What storing changes at most, relatively: half a step of the 8 or 24 significant bits at 1.
fn rounding<S: Storage>() -> f64 {
    let steps = (0..64).map(|bits| f32::exp2(-(bits as f32)));
    let kept = steps.take_while(|step| S::store(1.0 + step).load() > 1.0);
    f64::from(kept.last().unwrap_or(1.0)) / 2.0
}

struct Tensor {
    name: String,
    got: Vec<f64>,
    want: Vec<f64>,
    /// Largest difference in f64.
    tolerance: f64,
    gradient: bool,
}

/// A choice that fell on another code than the recorded one.
struct Flip {
    name: String,
    at: usize,
    /// By how much the recorded choice is better, in units of the tensor `of`.
    margin: f64,
    of: String,
}

/// Everything that a backend gave for a group of vectors.
#[derive(Default)]
pub struct Findings {
    tensors: Vec<Tensor>,
    flips: Vec<Flip>,
}

impl Findings {
    /// A value, within `tolerance` in f64.
    pub fn value(
        &mut self,
        name: impl Into<String>,
        got: Vec<f64>,
        want: Vec<f64>,
        tolerance: f64,
    ) {
        self.push(Tensor { name: name.into(), got, want, tolerance, gradient: false });
    }

    /// A gradient, within `tolerance` in f64.
    pub fn gradient(
        &mut self,
        name: impl Into<String>,
        got: Vec<f64>,
        want: Vec<f64>,
        tolerance: f64,
    ) {
        self.push(Tensor { name: name.into(), got, want, tolerance, gradient: true });
    }

    #[track_caller]
    fn push(&mut self, tensor: Tensor) {
        assert_eq!(tensor.got.len(), tensor.want.len(), "{}: length", tensor.name);
        assert!(!tensor.want.is_empty(), "{}: empty", tensor.name);
        self.tensors.push(tensor);
    }

    /// Choices. In f64 they are the recorded ones; below it one may be another code where the two are
    /// nearer to each other than the error allowed in `of`, the tensor that they are chosen from,
    /// puts them: `margin(i, got, want)` is by how much the recorded one is better there.
    pub fn ids(
        &mut self,
        name: impl Into<String>,
        got: &[u32],
        want: &[u32],
        of: &str,
        margin: impl Fn(usize, usize, usize) -> f64,
    ) {
        let name = name.into();
        assert_eq!(got.len(), want.len(), "{name}: length");
        for (at, (&got, &want)) in got.iter().zip(want).enumerate().filter(|(_, (g, w))| g != w) {
            let margin = margin(at, got as usize, want as usize);
            self.flips.push(Flip { name: name.clone(), at, margin, of: of.to_owned() });
        }
    }

    /// Asserts the tolerances of f64, and the recorded ids.
    pub fn assert_recorded(&self) {
        assert!(!self.tensors.is_empty(), "nothing compared");
        for t in &self.tensors {
            assert_close(&t.name, &t.got, &t.want, t.tolerance);
        }
        if let Some(flip) = self.flips.first() {
            panic!("{}: another id at {}, worse by {:e}", flip.name, flip.at, flip.margin);
        }
    }
}

/// The worst of a kind of tensors, as reported.
#[derive(Default)]
struct Worst {
    reference: f64,
    found: f64,
    share: f64,
    name: String,
    /// Relative errors of all, squared.
    squares: Vec<[f64; 2]>,
}

/// Asserts that the errors of `found`, whose activations are stored as S, are at most the factors
/// times those of `reference`, the CPU backend at the same precision, plus the floor; and that ids
/// differ from the recorded ones only where that error may have turned the choice.
pub fn assert_no_worse<S: Storage>(group: &str, found: &Findings, reference: &Findings) {
    assert!(!found.tensors.is_empty(), "{group}: nothing compared");
    let names = |f: &Findings| f.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(found), names(reference), "{group}: tensors");
    let faults = faults::<S>(group, found, reference);
    assert!(faults.is_empty(), "{group}:\n{}", faults.join("\n"));
}

/// A line for each error that is too large; prints the largest, and ids that differ.
fn faults<S: Storage>(group: &str, found: &Findings, reference: &Findings) -> Vec<String> {
    let gradients = found.tensors.iter().filter(|t| t.gradient);
    let cancelled = CANCELLED * gradients.map(|t| largest(&t.want)).fold(0.0, f64::max);
    let (mut faults, mut allowed) = (vec![], BTreeMap::new());
    let (mut values, mut gradients) = (Worst::default(), Worst::default());
    let (floors, mean_floors) = match size_of::<S>() == size_of::<f32>() {
        true => (F32_FLOORS, F32_MEAN_FLOORS),
        false => (BF16_FLOORS, BF16_MEAN_FLOORS),
    };
    for (t, r) in found.tensors.iter().zip(&reference.tensors) {
        let (error, at) = worst(&t.got, &t.want);
        let (usual, _) = worst(&r.got, &r.want);
        let (factor, floor, scale) = match t.gradient {
            false => (VALUE_FACTOR, floors[0], largest(&t.want)),
            true => (GRADIENT_FACTOR, floors[1], largest(&t.want).max(cancelled)),
        };
        let bound = factor * usual + floor * rounding::<S>() * scale;
        allowed.insert(t.name.as_str(), bound);
        if !within(error, bound) {
            let (name, got, want) = (&t.name, t.got[at], t.want[at]);
            faults.push(format!(
                "{name}: differs by {error:e} at {at} ({got} against {want}), the CPU backend by \
                 {usual:e}, allowed {bound:e}"
            ));
        }
        let kind = if t.gradient { &mut gradients } else { &mut values };
        if scale > 0.0 {
            kind.note(&t.name, error / scale, usual / scale, error / bound);
        }
    }
    for Flip { name, at, margin, of } in &found.flips {
        let bound = 2.0 * allowed[of.as_str()];
        let line = format!("{name}: another id at {at}, worse by {margin:e} of {bound:e} in {of}");
        println!("{group}: {line}");
        if !within(*margin, bound) {
            faults.push(line);
        }
    }
    values.say(group, "values");
    gradients.say(group, "gradients");
    faults.extend(values.mean_fault::<S>("values", VALUE_FACTOR, mean_floors[0]));
    faults.extend(gradients.mean_fault::<S>("gradients", GRADIENT_FACTOR, mean_floors[1]));
    faults
}

/// Whether an error is allowed; one that is not finite never is, nor by a bound that is not.
fn within(error: f64, bound: f64) -> bool {
    bound.is_finite() && error <= bound
}

impl Worst {
    fn note(&mut self, name: &str, error: f64, usual: f64, share: f64) {
        self.found = self.found.max(error);
        self.reference = self.reference.max(usual);
        self.squares.push([error * error, usual * usual]);
        if share >= self.share {
            self.share = share;
            name.clone_into(&mut self.name);
        }
    }

    /// A line where all errors together are too large.
    fn mean_fault<S: Storage>(&self, kind: &str, factor: f64, floor: f64) -> Option<String> {
        let mean = |side: usize| {
            let sum: f64 = self.squares.iter().map(|pair| pair[side]).sum();
            (sum / self.squares.len().max(1) as f64).sqrt()
        };
        let (error, usual) = (mean(0), mean(1));
        let bound = factor * usual + floor * rounding::<S>();
        (!within(error, bound)).then(|| {
            format!("all {kind} differ by {error:e} in the mean, the CPU backend by {usual:e}, allowed {bound:e}")
        })
    }

    fn say(&self, group: &str, kind: &str) {
        if !self.name.is_empty() {
            println!(
                "{group}: {kind}: CPU {:.1e}, CUDA {:.1e} of the largest; at most {:.2} of what is \
                 allowed, at {}",
                self.reference, self.found, self.share, self.name
            );
        }
    }
}

/// By how much row `want` of the codebook is nearer to the direction of z than row `got`, in units of
/// z's elements: an error of e in each of K elements, √K·e long, moves the difference of two products
/// with unit rows by at most 2·√K·e.
pub fn code_margin(z: &[f64], codebook: &[f64], got: usize, want: usize) -> f64 {
    let product = |row: usize| -> f64 {
        z.iter().zip(&codebook[row * z.len()..]).map(|(z, code)| z * code).sum()
    };
    (product(want) - product(got)) / (z.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sar_backend_cuda::bf16;

    fn findings(error: f64, flip: Option<f64>) -> Findings {
        let mut found = Findings::default();
        found.value("logits", vec![1.0 + error, -2.0], vec![1.0, -2.0], 0.0);
        found.gradient("grad", vec![1.0 + error, -2.0], vec![1.0, -2.0], 0.0);
        let got = u32::from(flip.is_some());
        found.ids("ids", &[got], &[0], "logits", |_, _, _| flip.unwrap_or_default());
        found
    }

    #[test]
    fn golden_comparison_finds_what_is_too_large() {
        let reference = findings(0.1, None);
        let count = |error: f64, flip| {
            faults::<bf16>("comparison", &findings(error, flip), &reference).len()
        };
        // Half a step of 8 bits, 1/256, of the largest number, 2; a tensor of each kind, so all together
        // are that one, relative to its largest number.
        let bound = |factor: f64, floor: f64| factor * 0.1 + floor / 256.0 * 2.0;
        let value = bound(VALUE_FACTOR, BF16_MEAN_FLOORS[0]);
        assert_eq!(count(0.99 * value, None), 0);
        assert_eq!(count(1.01 * value, None), 1, "the mean of values, not the gradient");
        assert_eq!(count(1.01 * bound(VALUE_FACTOR, BF16_FLOORS[0]), None), 2, "and the value");
        assert_eq!(count(1.01 * bound(GRADIENT_FACTOR, BF16_FLOORS[1]), None), 4);
        assert_eq!(count(f64::NAN, None), 4);
        let margin = 2.0 * bound(VALUE_FACTOR, BF16_FLOORS[0]);
        assert_eq!(count(0.0, Some(0.9 * margin)), 0);
        assert_eq!(count(0.0, Some(1.1 * margin)), 1);
        assert_eq!(rounding::<f32>(), f64::from(f32::EPSILON) / 2.0);
    }

    #[test]
    #[should_panic(expected = "logits: differs")]
    fn golden_comparison_asserts() {
        assert_no_worse::<f32>("comparison", &findings(1e-3, None), &findings(1e-5, None));
    }

    #[test]
    #[should_panic(expected = "another id")]
    fn golden_comparison_keeps_ids_in_f64() {
        findings(0.0, Some(0.0)).assert_recorded();
    }
}
