//! The codes of one scale as a channel-first map.

use crate::Element;
use core::ops::Range;
use rayon::prelude::*;

/// `map[b, k, h, w]` of the tokens `range` of `ids[b, tokens]`, which have been checked to lie in
/// the codebook.
pub(crate) fn forward<T: Element>(
    tokens: usize,
    range: Range<usize>,
    channels: usize,
    ids_bt: &[u32],
    codebook_vk: &[T],
    map_bkhw: &mut [T],
) {
    let positions = range.len();
    if positions * channels == 0 {
        return;
    }
    let maps = map_bkhw.par_chunks_exact_mut(positions * channels);
    (ids_bt.par_chunks_exact(tokens), maps).into_par_iter().for_each(|(ids, map)| {
        for (p, &id) in ids[range.clone()].iter().enumerate() {
            let code = &codebook_vk[id as usize * channels..][..channels];
            for (c, &value) in code.iter().enumerate() {
                map[c * positions + p] = value;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn channels_come_first() {
        let mut map = [0.0f32; 8];
        let codebook = [1.0, 10.0, 2.0, 20.0];
        super::forward(3, 1..3, 2, &[0, 1, 0, 1, 1, 1], &codebook, &mut map);
        assert_eq!(map, [2.0, 1.0, 20.0, 10.0, 2.0, 2.0, 20.0, 20.0]);
    }
}
