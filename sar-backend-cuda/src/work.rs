//! What a launch moves and computes, and how long it took: the rows of a roofline table.

use std::collections::BTreeMap;

/// The least that a launch has to move and compute, whatever else its kernel does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes read and written, each counted once.
    pub bytes: u64,
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
}

/// Totals of all launches of one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// The kernel, or the shape of a product.
    pub name: String,
    /// Number of launches.
    pub calls: u64,
    /// Total seconds on the device; 0 if the device does not measure time.
    pub seconds: f64,
    /// Total work; a kernel that does not state its work counts as 0.
    pub work: Work,
}

/// Adds up launches by name.
#[derive(Debug, Default)]
pub(crate) struct Tallies(BTreeMap<String, Tally>);

impl Tallies {
    pub(crate) fn add(&mut self, name: &str, work: Work, seconds: f64) {
        let tally = self.0.entry(name.to_owned()).or_default();
        tally.calls += 1;
        tally.seconds += seconds;
        tally.work.bytes += work.bytes;
        tally.work.flops += work.flops;
    }

    /// Returns the tallies, from most time to least.
    pub(crate) fn finish(self) -> Vec<Tally> {
        let named = self.0.into_iter().map(|(name, tally)| Tally { name, ..tally });
        let mut tallies: Vec<Tally> = named.collect();
        tallies.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        tallies
    }
}
