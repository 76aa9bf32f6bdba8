//! The positions of tokens: a table resized to every grid (FlexVAR), or vectors of tokens and of scales (VAR).

use super::{Generator, GeneratorShape};
use crate::params::Layout;
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, Buffers, ShapeError, Slot};

/// Places of the parameters that positions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PositionSlots {
    /// `[1, C, side, side]`, area-resized to every scale.
    Grid(Slot),
    /// `[1, T, C]` for the tokens of the generator's schedule, and `[scales, C]` for its scales.
    Levels { tokens: Slot, scales: Slot },
}

/// Which vectors the tokens of a schedule take, where they are not made from a table.
pub(crate) struct Places<B: Buffers> {
    /// Rows of the tokens' vectors and of the scales', `[t]`.
    tokens: B::Ids,
    scales: B::Ids,
    /// The scales' part, `[t, c]`.
    of_scales: B::Activation,
    /// The schedule that the rows are of.
    of: Option<ScaleSchedule>,
}

impl PositionSlots {
    pub(super) fn lay_out(layout: &mut Layout, shape: &GeneratorShape) -> Self {
        let c = shape.width;
        match &shape.levels {
            None => Self::Grid(layout.push("pos_1LC", &[1, c, shape.pos_side, shape.pos_side])),
            Some(levels) => Self::Levels {
                tokens: layout.push("pos_1LC", &[1, levels.tokens(), c]),
                scales: layout.push("lvl_embed.weight", &[levels.len(), c]),
            },
        }
    }
}

impl Generator {
    /// Room for the places of `tokens` tokens; none where positions come from a table.
    pub(crate) fn places<B: Buffers>(
        &self,
        backend: &B,
        tokens: usize,
    ) -> Result<Option<Places<B>>, B::Error> {
        if self.shape().levels.is_none() {
            return Ok(None);
        }
        let of_scales = backend.activation(tokens * self.shape().width)?;
        let (tokens, scales) = (backend.ids(tokens)?, backend.ids(tokens)?);
        Ok(Some(Places { tokens, scales, of_scales, of: None }))
    }

    /// Positions `pos[t, c]` of the tokens of a schedule.
    pub(crate) fn position<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        schedule: &ScaleSchedule,
        places: &mut Option<Places<B>>,
        pos_lc: &mut B::Activation,
    ) -> Result<(), B::Error> {
        let (width, t) = (self.shape().width, schedule.tokens());
        match (self.positions, places) {
            (PositionSlots::Grid(table), _) => {
                backend.positions(schedule, width, params, table, pos_lc)
            }
            (PositionSlots::Levels { tokens, scales }, Some(places)) => {
                self.place(backend, schedule, places)?;
                backend.class_embedding(t, width, &places.tokens, params, tokens, pos_lc)?;
                let of_scales = &mut places.of_scales;
                backend.class_embedding(t, width, &places.scales, params, scales, of_scales)?;
                backend.add(of_scales, pos_lc, t * width)
            }
            (PositionSlots::Levels { .. }, None) => Err(no_places().into()),
        }
    }

    /// Backward of [`Generator::position`], of the same schedule.
    pub(crate) fn position_backward<B: Backend>(
        &self,
        backend: &B,
        schedule: &ScaleSchedule,
        places: Option<&Places<B>>,
        dpos_lc: &B::Activation,
        grads: &mut B::Accum,
    ) -> Result<(), B::Error> {
        let (width, t) = (self.shape().width, schedule.tokens());
        match (self.positions, places) {
            (PositionSlots::Grid(table), _) => {
                backend.positions_backward(schedule, width, dpos_lc, table, grads)
            }
            (PositionSlots::Levels { tokens, scales }, Some(places)) => {
                let of = [(&places.tokens, tokens), (&places.scales, scales)];
                of.into_iter().try_for_each(|(rows, table)| {
                    backend.class_embedding_backward(t, width, rows, dpos_lc, table, grads)
                })
            }
            (PositionSlots::Levels { .. }, None) => Err(no_places().into()),
        }
    }

    /// Looks up which vectors the tokens of a schedule take, by their grids.
    fn place<B: Backend>(
        &self,
        backend: &B,
        schedule: &ScaleSchedule,
        places: &mut Places<B>,
    ) -> Result<(), B::Error> {
        let Some(levels) = self.shape().levels.as_ref().filter(|_| places.of != Some(*schedule))
        else {
            return Ok(());
        };
        let (mut tokens, mut scales) = (Vec::new(), Vec::new());
        for scale in schedule.scales() {
            let level = levels.scales().iter().position(|level| level == scale);
            let Some(level) = level else {
                let operand = "grids of the schedule (those that there are positions for)";
                return Err(ShapeError { op: "positions", operand, expected: 1, found: 0 }.into());
            };
            tokens.extend(levels.range(level).map(|token| token as u32));
            scales.resize(tokens.len(), level as u32);
        }
        places.of = None;
        backend.upload_ids(&tokens, &mut places.tokens, 0)?;
        backend.upload_ids(&scales, &mut places.scales, 0)?;
        places.of = Some(*schedule);
        Ok(())
    }
}

fn no_places() -> ShapeError {
    ShapeError { op: "positions", operand: "places of the tokens", expected: 1, found: 0 }
}
