//! Which of cuBLASLt's algorithms compute a product: rows have the same bits whatever others there are, gradients may
//! be summed in parts, and what is not the library's first choice is told.

use crate::fake::scenario;
use crate::gemm::{Held, TYPES, numbers, on_driver, plain, rounded};
use sar_backend_cuda::{DataType, Device, Gemm, Sample};

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
    /// Of few rows the fake offers sums of another order first, then the layer's own in other tiles: slower ones, and
    /// last those that take half of the time of the layer's.
    fn few_rows_take_the_fastest_algorithm_that_gives_the_layers_bits(fake) on []; {
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
                    // The fake's time is in works, and as many milliseconds: one, of the fastest.
                    driver.begin_profile().unwrap();
                    // SAFETY: as above.
                    unsafe { driver.gemm(&gemm).unwrap() };
                    let tallies = driver.end_profile().unwrap();
                    let seconds: Vec<f64> = tallies.iter().map(|tally| tally.seconds).collect();
                    assert_eq!(seconds, [1e-3], "{m} rows of {data:?}");
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
    /// A trial needs a second weight, which no account of memory has: a large one's product runs as its layer does.
    fn nothing_is_tried_of_a_large_weight(fake) on []; {
        on_driver(fake, |driver| {
            let (m, n, k) = (1, (1 << 21) + 8, 16);
            let a = Held::new(driver, DataType::Bf16, numbers(1, m * k), 0);
            let b = Held::new(driver, DataType::Bf16, numbers(2, n * k), 0);
            let out = Held::new(driver, DataType::Bf16, vec![0.0; m * n], 0);
            let gemm = plain((m, n, k), &a, (&b, true), &out);
            let before = driver.products_tried();
            // SAFETY: all matrices are held, and out is none of the others.
            unsafe { driver.gemm(&gemm).unwrap() };
            assert_eq!(driver.products_tried(), before);
            let small = Gemm { n: n / 2, ..gemm };
            // SAFETY: as above.
            unsafe { driver.gemm(&small).unwrap() };
            assert_eq!(driver.products_tried(), before + 1);
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
