//! `buffers`: allocation, transfer, replay, and the three ops that every backend has.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, refused, shape_error};
use super::verdict::{Mismatch, Report};
use crate::Real;
use crate::backend::{Buffers, next_replay_key};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// `zero_accum`, `copy` and `add` of the first `used` elements of longer buffers.
struct Operands {
    used: usize,
    from: Vec<f64>,
    to: Vec<f64>,
}

impl<B: Buffers> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["zero_accum", "copy", "add"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let (used, len) = (self.used, self.from.len());
        let mut out = Outputs::default();
        let from = rig.activation("from", &self.from[..used])?;
        let mut copied = rig.activation("to of copy", &self.to[..used])?;
        rig.backend.copy(&from, 0, &mut copied, 0, used)?;
        out.push("copied", rig.read("to of copy", &copied, used)?);
        let mut moved = rig.activation("to of copy by one", &self.to[1..used])?;
        rig.backend.copy(&from, 1, &mut moved, 0, used - 1)?;
        out.push("copied from 1 on", rig.read("to of copy by one", &moved, used - 1)?);
        let mut moved = rig.activation("to of copy behind one", &self.to[..used])?;
        rig.backend.copy(&from, 0, &mut moved, 1, used - 1)?;
        out.push("copied to 1 on", rig.read("to of copy behind one", &moved, used)?);
        let mut partly = rig.backend.activation(len)?;
        rig.backend.upload(&hosts::<B>(&self.to), &mut partly, 0)?;
        rig.backend.add(&from, &mut partly, used)?;
        let mut host = vec![B::Host::of(0.0); len];
        rig.backend.download(&partly, 0, &mut host)?;
        out.push("added", wide::<B>(&host));
        let mut added = rig.activation("to of add", &self.to[..used])?;
        rig.backend.add(&from, &mut added, used)?;
        let mut zeroed = rig.accum("accum", &self.from[..used])?;
        rig.backend.zero_accum(&mut zeroed, 0, used)?;
        out.push("zeroed", rig.read_accum("accum", &zeroed, used)?);
        let mut partly = rig.backend.accum(len)?;
        rig.backend.upload_accum(&hosts::<B>(&self.from), &mut partly, 0)?;
        rig.backend.zero_accum(&mut partly, 1, used - 1)?;
        rig.backend.synchronize()?;
        rig.backend.download_accum(&partly, 0, &mut host)?;
        out.push("zeroed in part", wide::<B>(&host));
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let mut added = self.to.clone();
        let mut zeroed = self.from.clone();
        let (from, to) = (&self.from[..self.used], &self.to[..self.used]);
        zeroed[1..self.used].fill(0.0);
        added.iter_mut().zip(&self.from[..self.used]).for_each(|(to, from)| *to += from);
        vec![
            Expected::exact("copied", from.to_vec()),
            Expected::exact("copied from 1 on", from[1..].to_vec()),
            Expected::exact("copied to 1 on", [&to[..1], &from[..from.len() - 1]].concat()),
            Expected::near("added", added),
            Expected::exact("zeroed", vec![0.0; self.used]),
            Expected::exact("zeroed in part", zeroed),
        ]
    }
}

fn hosts<B: Buffers>(values: &[f64]) -> Vec<B::Host> {
    values.iter().map(|&v| B::Host::of(v)).collect()
}

fn wide<B: Buffers>(values: &[B::Host]) -> Vec<f64> {
    values.iter().map(|v| v.wide()).collect()
}

/// Checks one kind of buffer: fresh ones are zero, a transfer moves its range and nothing else, and
/// a range outside the buffer is an error.
macro_rules! transfers {
    ($name:ident, $kind:literal, $allocate:ident, $upload:ident, $download:ident, $element:ty, $of:expr) => {
        fn $name<B: Buffers>(backend: &B, n: &mut Numbers) -> Result<(), Mismatch> {
            let len = n.between(3, 20);
            let (offset, count) = (n.between(0, 2), n.between(1, len - 2));
            let of: fn(f64) -> $element = $of;
            let sent: Vec<$element> = (0..count).map(|_| of(n.value())).collect();
            let round_trip = || -> Result<_, B::Error> {
                let mut buffer = backend.$allocate(len)?;
                let mut fresh = vec![of(1.0); len];
                backend.$download(&buffer, 0, &mut fresh)?;
                backend.$upload(&sent, &mut buffer, offset)?;
                let mut all = vec![of(1.0); len];
                backend.$download(&buffer, 0, &mut all)?;
                let mut part = vec![of(1.0); count];
                backend.$download(&buffer, offset, &mut part)?;
                Ok((buffer, fresh, all, part))
            };
            let (mut buffer, fresh, all, part) = round_trip().map_err(|e| refused($kind, &e))?;
            let mut expected = vec![of(0.0); len];
            let claims = [
                ("fresh elements", fresh == expected),
                ("a part", part == sent),
                ("the whole", {
                    expected[offset..offset + count].copy_from_slice(&sent);
                    all == expected
                }),
            ];
            for (what, holds) in claims {
                if !holds {
                    return Err(Mismatch::outcome(
                        $kind,
                        what,
                        "what was put there",
                        "other values",
                    ));
                }
            }
            let mut host = vec![of(0.0); count];
            for start in [len - count + 1, len + 1, usize::MAX] {
                let outcome = backend.$upload(&sent, &mut buffer, start);
                shape_error(&[stringify!($upload)], "a range outside the buffer", outcome)?;
                let outcome = backend.$download(&buffer, start, &mut host);
                shape_error(&[stringify!($download)], "a range outside the buffer", outcome)?;
            }
            Ok(())
        }
    };
}

