//! Which calls of a sampler may replay what an earlier one recorded.

use crate::model::generator::Generator;
use sar_math::backend::next_replay_key;
use std::collections::HashMap;

/// Keys for `Buffers::replay`: one for each call that issues other ops.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    keys: HashMap<Call, u64>,
    /// Addresses of the weights and of the generator that the keys belong to.
    of: (usize, usize),
}

/// What the ops of a call depend on, of one schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub scale: usize,
    /// Images.
    pub batch: usize,
    /// Images with their unconditional half.
    pub rows: usize,
}

impl Recordings {
    /// The key of a call; those of other weights or another generator are forgotten.
    pub(super) fn key<P>(&mut self, params: &P, generator: &Generator, call: Call) -> u64 {
        let of = (std::ptr::from_ref(params).addr(), std::ptr::from_ref(generator).addr());
        if self.of != of {
            *self = Self { keys: HashMap::new(), of };
        }
        *self.keys.entry(call).or_insert_with(next_replay_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generator::GeneratorShape;

    #[test]
    fn a_key_stands_for_one_call_on_one_set_of_weights() {
        let one = Generator::new(&GeneratorShape::of_depth(1, 8, 4, 2)).unwrap();
        let (other, weights) = (one.clone(), [[0.0f32; 4]; 2]);
        let mut recordings = Recordings::default();
        let call = Call { scale: 0, batch: 2, rows: 4 };
        let first = recordings.key(&weights[0], &one, call);
        let mut drawn = vec![first];
        for (params, generator, call) in [
            (&weights[0], &one, Call { scale: 1, ..call }),
            // As many rows, all conditional.
            (&weights[0], &one, Call { batch: 4, ..call }),
            (&weights[1], &one, call),
            (&weights[1], &other, call),
            (&weights[0], &one, call),
        ] {
            let key = recordings.key(params, generator, call);
            assert!(!drawn.contains(&key), "{call:?}");
            assert_eq!(recordings.key(params, generator, call), key);
            drawn.push(key);
        }
    }
}
