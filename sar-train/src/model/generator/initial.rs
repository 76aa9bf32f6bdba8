//! Initial values of a generator's parameters.

use super::Generator;
use rayon::prelude::*;
use sar_math::philox::{Purpose, Stream};

impl Generator {
    /// Returns initial parameters for a seed, as published (`docs/method.md`, initialisation).
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0f32; self.layout().len()];
        let mut rest = values.as_mut_slice();
        let mut at = 0;
        // Tensors in the order of their slots, each with its own part of `values`.
        let parts = self.layout().tensors().iter().enumerate().map(|(index, t)| {
            let (_, from_slot) = std::mem::take(&mut rest).split_at_mut(t.slot.offset - at);
            let (out, after) = from_slot.split_at_mut(t.slot.len);
            (rest, at) = (after, t.slot.end());
            (index, t.name.as_str(), out)
        });
        let parts: Vec<_> = parts.collect();
        // Each tensor has its own random stream, so the bits do not depend on the number of
        // threads.
        parts.into_par_iter().for_each(|(index, name, out)| self.fill(seed, index, name, out));
        values
    }

    /// Fills one tensor with its initial values.
    fn fill(&self, seed: u64, index: usize, name: &str, out: &mut [f32]) {
        let c = self.shape().width;
        let sigma = (1.0 / (3.0 * c as f64)).sqrt();
        if name == "pos_1LC" && self.shape().levels.is_none() {
            sine_positions(out, c, self.shape().pos_side);
        } else if name.contains("scale_mul") {
            out.fill(4f32.ln());
        } else if !name.ends_with("bias") {
            let mut stream = Stream::new(seed, Purpose::Init, index as u64);
            out.iter_mut().for_each(|v| *v = stream.truncated_normal(sigma) as f32);
            self.rescale(name, out);
        }
    }

    /// Applies the factors that the published initialisation puts on some layers.
    fn rescale(&self, name: &str, out: &mut [f32]) {
        let c = self.shape().width;
        let scale = |out: &mut [f32], by: f64| out.iter_mut().for_each(|v| *v *= by as f32);
        if name == "head.weight" {
            scale(out, 0.02);
        } else if name == "head_nm.ada_lin.1.weight" {
            scale(out, 0.5);
        } else if name.ends_with("ada_lin.1.weight") {
            let (gates, others) = out.split_at_mut(2 * c * c);
            scale(gates, self.shape().alng);
            scale(others, 0.5);
        } else if name.ends_with("attn.proj.weight") || name.ends_with("ffn.fc2.weight") {
            scale(out, 1.0 / (2.0 * self.shape().depth as f64).sqrt());
        }
    }
}

/// Channel 2j is sin(y·10000^(−2j/C)), channel 2j+1 is cos(x·10000^(−2j/C)).
fn sine_positions(out: &mut [f32], width: usize, side: usize) {
    for channel in 0..width {
        let even = channel & !1;
        let frequency = (-(10000f64.ln()) * even as f64 / width as f64).exp();
        for y in 0..side {
            for x in 0..side {
                let value = if channel % 2 == 0 {
                    (y as f64 * frequency).sin()
                } else {
                    (x as f64 * frequency).cos()
                };
                out[(channel * side + y) * side + x] = value as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generator::GeneratorShape;

    /// Rounding to f32 of numbers up to 1, and of the arguments of their sines.
    const STORED: f64 = 1e-6;
    /// Tolerance of a sample standard deviation: four of its own deviations, 4/√(2n), for n ≥
    /// 10,000,
    const OF_MANY: f64 = 0.03;
    /// for n = 1,024 and 1,408,
    const OF_A_THOUSAND: f64 = 0.09;
    /// and for n = 128.
    const OF_A_HUNDRED: f64 = 0.25;

    #[test]
    fn initial_values_follow_the_published_recipe() {
        let generator = Generator::new(&GeneratorShape::of_depth(2, 50, 8, 10)).unwrap();
        let values = generator.initial(1);
        assert_eq!(values, generator.initial(1));
        assert_ne!(values, generator.initial(2));
        let of = |name: &str| &values[generator.layout().get(name).unwrap().slot.range()];
        let deviation = |v: &[f32]| {
            (v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / v.len() as f64).sqrt()
        };
        let spread = |name: &str| deviation(of(name));
        let sigma = (1.0f64 / (3.0 * 128.0)).sqrt();
        // With 16k samples or more, the sample deviation lies within 3 % of the true one.
        for (name, factor) in [
            ("blocks.0.attn.mat_qkv.weight", 1.0),
            ("blocks.1.attn.proj.weight", 0.5),
            ("blocks.1.ffn.fc2.weight", 0.5),
            ("head_nm.ada_lin.1.weight", 0.5),
            ("blocks.0.ffn.fc1.weight", 1.0),
            ("head.weight", 0.02),
        ] {
            assert!((spread(name) / (sigma * factor) - 1.0).abs() < OF_MANY, "{name}");
        }
        for name in ["class_emb.weight", "word_embed.weight"] {
            assert!((spread(name) / sigma - 1.0).abs() < OF_A_THOUSAND, "{name}");
        }
        assert!((spread("pos_start") / sigma - 1.0).abs() < OF_A_HUNDRED);
        // γ1 and γ2 first, then scales and shifts.
        let (gates, others) = of("blocks.1.ada_lin.1.weight").split_at(2 * 128 * 128);
        assert!((deviation(gates) / (sigma * 1e-3) - 1.0).abs() < OF_MANY);
        assert!((deviation(others) / (sigma * 0.5) - 1.0).abs() < OF_MANY);
        assert!(of("blocks.1.attn.scale_mul_1H11").iter().all(|&s| s == 4f32.ln()));
        for tensor in generator.layout().tensors().iter().filter(|t| t.name.ends_with("bias")) {
            assert_eq!(spread(&tensor.name), 0.0, "{}", tensor.name);
        }
    }

    /// Channel 2j is sin(y·10000^(−2j/C)), channel 2j+1 cos(x·10000^(−2j/C)).
    #[test]
    fn positions_begin_as_sines_of_rows_and_cosines_of_columns() {
        let shape = GeneratorShape { width: 8, heads: 2, ..GeneratorShape::of_depth(1, 5, 3, 2) };
        let generator = Generator::new(&shape).unwrap();
        let values = generator.initial(1);
        let table = &values[generator.layout().get("pos_1LC").unwrap().slot.range()];
        for (channel, y, x, expected) in [
            (0, 5, 9, 5f64.sin()),
            (1, 5, 9, 9f64.cos()),
            (2, 31, 0, 3.1f64.sin()),
            (3, 0, 7, 0.7f64.cos()),
            (6, 30, 1, 0.03f64.sin()),
            (7, 1, 30, 0.03f64.cos()),
        ] {
            let found = f64::from(table[(channel * 32 + y) * 32 + x]);
            assert!((found - expected).abs() < STORED, "channel {channel}: {found}, {expected}");
        }
    }
}
