//! Adapting a trained generator to other classes.

use super::{Generator, GeneratorError, GeneratorShape};

impl Generator {
    /// Returns this generator and its `weights` changed to `rows.len()` classes.
    ///
    /// Row i of the new class table is row `rows[i]` of the old one, or, where `rows[i]` is `None`
    /// or not a class, an initial value drawn with `seed`. The unconditional row and all other
    /// weights are kept.
    ///
    /// # Errors
    /// `rows` is empty, or the number of weights is not that of the layout.
    pub fn with_classes(
        &self,
        weights: &[f32],
        rows: &[Option<usize>],
        seed: u64,
    ) -> Result<(Self, Vec<f32>), GeneratorError> {
        let (found, expected) = (weights.len(), self.layout().len());
        if found != expected {
            return Err(GeneratorError::Weights { found, expected });
        }
        let (classes, width) = (self.shape().classes, self.shape().width);
        let other = Self::new(&GeneratorShape { classes: rows.len(), ..self.shape().clone() })?;
        let mut values = other.initial(seed);
        for tensor in self.layout().tensors().iter().filter(|t| t.slot != self.class_emb) {
            if let Some(to) = other.layout().get(&tensor.name) {
                values[to.slot.range()].copy_from_slice(&weights[tensor.slot.range()]);
            }
        }
        let table = &weights[self.class_emb.range()];
        let kept = rows.iter().enumerate().filter_map(|(to, from)| Some((to, (*from)?)));
        let kept = kept.filter(|&(_, from)| from < classes).chain([(rows.len(), classes)]);
        let new = &mut values[other.class_emb.range()];
        for (to, from) in kept {
            new[to * width..][..width].copy_from_slice(&table[from * width..][..width]);
        }
        Ok((other, values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_their_classes_and_the_rest_stays() {
        let shape = GeneratorShape { width: 4, heads: 2, ..GeneratorShape::of_depth(1, 5, 3, 3) };
        let generator = Generator::new(&shape).unwrap();
        let weights: Vec<f32> = (0..generator.layout().len()).map(|i| 100.0 + i as f32).collect();
        let rows = [Some(2), None, Some(0), Some(7)];
        let (other, found) = generator.with_classes(&weights, &rows, 1).unwrap();
        assert_eq!(other.shape().classes, 4);
        let initial = other.initial(1);
        let row = |values: &[f32], of: &Generator, i: usize| {
            values[of.class_emb.range()][4 * i..][..4].to_vec()
        };
        for (to, from) in [(0, 2), (2, 0), (4, 3)] {
            assert_eq!(row(&found, &other, to), row(&weights, &generator, from));
        }
        for new in [1, 3] {
            assert_eq!(row(&found, &other, new), row(&initial, &other, new));
        }
        for tensor in other.layout().tensors().iter().filter(|t| t.name != "class_emb.weight") {
            let from = generator.layout().get(&tensor.name).unwrap();
            assert_eq!(found[tensor.slot.range()], weights[from.slot.range()], "{}", tensor.name);
        }
        assert!(generator.with_classes(&weights, &[], 1).is_err());
        assert!(generator.with_classes(&weights[1..], &rows, 1).is_err());
    }
}
