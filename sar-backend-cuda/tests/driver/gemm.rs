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
fn rounded(data: DataType, value: f32) -> f32 {
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
struct Held<'a> {
    device: &'a Driver,
    data: DataType,
    values: Vec<f32>,
    allocation: u64,
    address: u64,
}

impl<'a> Held<'a> {
    fn new(device: &'a Driver, data: DataType, values: Vec<f32>, offset: usize) -> Self {
        let bytes = (values.len() + offset) * data.bytes();
        let allocation = device.allocate(bytes).unwrap();
        let address = allocation + (offset * data.bytes()) as u64;
        // SAFETY: the range was just allocated.
        unsafe { device.write(&encoded(data, &values), address).unwrap() };
        let values = values.into_iter().map(|v| rounded(data, v)).collect();
        Self { device, data, values, allocation, address }
    }

    fn read(&self) -> Vec<f32> {
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
fn numbers(seed: u64, len: usize) -> Vec<f32> {
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
fn plain(
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

fn on_driver(fake: &Fake, test: impl FnOnce(&Driver)) {
    let driver = fake.driver().unwrap();
    test(&driver);
    drop(driver);
    fake.expect_clean();
}

const TRANSPOSED: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
const TYPES: [(DataType, DataType); 3] = [
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
    /// The fake's first choice of an algorithm changes with the number of rows, as the library's
    /// does, and its algorithms differ in the order of their sums.
    fn a_row_has_the_same_bits_alone_as_among_others(fake) on []; {
        on_driver(fake, |driver| {
            let (most, n, k) = (200, 12, 40);
            for (data, out) in TYPES {
                let rows = numbers(1, most * k);
                let b = Held::new(driver, data, numbers(2, n * k), 0);
                let outcome = |first: usize, m: usize| {
                    let a = Held::new(driver, data, rows[first * k..][..m * k].to_vec(), 0);
                    let to = Held::new(driver, out, vec![0.0; m * n], 0);
                    let gemm = plain((m, n, k), &a, (&b, true), &to);
                    // SAFETY: all matrices are held, and out is none of the others.
                    unsafe { driver.gemm(&gemm).unwrap() };
                    to.read()
                };
                let all = outcome(0, most);
                for (first, m) in [(0, 1), (7, 1), (199, 1), (3, 5), (0, 64), (10, 100)] {
                    let some = outcome(first, m);
                    assert!(some == all[first * n..][..m * n], "rows {first} and {m} on, {data:?}");
                }
            }
        });
    }
}

scenario! {
    /// The fake offers sums in four parts first, whoever asks: only gradients take them, and none
    /// takes those whose parts are added in whatever order blocks end, which the fake refuses to run.
    fn a_gradient_may_be_summed_in_parts_and_nothing_else(fake) on []; {
        on_driver(fake, |driver| {
            let (m, n, k) = (3, 4, 64);
            let a = Held::new(driver, DataType::F32, numbers(1, m * k), 0);
            let b = Held::new(driver, DataType::F32, numbers(2, n * k), 0);
            let expected = |parts: usize| -> Vec<f32> {
                let element = |at: usize| {
                    let term = |l| a.values[at / n * k + l] * b.values[at % n * k + l];
                    let part = |p| (p * k / parts..(p + 1) * k / parts).map(term).sum::<f32>();
                    (0..parts).map(part).sum::<f32>()
                };
                (0..m * n).map(element).collect()
            };
            assert_ne!(expected(1), expected(4), "the orders can be told apart");
            for (sample, parts) in [(Sample::Row, 1), (Sample::Product, 1), (Sample::All, 4)] {
                let out = Held::new(driver, DataType::F32, vec![0.0; m * n], 0);
                let gemm = Gemm { sample, ..plain((m, n, k), &a, (&b, true), &out) };
                // SAFETY: all matrices are held, and out is none of the others.
                unsafe { driver.gemm(&gemm).unwrap() };
                let found = out.read();
                // The other order without parts is the fake's choice for few rows.
                let split = found == expected(4);
                assert_eq!(split, parts == 4, "{sample:?}: {found:?}");
            }
        });
    }
}

scenario! {
    /// The fake's split sums leave out what follows the last whole block of 64 terms, as the library's were seen
    /// to: nothing is missing all the same.
    fn a_gradient_has_all_its_terms(fake) on []; {
        on_driver(fake, |driver| {
            let (m, n) = (3, 4);
            for k in [3, 8, 63, 64, 66, 255, 256, 257, 258, 259, 300, 514, 1283] {
                let ones = |len| Held::new(driver, DataType::Bf16, vec![1.0; len], 0);
                let (a, b) = (ones(m * k), ones(n * k));
                let out = Held::new(driver, DataType::F32, vec![0.0; m * n], 0);
                let gemm = Gemm { sample: Sample::All, ..plain((m, n, k), &a, (&b, true), &out) };
                // SAFETY: all matrices are held, and out is none of the others.
                unsafe { driver.gemm(&gemm).unwrap() };
                assert_eq!(out.read(), vec![k as f32; m * n], "{k} terms");
            }
        });
    }
}

scenario! {
    /// Of few rows the fake offers sums of another order first, then the layer's own in smaller tiles.
    fn few_rows_take_the_first_algorithm_that_gives_the_layers_bits(fake) on []; {
        on_driver(fake, |driver| {
            let (n, k) = (8, 40);
            for (data, out) in TYPES {
                let b = Held::new(driver, data, numbers(2, n * k), 0);
                let before = driver.products_tried();
                for (m, own) in [(5, 1), (5, 1), (63, 2), (64, 2), (200, 2), (3000, 2)] {
                    let a = Held::new(driver, data, numbers(1, m * k), 0);
                    let to = Held::new(driver, out, vec![0.0; m * n], 0);
                    let bias = Held::new(driver, out, numbers(3, n), 0);
                    let gemm = plain((m, n, k), &a, (&b, true), &to);
                    let gemm = Gemm { bias: Some(bias.address), ..gemm };
                    // SAFETY: all matrices are held, and out is none of the others.
                    unsafe { driver.gemm(&gemm).unwrap() };
                    assert_eq!(driver.products_tried() - before, own, "{m} rows of {data:?}");
                    let expected = |i: usize, j: usize| {
                        let term = |l| a.values[i * k + l] * b.values[j * k + l];
                        rounded(out, (0..k).map(term).sum::<f32>() + bias.values[j])
                    };
                    let expected: Vec<f32> = (0..m * n).map(|at| expected(at / n, at % n)).collect();
                    assert!(to.read() == expected, "{m} rows of {data:?}, in the layer's order");
                }
            }
            assert!(driver.products_apart().is_empty());
        });
    }
}

scenario! {
    fn nothing_is_tried_while_work_is_recorded(fake) on []; {
        on_driver(fake, |driver| {
            let (m, n, k) = (5, 8, 40);
            let a = Held::new(driver, DataType::F32, numbers(1, m * k), 0);
            let b = Held::new(driver, DataType::F32, numbers(2, n * k), 0);
            let out = Held::new(driver, DataType::F32, vec![0.0; m * n], 0);
            let gemm = plain((m, n, k), &a, (&b, true), &out);
            let mut rows = 0;
            let mut run = || {
                driver.replay((7, 7), &mut || {
                    // The first time it runs other work than the second, which is recorded.
                    rows += 1;
                    let gemm = Gemm { m: if rows > 1 { m } else { 2 }, ..gemm };
                    // SAFETY: all matrices are held, and out is none of the others.
                    unsafe { driver.gemm(&gemm) }
                })
            };
            run().unwrap();
            assert_eq!(driver.products_tried(), 1);
            run().unwrap();
            assert_eq!(driver.products_tried(), 1, "a recording cannot wait for a result");
            assert!(out.read().iter().all(|v| *v != 0.0));
        });
    }
}

scenario! {
    fn a_size_that_its_layers_algorithm_does_not_take_is_counted(fake)
    on [("SAR_FAKE_REFUSED_ROWS", "5")]; {
        on_driver(fake, |driver| {
            let (n, k) = (8, 3);
            let b = Held::new(driver, DataType::F32, numbers(2, k * n), 0);
            for (m, apart) in [(4, 0), (5, 1), (6, 1), (5, 1)] {
                let a = Held::new(driver, DataType::F32, numbers(1, m * k), 0);
                let out = Held::new(driver, DataType::F32, vec![0.0; m * n], 0);
                let gemm = plain((m, n, k), &a, (&b, false), &out);
                // SAFETY: all matrices are held, and out is none of the others.
                unsafe { driver.gemm(&gemm).unwrap() };
                assert!(out.read().iter().any(|&v| v != 0.0), "it runs by an algorithm of its own");
                assert_eq!(driver.products_apart().len(), apart, "{m} rows");
            }
            assert_eq!(driver.ordinary_products_apart(), 0, "three terms are no whole vector");
            let notes = driver.product_notes();
            assert!(notes.iter().any(|note| note.contains("an algorithm of its own")), "{notes:?}");
        });
    }
}

scenario! {
    /// The library's first choice takes one product at a time: several take the algorithm that one takes.
    fn products_alone_and_among_others_share_an_algorithm(fake) on [("SAR_FAKE_ONE_PRODUCT", "1")]; {
        on_driver(fake, |driver| {
            let (m, n, k) = (4, 8, 16);
            let numbers = |seed, len| Held::new(driver, DataType::F32, numbers(seed, len), 0);
            let (a, b) = (numbers(1, 3 * m * k), numbers(2, 3 * n * k));
            let of = |batch: usize| {
                let out = Held::new(driver, DataType::F32, vec![0.0; batch * m * n], 0);
                let gemm = plain((m, n, k), &a, (&b, true), &out);
                let gemm = Gemm { batch, sample: Sample::Product, ..gemm };
                // SAFETY: all matrices are held, and out is none of the others.
                unsafe { driver.gemm(&gemm).unwrap() };
                out.read()
            };
            let alone = of(1);
            assert_eq!(of(3)[..m * n], alone);
            assert!(driver.products_apart().is_empty());
            let notes = driver.product_notes();
            assert!(notes.iter().any(|note| note.contains("choice 2 of cuBLASLt's")), "{notes:?}");
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
