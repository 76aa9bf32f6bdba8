//! `golden/resample`: area and bicubic resizing of every map in the file.

use crate::support::{Golden, assert_close};
use sar_math::backend::ShapeError;
use sar_math::resample::{area_resize, bicubic_resize};

/// Sums of at most 256 numbers of order 1, in another order than the recording's.
const TOLERANCE: f64 = 1e-12;

type Resize = fn(&[f64], (usize, usize), &mut [f64], (usize, usize)) -> Result<(), ShapeError>;

/// Resizes every plane of an NCHW tensor to the size of another and compares.
fn compare(golden: &Golden, input: &str, output: &str, resize: Resize) {
    let (from, to) = (golden.shape(input), golden.shape(output));
    let (src_size, dst_size) = ((from[2], from[3]), (to[2], to[3]));
    let mut got = vec![0.0; to.iter().product()];
    let (src, dst_len) = (golden.f64(input), to[2] * to[3]);
    for (src, dst) in src.chunks_exact(from[2] * from[3]).zip(got.chunks_exact_mut(dst_len)) {
        resize(src, src_size, dst, dst_size).unwrap();
    }
    assert_close(output, &got, &golden.f64(output), TOLERANCE);
}

/// The input of an output named `area_16_to_5`, `bicubic_2_to_3` or `bicubic_rect_3x5_to_4x7`.
fn input_of(golden: &Golden, output: &str) -> Option<String> {
    let (from, _) = output.split_once("_to_")?;
    let (kind, size) = from.split_once('_')?;
    let rectangle = size.strip_prefix("rect_");
    let mut candidates = vec![];
    for kind in [kind, "bicubic", "area"] {
        candidates.push(match rectangle {
            Some(size) => format!("{kind}_rect_in_{size}"),
            None => format!("{kind}_in_{size}"),
        });
    }
    candidates.push(format!("input_{}", rectangle.unwrap_or(size)));
    let names = golden.names();
    Some(candidates.into_iter().find(|c| names.contains(c)).unwrap_or_else(|| panic!("{output}")))
}

#[test]
fn golden_resample() {
    let golden = Golden::open("resample");
    let (mut areas, mut bicubics) = (0, 0);
    for output in golden.names() {
        let Some(input) = input_of(&golden, &output) else { continue };
        if output.starts_with("area") {
            compare(&golden, &input, &output, area_resize);
            areas += 1;
        } else {
            compare(&golden, &input, &output, bicubic_resize);
            bicubics += 1;
        }
    }
    assert!(areas > 0 && bicubics > 0, "{areas} area and {bicubics} bicubic maps");
}
