//! Checks of an op's dimensions that every backend makes at the door, written once.
//!
//! A backend adds checks of its own buffers' lengths ([`ShapeError::at_least`]) and of the ids that
//! it can see. Errors name the op that fails and the operand at fault. Sizes saturate: a product of
//! dimensions that is too large becomes a length that no buffer has.

use super::{ConvDims, EmbeddingDims, GroupNorm, LossDims, MapDims, ShapeError, Slot, TokenSpan};
use crate::ScaleSchedule;
use core::ops::Range;

/// The product of some dimensions; saturates at `usize::MAX`, a length that no buffer has.
#[inline]
pub fn size<const N: usize>(dims: [usize; N]) -> usize {
    dims.into_iter().fold(1, usize::saturating_mul)
}

/// Checks that the vectors of `width` elements that begin at each of `offsets` lie in a row of the
/// modulation matrix, which has `stride` columns.
///
/// # Errors
/// The first vector that does not lie in the row.
pub fn columns(
    op: &'static str,
    width: usize,
    stride: usize,
    offsets: &[usize],
) -> Result<(), ShapeError> {
    offsets.iter().try_for_each(|offset| {
        ShapeError::at_least(op, "ada (columns)", offset.saturating_add(width), stride)
    })
}

/// Checks that a bias takes a gradient only with a branch, whose layer is the one that the bias
/// belongs to.
///
/// # Errors
/// There is a bias but no branch.
pub fn bias_of_branch(
    op: &'static str,
    branch: bool,
    bias: Option<Slot>,
) -> Result<(), ShapeError> {
    let most = usize::from(branch);
    ShapeError::at_least(
        op,
        "bias (only where there is a branch)",
        usize::from(bias.is_some()),
        most,
    )
}

/// Side of the square table of positions `[1, C, side, side]` that fills a slot, where C is
/// `width`.
///
/// # Errors
/// The slot holds no such table.
pub fn table_side(op: &'static str, width: usize, table: Slot) -> Result<usize, ShapeError> {
    let side = table.len.checked_div(width).unwrap_or(0).isqrt().max(1);
    ShapeError::equal(op, "table (width*side*side)", size([width, side, side]), table.len)?;
    Ok(side)
}

/// Number of rows of the class table `[rows, width]` that fills a slot.
///
/// # Errors
/// The slot does not hold a whole number of rows.
pub fn table_rows(op: &'static str, width: usize, table: Slot) -> Result<usize, ShapeError> {
    let rows = table.len.checked_div(width).unwrap_or(0);
    ShapeError::equal(op, "table (rows*width)", size([rows, width]), table.len)?;
    Ok(rows)
}

/// Checks what both directions of the token embedding share; returns the number of words of a
/// sample, which are its tokens other than the class token.
///
/// # Errors
/// The span ends before it starts, or the batch is not a multiple of that of the inputs.
pub fn embedding(op: &'static str, dims: &EmbeddingDims) -> Result<usize, ShapeError> {
    ShapeError::at_least(op, "span (end)", dims.span.start, dims.span.end)?;
    ShapeError::at_least(op, "input_batch", 1, dims.input_batch)?;
    let multiple = dims.batch / dims.input_batch * dims.input_batch;
    ShapeError::equal(op, "batch (a multiple of input_batch)", multiple, dims.batch)?;
    Ok(dims.span.len() - dims.class_tokens())
}

/// Checks the heads of attention; returns the width of all heads together.
///
/// # Errors
/// The number of heads or their size is 0.
pub fn heads(op: &'static str, heads: usize, head_dim: usize) -> Result<usize, ShapeError> {
    ShapeError::at_least(op, "heads", 1, heads)?;
    ShapeError::at_least(op, "head_dim", 1, head_dim)?;
    Ok(size([heads, head_dim]))
}

/// Number of logits of a loss.
///
/// # Errors
/// The vocabulary is empty.
pub fn logits(op: &'static str, dims: &LossDims) -> Result<usize, ShapeError> {
    ShapeError::at_least(op, "vocab", 1, dims.vocab)?;
    Ok(size([dims.batch, dims.schedule.tokens(), dims.vocab]))
}

