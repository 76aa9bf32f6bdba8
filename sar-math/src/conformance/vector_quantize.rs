//! `vector_quantize`: straight-through quantisation of normalised positions.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::{dot, norm, normalised};
use super::nearest_code::{axes, nearest};
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::{MapDims, QuantizeWeights, Slot, TokenizerOps};
use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    dims: MapDims,
    vocab: usize,
    z: Vec<f64>,
    layout: Layout,
    codebook: Slot,
    d_quantized: Vec<f64>,
    weights: QuantizeWeights,
    /// Whether no position is zero.
    differentiable: bool,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: MapDims, vocab: usize, weights: QuantizeWeights) -> Self {
        let (channels, places) = (dims.channels, dims.height * dims.width);
        let mut codebook = Vec::new();
        while codebook.len() < vocab * channels {
            let row = n.values(channels);
            if !codebook.is_empty() && n.between(0, 3) == 0 {
                codebook.extend_from_within(..channels);
            } else if norm(&row, 0.0) > 0.25 {
                codebook.extend(row);
            }
        }
        let unit: Vec<f64> = codebook.chunks(channels).flat_map(normalised).collect();
        let mut layout = Layout::default();
        let codebook = layout.push(n, &codebook);
        let mut z = vec![0.0; dims.len()];
        for place in 0..dims.batch * places {
            let vector = loop {
                let vector = n.values(channels);
                if norm(&vector, 0.0) > 0.25 && nearest(&vector, &unit).1 {
                    break vector;
                }
            };
            for (c, value) in vector.into_iter().enumerate() {
                z[(place / places * channels + c) * places + place % places] = value;
            }
        }
        let d_quantized = n.values(dims.len());
        Self { dims, vocab, z, layout, codebook, d_quantized, weights, differentiable: true }
    }

    /// A map as positions: `[b·h·w, channels]`.
    fn positions(&self, map: &[f64]) -> Vec<Vec<f64>> {
        let MapDims { batch, channels, height, width } = self.dims;
        let places = height * width;
        let at =
            |place: usize, c: usize| map[(place / places * channels + c) * places + place % places];
        let position = |place| (0..channels).map(|c| at(place, c)).collect();
        (0..batch * places).map(position).collect()
    }

    /// Positions as a map.
    fn map(&self, positions: &[Vec<f64>]) -> Vec<f64> {
        let MapDims { batch, channels, height, width } = self.dims;
        let places = height * width;
        let mut map = Vec::with_capacity(self.z.len());
        for b in 0..batch {
            for c in 0..channels {
                map.extend((0..places).map(|place| positions[b * places + place][c]));
            }
        }
        map
    }

    fn unit_codes(&self, codebook: &[f64]) -> Vec<f64> {
        codebook.chunks(self.dims.channels).flat_map(normalised).collect()
    }

    fn ids(&self) -> Vec<usize> {
        let codes = self.unit_codes(&self.layout.get(self.codebook));
        self.positions(&self.z).iter().map(|z| nearest(z, &codes).0).collect()
    }

    /// The chosen codes as a map.
    fn chosen(&self, codebook: &[f64]) -> Vec<f64> {
        let codes = self.unit_codes(codebook);
        let code = |&id: &usize| codes[id * self.dims.channels..][..self.dims.channels].to_vec();
        self.map(&self.ids().iter().map(code).collect::<Vec<_>>())
    }

    /// ẑ as a map.
    fn unit_z(&self, z: &[f64]) -> Vec<f64> {
        self.map(&self.positions(z).iter().map(|z| normalised(z)).collect::<Vec<_>>())
    }
}

fn mean_square(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / a.len() as f64
}

