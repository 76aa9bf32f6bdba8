//! Which calls of a sampler may replay what an earlier one recorded.

use crate::model::generator::GeneratorShape;
use sar_math::backend::next_replay_key;
use std::collections::HashMap;

/// Keys for `Buffers::replay`, one for each call that issues different ops.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    keys: HashMap<Call, u64>,
    /// The weights (`Buffers::params_key`) and the generator that the keys belong to.
    of: Option<(u64, GeneratorShape)>,
}

/// What the ops of a call depend on, within one schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub scale: usize,
    /// Images.
    pub batch: usize,
    /// Images together with their unconditional half.
    pub rows: usize,
}

impl Recordings {
    /// Returns the key of a call; keys of other weights or of another generator are forgotten.
    pub(super) fn key(&mut self, params: u64, generator: &GeneratorShape, call: Call) -> u64 {
        if self.of.as_ref().is_none_or(|(p, g)| (*p, g) != (params, generator)) {
            *self = Self { keys: HashMap::new(), of: Some((params, generator.clone())) };
        }
        *self.keys.entry(call).or_insert_with(next_replay_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_for_one_call_on_one_set_of_weights() {
        let one = GeneratorShape::of_depth(1, 8, 4, 2);
        // The same number of weights, with other heads.
        let other = GeneratorShape { heads: 2, ..one.clone() };
        let mut recordings = Recordings::default();
        let call = Call { scale: 0, batch: 2, rows: 4 };
        let first = recordings.key(5, &one, call);
        let mut drawn = vec![first];
        for (params, generator, call) in [
            (5, &one, Call { scale: 1, ..call }),
            // The same number of rows, all of them conditional.
            (5, &one, Call { batch: 4, ..call }),
            (6, &one, call),
            (6, &other, call),
            (5, &one, call),
        ] {
            let key = recordings.key(params, generator, call);
            assert!(!drawn.contains(&key), "{call:?}");
            assert_eq!(recordings.key(params, generator, call), key);
            drawn.push(key);
        }
    }
}
