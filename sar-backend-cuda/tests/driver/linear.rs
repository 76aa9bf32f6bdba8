//! Linear layers whose parameters begin at any element.

use crate::fake::{Fake, scenario};
use sar_backend_cuda::{Storage, bf16};
use sar_math::backend::{Buffers, Linear, LinearDims, Slot, TransformerOps};

/// One rounding to bf16 of values of magnitude up to 8; small integers are exact in f32.
const TOLERANCE: f32 = 1.0 / 32.0;

/// `y = x·Wᵀ + bias` with integers, whose sums are exact, for a bias at every alignment.
fn any_alignment<S: Storage>(fake: &Fake) {
    let backend = fake.backend::<S>().unwrap();
    for (rows, outputs) in [(1, 1), (3, 5), (70, 300)] {
        let dims = LinearDims { rows, inputs: 2, outputs };
        for offset in 0..9 {
            let bias = Slot { offset, len: outputs };
            let weight = Slot { offset: offset + outputs, len: outputs * 2 };
            let mut host = vec![f32::NAN; weight.end()];
            for o in 0..outputs {
                host[bias.offset + o] = (o % 7) as f32;
                host[weight.offset + 2 * o] = 1.0;
                host[weight.offset + 2 * o + 1] = (o % 3) as f32;
            }
            let mut params = backend.params(host.len()).unwrap();
            backend.upload_params(&host, &mut params, 0).unwrap();
            let mut x = backend.activation(rows * 2).unwrap();
            let values: Vec<f32> = (0..rows * 2).map(|i| (i % 5) as f32 - 2.0).collect();
            backend.upload(&values, &mut x, 0).unwrap();
            let mut y = backend.activation(rows * outputs).unwrap();
            let layer = Linear { weight, bias: Some(bias) };
            backend.linear(dims, &x, &params, layer, &mut y).unwrap();
            let mut found = vec![0.0; rows * outputs];
            backend.download(&y, 0, &mut found).unwrap();
            for (i, found) in found.iter().enumerate() {
                let (row, o) = (i / outputs, i % outputs);
                let product = values[2 * row] + values[2 * row + 1] * (o % 3) as f32;
                let expected = product + (o % 7) as f32;
                assert!((found - expected).abs() <= TOLERANCE, "{dims:?}, bias at {offset}: [{i}]");
            }
        }
    }
    drop(backend);
    fake.expect_clean();
}

scenario! {
    fn a_bias_at_any_alignment_in_f32(fake) on []; { any_alignment::<f32>(fake) }
}

scenario! {
    fn a_bias_at_any_alignment_in_bf16(fake) on []; { any_alignment::<bf16>(fake) }
}