transfers!(activations, "activation", activation, upload, download, B::Host, B::Host::of);
transfers!(accums, "accum", accum, upload_accum, download_accum, B::Host, B::Host::of);
transfers!(params, "params", params, upload_params, download_params, B::Host, B::Host::of);
transfers!(ids, "ids", ids, upload_ids, download_ids, u32, |v| (v * v * 1024.0) as u32);

/// Submits two sequences of ops over the same buffers in turn, with new values in each round, each
/// through `give` with its key; returns what the buffers hold after every one of them.
fn two_sequences<B: Buffers>(
    backend: &B,
    rounds: &[Vec<f64>],
    keys: [u64; 2],
    give: impl Fn(u64, &mut dyn FnMut() -> Result<(), B::Error>) -> Result<(), B::Error>,
) -> Result<Vec<f64>, B::Error> {
    let len = rounds.first().map_or(0, Vec::len);
    let (mut x, mut sum) = (backend.activation(len)?, backend.activation(len)?);
    let mut held = Vec::new();
    let mut host = vec![B::Host::of(0.0); len];
    for round in rounds {
        backend.upload(&hosts::<B>(round), &mut x, 0)?;
        give(keys[0], &mut || {
            backend.add(&x, &mut sum, len)?;
            backend.add(&x, &mut sum, len - 1)
        })?;
        backend.download(&sum, 0, &mut host)?;
        held.extend(wide::<B>(&host));
        give(keys[1], &mut || {
            backend.add(&sum, &mut x, len)?;
            backend.copy(&x, 0, &mut sum, 0, len - 1)
        })?;
        for buffer in [&x, &sum] {
            backend.download(buffer, 0, &mut host)?;
            held.extend(wide::<B>(&host));
        }
    }
    Ok(held)
}

/// Checks that sequences of ops give the same bits through `replay` as on their own, whether
/// recorded or not, and the first time or again, and that an error of the work reaches the caller.
fn replays<B: Buffers>(backend: &B, n: &mut Numbers) -> Result<(), Mismatch> {
    let len = n.between(2, 20);
    let rounds: Vec<Vec<f64>> = (0..4).map(|_| n.values(len)).collect();
    let keys = [next_replay_key(), next_replay_key()];
    let plain = two_sequences(backend, &rounds, keys, |_, work| work());
    let plain = plain.map_err(|e| refused("replay", &e))?;
    let replayed = two_sequences(backend, &rounds, keys, |key, work| backend.replay(key, work));
    let replayed = replayed.map_err(|e| refused("replay", &e))?;
    if plain.iter().zip(&replayed).any(|(a, b)| a.to_bits() != b.to_bits()) {
        let what = "the same ops on their own";
        return Err(Mismatch::outcome("replay", what, "the same bits", "other bits"));
    }
    let fails = || -> Result<(), B::Error> {
        let (from, mut to) = (backend.activation(len)?, backend.activation(len)?);
        backend.replay(next_replay_key(), &mut || backend.copy(&from, 0, &mut to, 0, len + 1))
    };
    told_apart(backend, len)?;
    // The error must be that of the op inside.
    shape_error(&["replay", "copy"], "work that fails", fails())
}

/// Checks that weights that live at the same time have different keys, and keep them when their
/// contents change.
fn told_apart<B: Buffers>(backend: &B, len: usize) -> Result<(), Mismatch> {
    let keys = || -> Result<[u64; 3], B::Error> {
        let (mut one, other) = (backend.params(len)?, backend.params(len)?);
        let before = backend.params_key(&one);
        backend.upload_params(&vec![B::Host::of(1.0); len], &mut one, 0)?;
        Ok([before, backend.params_key(&one), backend.params_key(&other)])
    };
    let [before, after, other] = keys().map_err(|e| refused("params_key", &e))?;
    if before == after && before != other {
        return Ok(());
    }
    let what = "keys of weights, before and after an upload, and of others";
    let found = format!("{before}, {after} and {other}");
    Err(Mismatch::outcome("params_key", what, "the same twice, then another", found))
}

fn draw(n: &mut Numbers, used: usize, len: usize) -> Operands {
    Operands { used, from: n.values(len), to: n.values(len) }
}

/// Checks allocation, transfers and their bounds, `replay`, `zero_accum`, `copy` and `add`.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: Buffers>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "buffers", case)?;
    let mut n = case.numbers("buffers");
    activations(backend, &mut n)?;
    accums(backend, &mut n)?;
    params(backend, &mut n)?;
    ids(backend, &mut n)?;
    replays(backend, &mut n)?;
    for offset in [3, usize::MAX] {
        let outside = || backend.zero_accum(&mut backend.accum(4)?, offset, 2);
        shape_error(&["zero_accum"], "a range outside the buffer", outside())?;
    }
    let len = n.between(3, 30);
    let used = n.between(2, len - 1);
    verifier.verify(&draw(&mut n, used, len))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 100,000 elements.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: Buffers>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    repeatable(backend, &draw(&mut case.numbers("buffers"), 99_000, 100_000))
}
