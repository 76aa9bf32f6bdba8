//! Matrix products of all shapes, against sums in f64.

use crate::fake::{Fake, scenario};
use sar_backend_cuda::{DataType, Device, Driver, Gemm, Matrix, Sample, bf16};

/// Relative rounding of an f32 sum of at most 300 terms of magnitude 1, a few hundred times 2⁻²⁴.
const F32_TOLERANCE: f64 = 1e-5;
/// One rounding to bf16, 2⁻⁸, of sums of magnitude up to ten.
const BF16_TOLERANCE: f64 = 4e-2;
/// What memory holds that is not to be touched.
const UNTOUCHED: f32 = -77.0;

/// Rounded as the device stores it.
pub(super) fn rounded(data: DataType, value: f32) -> f32 {
    match data {
        DataType::F32 => value,
        DataType::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

fn encoded(data: DataType, values: &[f32]) -> Vec<u8> {
    match data {
        DataType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DataType::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

fn decoded(data: DataType, bytes: &[u8]) -> Vec<f32> {
    match data {
        DataType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DataType::Bf16 => {
            bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
        }
    }
}

/// Numbers in device memory and on the host, `offset` elements into an allocation.
pub(super) struct Held<'a> {
    device: &'a Driver,
    data: DataType,
    pub(super) values: Vec<f32>,
    allocation: u64,
    pub(super) address: u64,
}

impl<'a> Held<'a> {
    pub(super) fn new(device: &'a Driver, data: DataType, values: Vec<f32>, offset: usize) -> Self {
        let bytes = (values.len() + offset) * data.bytes();
        let allocation = device.allocate(bytes).unwrap();
        let address = allocation + (offset * data.bytes()) as u64;
        // SAFETY: the range was just allocated.
        unsafe { device.write(&encoded(data, &values), address).unwrap() };
        let values = values.into_iter().map(|v| rounded(data, v)).collect();
        Self { device, data, values, allocation, address }
    }

    pub(super) fn read(&self) -> Vec<f32> {
        let mut bytes = vec![0; self.values.len() * self.data.bytes()];
        // SAFETY: as many bytes were written.
        unsafe { self.device.read(self.address, &mut bytes).unwrap() };
        decoded(self.data, &bytes)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let bytes = self.values.len() * self.data.bytes();
        let offset = (self.address - self.allocation) as usize;
        // SAFETY: allocated by `new` with this size.
        unsafe { self.device.release(self.allocation, bytes + offset) };
    }
}

/// Numbers between -1 and 1, the same for the same seed.
pub(super) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A product to try; leading dimensions are `gap` elements longer than rows.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    transposed: (bool, bool),
    gap: usize,
    offset: usize,
    batch: usize,
    /// Whether all products of the batch share `b`.
    shared: bool,
    accumulate: bool,
    bias: bool,
    data: DataType,
    out: DataType,
}

const PLAIN: Case = Case {
    m: 5,
    n: 7,
    k: 9,
    transposed: (false, false),
    gap: 0,
    offset: 0,
    batch: 1,
    shared: false,
    accumulate: false,
    bias: false,
    data: DataType::F32,
    out: DataType::F32,
};

fn matrix(held: &Held<'_>, rows: usize, columns: usize, gap: usize, transposed: bool) -> Matrix {
    let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
    let leading = columns + gap;
    Matrix { address: held.address, data: held.data, leading, transposed, stride: rows * leading }
}

/// `out[m, n] = a[m, k]·b[k, n]`, b transposed or not, of matrices without gaps.
pub(super) fn plain(
    (m, n, k): (usize, usize, usize),
    a: &Held<'_>,
    (b, transposed): (&Held<'_>, bool),
    out: &Held<'_>,
) -> Gemm {
    Gemm {
        m,
        n,
        k,
        a: matrix(a, m, k, 0, false),
        b: matrix(b, k, n, 0, transposed),
        out: matrix(out, m, n, 0, false),
        accumulate: false,
        bias: None,
        batch: 1,
        sample: Sample::Row,
    }
}

fn at(matrix: &Matrix, product: usize, i: usize, j: usize) -> usize {
    let (i, j) = if matrix.transposed { (j, i) } else { (i, j) };
    product * matrix.stride + i * matrix.leading + j
}

/// Runs a case; compares what it writes with the formula, and what it must not write.
fn check(device: &Driver, case: Case) {
    let Case { m, n, k, gap, offset, batch, data, .. } = case;
    // Long enough for either orientation.
    let len = |rows: usize, columns: usize| batch * rows.max(columns) * (rows.max(columns) + gap);
    let a = Held::new(device, data, numbers(1, len(m, k)), offset);
    let b = Held::new(device, data, numbers(2, len(k, n)), offset);
    let before = match case.accumulate {
        true => numbers(3, len(m, n)),
        false => vec![f32::NAN; len(m, n)],
    };
    let mut out = Held::new(device, case.out, before, offset);
    let bias = Held::new(device, case.out, numbers(4, n), 0);
    let mut gemm = Gemm {
        m,
        n,
        k,
        a: matrix(&a, m, k, gap, case.transposed.0),
        b: matrix(&b, k, n, gap, case.transposed.1),
        out: matrix(&out, m, n, gap, false),
        accumulate: case.accumulate,
        bias: case.bias.then_some(bias.address),
        batch,
        sample: if case.transposed.0 { Sample::All } else { Sample::Row },
    };
    if case.shared {
        gemm.b.stride = 0;
    }
    if !case.accumulate {
        // What is between the rows is to be left alone; NaN within them is not to be read.
        let inside = |i: usize| i % gemm.out.leading < n && i < batch * gemm.out.stride;
        let mark = |i| if inside(i) { f32::NAN } else { UNTOUCHED };
        let marked = (0..out.values.len()).map(mark).collect();
        out = Held::new(device, case.out, marked, offset);
        gemm.out.address = out.address;
    }
    // SAFETY: all matrices are held, and out is none of the others.
    unsafe { device.gemm(&gemm).unwrap() };
    let found = out.read();
    let mut expected: Vec<f64> = out.values.iter().map(|&v| f64::from(v)).collect();
    for product in 0..batch {
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let term = |l| {
                let left = a.values[at(&gemm.a, product, i, l)];
                f64::from(left) * f64::from(b.values[at(&gemm.b, product, l, j)])
            };
            let to = &mut expected[at(&gemm.out, product, i, j)];
            let held = if case.accumulate { *to } else { 0.0 };
            let added = if case.bias { f64::from(bias.values[j]) } else { 0.0 };
            *to = held + (0..k).map(term).sum::<f64>() + added;
        }
    }
    let tolerance = match case.out {
        DataType::F32 => F32_TOLERANCE,
        DataType::Bf16 => BF16_TOLERANCE,
    };
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= tolerance, "{case:?}: [{index}] {found}, expected {expected}");
    }
}