/// Number of target rows in a sample.
///
/// # Errors
/// The targets end before the logits do.
pub fn target_rows(op: &'static str, dims: &LossDims) -> Result<usize, ShapeError> {
    let needed = dims.schedule.tokens().saturating_add(dims.targets.shift);
    ShapeError::at_least(op, "targets.tokens", needed, dims.targets.tokens)?;
    Ok(dims.targets.tokens)
}

/// Checks that `scales` is a range of the schedule.
///
/// # Errors
/// The range ends beyond the schedule, or before it starts.
pub fn scales(
    op: &'static str,
    schedule: &ScaleSchedule,
    scales: &Range<usize>,
) -> Result<(), ShapeError> {
    ShapeError::at_least(op, "schedule (scales.end)", scales.end, schedule.len())?;
    ShapeError::at_least(op, "scales.end (scales.start)", scales.start, scales.end)
}

/// Number of tokens in a row of the span, and in the selected scales.
///
/// # Errors
/// The scales are not all in the schedule, or not all in the row.
pub fn token_span(op: &'static str, span: &TokenSpan) -> Result<[usize; 2], ShapeError> {
    scales(op, &span.schedule, &span.held)?;
    scales(op, &span.schedule, &span.scales)?;
    ShapeError::at_least(op, "scales.start (held.start)", span.held.start, span.scales.start)?;
    ShapeError::at_least(op, "held.end (scales.end)", span.scales.end, span.held.end)?;
    Ok([span.row(), span.columns().len()])
}

/// Number of elements of x, y and the weights of a convolution.
///
/// # Errors
/// The kernel or stride is 0, or the kernel is larger than the padded map.
pub fn conv(op: &'static str, d: ConvDims) -> Result<[usize; 3], ShapeError> {
    ShapeError::at_least(op, "kernel", 1, d.kernel)?;
    ShapeError::at_least(op, "stride", 1, d.stride)?;
    let pad = d.pad_before.saturating_add(d.pad_after);
    let padded = (d.height.saturating_add(pad), d.width.saturating_add(pad));
    ShapeError::at_least(op, "height with padding (kernel)", d.kernel, padded.0)?;
    ShapeError::at_least(op, "width with padding (kernel)", d.kernel, padded.1)?;
    let (height, width) = d.output();
    Ok([
        size([d.batch, d.inputs, d.height, d.width]),
        size([d.batch, d.outputs, height, width]),
        size([d.outputs, d.inputs, d.kernel, d.kernel]),
    ])
}

/// Number of elements of the moments of a group norm, two for each sample and group.
///
/// # Errors
/// The groups do not divide the channels.
pub fn group_norm(op: &'static str, dims: MapDims, layer: &GroupNorm) -> Result<usize, ShapeError> {
    ShapeError::at_least(op, "groups", 1, layer.groups)?;
    ShapeError::equal(op, "channels % groups", 0, dims.channels % layer.groups)?;
    Ok(size([dims.batch, layer.groups, 2]))
}