impl<B: TokenizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["vector_quantize"]
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let (dims, vocab, len) = (self.dims, self.vocab, self.z.len());
        let places = dims.batch * dims.height * dims.width;
        let mut out = Outputs::default();
        let z = rig.activation("z", &self.z)?;
        let params = rig.params("params", &self.layout.values)?;
        let mut ids = rig.blank_ids("ids", places)?;
        let mut quantized = rig.blank("quantized", len)?;
        let mut distance = rig.blank_accum("distance", 1)?;
        rig.backend.vector_quantize(
            dims,
            vocab,
            &z,
            &params,
            self.codebook,
            &mut ids,
            &mut quantized,
            &mut distance,
        )?;
        let chosen = rig.read_ids("ids", &ids, places)?;
        let chosen_ids: Vec<u32> = chosen.iter().map(|&id| id as u32).collect();
        out.push("ids", chosen);
        out.push("quantized", rig.read("quantized", &quantized, len)?);
        out.push("distance", rig.read_accum("distance", &distance, 1)?);

        let d_quantized = rig.activation("d_quantized", &self.d_quantized)?;
        let z = rig.activation("z of backward", &self.z)?;
        let ids = rig.ids("ids of backward", &chosen_ids)?;
        let params = rig.params("params of backward", &self.layout.values)?;
        let mut dz = rig.blank("dz", len)?;
        let mut grads = rig.accum("grads", start)?;
        rig.backend.vector_quantize_backward(
            dims,
            vocab,
            &d_quantized,
            &z,
            &ids,
            &params,
            self.codebook,
            self.weights,
            &mut dz,
            &mut grads,
        )?;
        out.push("z", rig.read("dz", &dz, len)?);
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let chosen = self.chosen(&self.layout.get(self.codebook));
        let distance = mean_square(&self.unit_z(&self.z), &chosen);
        vec![
            Expected::exact("ids", self.ids().iter().map(|&id| id as f64).collect()),
            Expected::near("quantized", chosen),
            Expected::near("distance", vec![distance]),
        ]
    }

    fn variables(&self) -> Vec<Variable> {
        if !self.differentiable {
            return Vec::new();
        }
        vec![
            Variable::activation("z", &self.z),
            Variable::parameter("the codebook", &self.layout, self.codebook),
        ]
    }

    /// Each term moves one operand; its other side is held constant, as by the stop-gradient.
    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        let (z, fixed_z) = (self.unit_z(&at[0]), self.unit_z(&self.z));
        let (codes, fixed_codes) =
            (self.chosen(&at[1]), self.chosen(&self.layout.get(self.codebook)));
        dot(&self.d_quantized, &z)
            + self.weights.commitment * mean_square(&z, &fixed_codes)
            + self.weights.codebook * mean_square(&fixed_z, &codes)
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    /// Vectors are at least a quarter long.
    fn amplification(&self) -> f64 {
        4.0
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let len = self.z.len() / self.dims.batch;
        let cut = |all: &[f64]| all[row * len..][..len].to_vec();
        Some(Self {
            dims: MapDims { batch: 1, ..self.dims },
            z: cut(&self.z),
            d_quantized: cut(&self.d_quantized),
            ..self.clone()
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["ids", "quantized"]
    }
}

/// Checks `vector_quantize` and its backward: each loss alone and both, repeated codes, codes that
/// nothing chooses, a zero position.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TokenizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "vector_quantize", case)?;
    let mut n = case.numbers("vector_quantize");
    // The means divide by the number of elements: weights of its order make terms of order 1.
    for (codebook, commitment) in [(0.0, 0.0), (20.0, 0.0), (0.0, 20.0), (16.0, 4.0)] {
        let dims = MapDims {
            batch: n.between(1, 2),
            channels: n.between(2, 4),
            height: n.between(1, 2),
            width: n.between(1, 3),
        };
        let vocab = n.between(1, 7);
        let weights = QuantizeWeights { codebook, commitment };
        verifier.verify(&Operands::draw(&mut n, dims, vocab, weights))?;
    }
    let dims = MapDims { batch: 1, channels: 3, height: 1, width: 2 };
    let weights = QuantizeWeights { codebook: 1.0, commitment: 0.25 };
    // Zero is equally far from all codes, and exactly so where the codes lie on the axes.
    let mut zero = Operands::draw(&mut n, dims, 3, weights);
    zero.layout.values[zero.codebook.range()].copy_from_slice(&axes(3));
    zero.z = [0.0, -1.0, 0.0, 0.5, 0.0, 0.25].to_vec();
    zero.differentiable = false;
    verifier.verify(&zero)?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 maps of 16×12×10, 256 codes.
///
/// # Errors
/// A second run, or a map on its own, gives other bits.
pub fn fingerprint<B: TokenizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = MapDims { batch: 3, channels: 16, height: 12, width: 10 };
    let weights = QuantizeWeights { codebook: 1.0, commitment: 0.25 };
    let mut n = case.numbers("vector_quantize");
    repeatable(backend, &Operands::draw(&mut n, dims, 256, weights))
}