pub(super) fn on_driver(fake: &Fake, test: impl FnOnce(&Driver)) {
    let driver = fake.driver().unwrap();
    test(&driver);
    drop(driver);
    fake.expect_clean();
}

const TRANSPOSED: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
pub(super) const TYPES: [(DataType, DataType); 3] = [
    (DataType::F32, DataType::F32),
    (DataType::Bf16, DataType::Bf16),
    (DataType::Bf16, DataType::F32),
];

scenario! {
    fn all_transposes_and_types_at_odd_sizes(fake) on []; {
        on_driver(fake, |driver| {
            for (data, out) in TYPES {
                for transposed in TRANSPOSED {
                    for (m, n, k) in [(1, 1, 1), (5, 7, 9), (13, 1, 3), (1, 17, 33), (16, 24, 8)] {
                        for accumulate in [false, true] {
                            check(driver, Case { m, n, k, transposed, accumulate, data, out, ..PLAIN });
                        }
                    }
                }
            }
        });
    }
}

scenario! {
    fn leading_dimensions_and_addresses_that_are_not_aligned(fake) on []; {
        on_driver(fake, |driver| {
            for (data, out) in TYPES {
                for transposed in TRANSPOSED {
                    for (gap, offset) in [(0, 1), (1, 0), (3, 2), (8, 4), (8, 8), (5, 3)] {
                        let (m, n, k) = (8, 16, 24);
                        check(driver, Case { m, n, k, transposed, gap, offset, data, out, ..PLAIN });
                    }
                }
            }
        });
    }
}

scenario! {
    fn rows_so_long_that_many_could_not_be_counted(fake) on []; {
        on_driver(fake, |driver| {
            for (data, out) in TYPES {
                let transposed = (false, true);
                check(driver, Case { m: 3, n: 8, k: 8, transposed, gap: 1 << 17, data, out, ..PLAIN });
            }
        });
    }
}

scenario! {
    fn batches_with_operands_of_their_own_and_shared_ones(fake) on []; {
        on_driver(fake, |driver| {
            for (data, out) in TYPES {
                for transposed in TRANSPOSED {
                    for (shared, gap) in [(false, 0), (true, 0), (false, 1), (true, 3)] {
                        for accumulate in [false, true] {
                            let batch = 3;
                            check(driver, Case {
                                batch, transposed, shared, gap, accumulate, data, out, ..PLAIN
                            });
                        }
                    }
                }
            }
        });
    }
}

scenario! {
    fn a_bias_is_added_to_every_row_of_every_product(fake) on []; {
        on_driver(fake, |driver| {
            for (data, out) in TYPES {
                for (n, batch) in [(1, 1), (7, 1), (16, 2)] {
                    let transposed = (false, true);
                    check(driver, Case { n, batch, transposed, bias: true, data, out, ..PLAIN });
                }
            }
        });
    }
}

scenario! {
    fn a_sum_of_no_terms_is_zero(fake) on []; {
        on_driver(fake, |driver| {
            for (data, out) in TYPES {
                for gap in [0, 3] {
                    for (accumulate, bias) in [(false, false), (true, false), (false, true)] {
                        let (k, batch) = (0, 2);
                        check(driver, Case { k, gap, batch, accumulate, bias, data, out, ..PLAIN });
                    }
                }
            }
        });
    }
}

scenario! {
    fn a_recorded_product_is_replayed(fake) on []; {
        on_driver(fake, |driver| {
            let (m, n, k) = (4, 8, 3);
            let a = Held::new(driver, DataType::F32, numbers(1, m * k), 0);
            let b = Held::new(driver, DataType::F32, numbers(2, k * n), 0);
            let out = Held::new(driver, DataType::F32, vec![0.0; m * n], 0);
            let gemm = Gemm { accumulate: true, ..plain((m, n, k), &a, (&b, false), &out) };
            // SAFETY: all matrices are held, and out is none of the others.
            let run = || driver.replay((5, 5), &mut || unsafe { driver.gemm(&gemm) }).unwrap();
            run();
            let once = out.read();
            run();
            run();
            for (times, once) in out.read().iter().zip(once) {
                assert!(f64::from(times - 3.0 * once).abs() <= F32_TOLERANCE);
            }
        });
    }
}
