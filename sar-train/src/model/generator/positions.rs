//! Token positions: a table resized to every grid (FlexVAR), or vectors per token and per scale
//! (VAR).

use super::{Generator, GeneratorShape};
use crate::params::Layout;
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, Buffers, ShapeError, Slot};

/// Slots of the parameters that positions are computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PositionSlots {
    /// `[1, C, side, side]`, area-resized to every scale.
    Grid(Slot),
    /// `[1, T, C]` for the tokens of the generator's schedule and `[scales, C]` for its scales.
    Levels { tokens: Slot, scales: Slot },
}

/// The vectors that the tokens of a schedule use, if positions do not come from a resized table.
pub(crate) struct Places<B: Buffers> {
    /// Row of each token's own vector and of its scale's vector, `[t]`.
    tokens: B::Ids,
    scales: B::Ids,
    /// The contribution of the scales, `[t, c]`.
    of_scales: B::Activation,
    /// The schedule that the rows were looked up for.
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
    /// Allocates places for `tokens` tokens; `None` if positions come from a table.
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

    /// Computes the positions `pos[t, c]` of the tokens of a schedule.
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

    /// Backward of [`Generator::position`] for the same schedule.
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

    /// Looks up the vectors that the tokens of a schedule use, matching scales by their grids.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generator::GeneratorShape;
    use sar_backend_cpu::{Buffer, CpuBackend};

    const WIDTH: usize = 4;

    fn generator() -> Generator {
        let levels = Some(ScaleSchedule::from_sides(&[1, 2, 3]).unwrap());
        let shape = GeneratorShape::of_depth(1, 5, 3, 2);
        Generator::new(&GeneratorShape { width: WIDTH, heads: 2, levels, ..shape }).unwrap()
    }

    /// Each token takes its own vector and its scale's, even for a part of the scales, and both get
    /// gradients.
    #[test]
    fn tokens_of_some_scales_have_their_own_vectors_and_their_scales() {
        let (b, g) = (CpuBackend::<f64>::new(), generator());
        let mut params: Buffer<f64> = b.params(g.layout().len()).unwrap();
        let values: Vec<f64> = (0..g.layout().len()).map(|i| i as f64).collect();
        b.upload_params(&values, &mut params, 0).unwrap();
        let of = |name: &str, row: usize| {
            let slot = g.layout().get(name).unwrap().slot;
            values[slot.range()][row * WIDTH..][..WIDTH].to_vec()
        };
        let mut places = g.places(&b, 14).unwrap();
        for (sides, rows) in [
            (&[1, 2, 3][..], (0..14).zip([0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]).collect()),
            (&[1, 3], (5..14).map(|token| (token, 2)).collect::<Vec<_>>()),
        ] {
            let rows: Vec<(usize, usize)> = match sides {
                [1, 3] => [(0, 0)].into_iter().chain(rows).collect(),
                _ => rows,
            };
            let schedule = ScaleSchedule::from_sides(sides).unwrap();
            let mut pos = b.activation(14 * WIDTH).unwrap();
            g.position(&b, &params, &schedule, &mut places, &mut pos).unwrap();
            for (found, &(token, scale)) in pos.as_slice().chunks(WIDTH).zip(&rows) {
                let (token, scale) = (of("pos_1LC", token), of("lvl_embed.weight", scale));
                let both: Vec<f64> = token.iter().zip(&scale).map(|(a, b)| a + b).collect();
                assert_eq!(found, both);
            }
            let mut grads = b.accum(g.layout().len()).unwrap();
            g.position_backward(&b, &schedule, places.as_ref(), &pos, &mut grads).unwrap();
            let scales = g.layout().get("lvl_embed.weight").unwrap().slot;
            let last = &grads.as_slice()[scales.range()][2 * WIDTH..];
            let of_last = rows.iter().zip(pos.as_slice().chunks(WIDTH)).filter(|(r, _)| r.1 == 2);
            assert_eq!(last[0], of_last.map(|(_, pos)| pos[0]).sum::<f64>());
        }
        let other = ScaleSchedule::from_sides(&[1, 4]).unwrap();
        let mut pos = b.activation(17 * WIDTH).unwrap();
        assert!(g.position(&b, &params, &other, &mut places, &mut pos).is_err());
    }

    /// They are initialised like matrices, and do not decay.
    #[test]
    fn vectors_begin_at_random_and_do_not_decay() {
        let g = generator();
        let values = g.initial(1);
        for name in ["pos_1LC", "lvl_embed.weight"] {
            let tensor = g.layout().get(name).unwrap();
            assert!(!tensor.decay, "{name}");
            let largest = values[tensor.slot.range()].iter().fold(0f32, |m, v| m.max(v.abs()));
            // Fewer than 60 draws of a normal with σ = √(1/12).
            assert!(largest > 0.2 && largest < 1.5, "{name}: {largest}");
        }
    }
}