/// Number of elements of a map after resizing it to `height`×`width` by areas.
///
/// # Errors
/// A side is 0, before or after resizing.
pub fn resized(
    op: &'static str,
    dims: MapDims,
    (height, width): (usize, usize),
) -> Result<usize, ShapeError> {
    ShapeError::at_least(op, "height", 1, height.min(dims.height))?;
    ShapeError::at_least(op, "width", 1, width.min(dims.width))?;
    Ok(size([dims.batch, dims.channels, height, width]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(error: ShapeError) -> (&'static str, &'static str) {
        (error.op, error.operand)
    }

    #[test]
    fn sizes_saturate() {
        assert_eq!(size([2, 3, 4]), 24);
        assert_eq!(size([usize::MAX, 2, 0]), 0);
        assert_eq!(size([usize::MAX, 2]), usize::MAX);
        let huge = MapDims { batch: usize::MAX, channels: 2, height: 1, width: 1 };
        assert_eq!((huge.len(), resized("op", huge, (1, 1))), (usize::MAX, Ok(usize::MAX)));
    }

    #[test]
    fn columns_lie_in_their_row() {
        assert_eq!(columns("op", 4, 12, &[0, 8]), Ok(()));
        let error = ShapeError { op: "op", operand: "ada (columns)", expected: 13, found: 12 };
        assert_eq!(columns("op", 4, 12, &[0, 9]), Err(error));
        assert!(columns("op", 4, 12, &[usize::MAX]).is_err());
    }

    #[test]
    fn tables_fill_their_slots() {
        let slot = |len| Slot { offset: 0, len };
        assert_eq!((table_side("op", 4, slot(36)), table_rows("op", 4, slot(36))), (Ok(3), Ok(9)));
        assert_eq!(table_side("op", 4, slot(40)).map_err(|e| e.expected), Err(36));
        assert_eq!(table_rows("op", 4, slot(38)).map_err(|e| e.expected), Err(36));
        // A width of 0 divides nothing; the check of the table's size finds it.
        assert!(table_side("op", 0, slot(1)).is_err() && table_rows("op", 0, slot(1)).is_err());
    }

    #[test]
    fn an_embedding_reads_words_and_one_class_token() {
        let dims = |batch, input_batch, span| EmbeddingDims {
            batch,
            input_batch,
            span,
            width: 4,
            channels: 2,
        };
        assert_eq!(embedding("op", &dims(4, 2, 0..5)), Ok(4));
        assert_eq!(embedding("op", &dims(4, 4, 1..5)), Ok(4));
        assert_eq!(embedding("op", &dims(4, 4, 0..0)), Ok(0));
        let operand = |dims| embedding("op", &dims).map_err(|e| e.operand);
        assert_eq!(operand(dims(4, 0, 0..5)), Err("input_batch"));
        assert_eq!(operand(dims(4, 3, 0..5)), Err("batch (a multiple of input_batch)"));
        assert_eq!(operand(dims(4, 4, Range { start: 5, end: 4 })), Err("span (end)"));
    }

    #[test]
    fn attention_has_heads_of_something() {
        assert_eq!(heads("op", 3, 4), Ok(12));
        assert_eq!(heads("op", usize::MAX, 4), Ok(usize::MAX));
        assert_eq!(heads("op", 0, 4).map_err(named), Err(("op", "heads")));
        assert_eq!(heads("op", 3, 0).map_err(named), Err(("op", "head_dim")));
    }

    #[test]
    fn scales_are_a_range_of_the_schedule() {
        let Ok(schedule) = "1_2_3".parse::<ScaleSchedule>() else { unreachable!() };
        assert_eq!(scales("op", &schedule, &(1..3)), Ok(()));
        assert!(scales("op", &schedule, &(1..4)).is_err());
        assert!(scales("op", &schedule, &Range { start: 2, end: 1 }).is_err());
    }

    #[test]
    fn convolutions_and_norms_name_what_is_wrong() {
        let dims = ConvDims {
            batch: 2,
            inputs: 3,
            outputs: 5,
            height: 4,
            width: 6,
            kernel: 3,
            stride: 2,
            pad_before: 0,
            pad_after: 1,
        };
        assert_eq!(conv("op", dims), Ok([144, 60, 135]));
        let fails = |dims| conv("op", dims).map_err(named);
        assert_eq!(fails(ConvDims { stride: 0, ..dims }), Err(("op", "stride")));
        assert_eq!(fails(ConvDims { kernel: 0, ..dims }), Err(("op", "kernel")));
        let endless = ConvDims { pad_after: usize::MAX, kernel: 1, stride: 1, ..dims };
        assert_eq!(conv("op", endless).map(|[_, y, _]| y), Ok(usize::MAX));
        let wide = ConvDims { kernel: 6, ..dims };
        assert_eq!(fails(wide), Err(("op", "height with padding (kernel)")));
        let map = MapDims { batch: 2, channels: 6, height: 1, width: 1 };
        let slot = Slot { offset: 0, len: 6 };
        let layer = |groups| GroupNorm { weight: slot, bias: slot, groups, eps: 1e-6, silu: false };
        assert_eq!(group_norm("op", map, &layer(3)), Ok(12));
        assert_eq!(
            group_norm("op", map, &layer(4)).map_err(named),
            Err(("op", "channels % groups"))
        );
        assert_eq!(group_norm("op", map, &layer(0)).map_err(named), Err(("op", "groups")));
        assert_eq!(resized("op", map, (0, 3)).map_err(named), Err(("op", "height")));
    }
}
