//! Codes that are given, in place of those that were chosen.

use std::ops::Range;

/// Restores the given codes of a span of tokens where they are kept; all are `[b, tokens]`.
pub(crate) fn forward(
    tokens: usize,
    span: Range<usize>,
    kept_bt: &[u32],
    given_bt: &[u32],
    ids_bt: &mut [u32],
) {
    let given = kept_bt.chunks_exact(tokens).zip(given_bt.chunks_exact(tokens));
    for ((kept, given), ids) in given.zip(ids_bt.chunks_exact_mut(tokens)) {
        let given = kept[span.clone()].iter().zip(&given[span.clone()]);
        for (id, (kept, given)) in ids[span.clone()].iter_mut().zip(given) {
            if *kept != 0 {
                *id = *given;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_back_what_is_kept_of_the_span() {
        let mut ids = [0; 10];
        let kept = [1, 0, 7, 1, 1, 1, 1, 0, 0, 0];
        forward(5, 1..4, &kept, &[9, 1, 2, 3, 4, 9, 5, 6, 7, 8], &mut ids);
        assert_eq!(ids, [0, 0, 2, 3, 0, 0, 5, 0, 0, 0]);
    }
}
