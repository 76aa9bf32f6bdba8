//! Trials of whether two algorithms give the same bits, on numbers that reveal every difference in the order
//! of sums, and of which algorithm is faster.
//!
//! A layer's algorithm is chosen for the rows of a training step. Its tiles leave most of a GPU idle
//! where a sampled image has a few rows; another algorithm may be taken there if its sums are the same.
//! Nothing that cuBLASLt reports about an algorithm shows this, and comparing ordinary results would not
//! either: sums in another order differ in their last bits, which the rounding to bf16 hides. So the
//! numbers of a trial are such that every exact sum is zero, and the result is rounding error alone.

use super::descriptors::Shape;
use super::events::{Clock, Event};
use super::{failed, failed_unless_full};
use crate::error::CudaError;
use crate::gemm::DataType;
use cudarc::driver::result as driver;
use cudarc::driver::sys::CUstream;
use half::bf16;
use sar_math::philox::philox4x32_10;

/// Number of different rows of noise, which an operand repeats. Coprime to the sizes of tiles, so that each
/// row occurs at every position of a tile.
const ROWS: usize = 61;
/// Size of the bias relative to the numbers: sums of products up to 1 leave errors of about 2⁻²⁴ each.
const BIAS: f32 = 1.0 / (1 << 20) as f32;
/// Number of halvings that the magnitudes of numbers span: products of bf16 numbers, of 16 bits each, must
/// not all add up without rounding in the 24 bits of an f32 sum, however few they are.
const EXPONENTS: u32 = 16;

/// Timed runs, of which the fastest counts: each takes a few microseconds, and other work on the GPU may
/// disturb it.
const RUNS: usize = 5;

/// Operands of a trial on the device, freed when dropped.
pub(super) struct Noise {
    stream: CUstream,
    allocation: u64,
    /// `[m, k]` as the shape's `a`.
    pub(super) a: u64,
    /// `[n, k]` as the shape's `b`.
    pub(super) b: u64,
    /// `[n]`, as small as the rounding errors: a larger bias would drown them.
    pub(super) bias: u64,
}

impl Noise {
    /// Makes operands of a layer's product (`a` as it is stored, `b` transposed); `None` if the device has
    /// no room for them.
    ///
    /// # Errors
    /// A call of the driver fails.
    pub(super) fn new(stream: CUstream, shape: &Shape) -> Result<Option<Self>, CudaError> {
        let [a, b] =
            shape.operand_lengths().map(|len| (len * shape.data().bytes()).next_multiple_of(256));
        let bias = shape.n() * 4;
        // SAFETY: released in `drop`, on the same stream.
        let made = unsafe { driver::malloc_async(stream, a + b + bias) };
        let Some(allocation) = failed_unless_full("cuMemAllocAsync", made)? else {
            return Ok(None);
        };
        let noise = Self {
            stream,
            allocation,
            a: allocation,
            b: allocation + a as u64,
            bias: allocation + (a + b) as u64,
        };
        // SAFETY: the ranges were just allocated.
        unsafe {
            driver::memset_d8_async(allocation, 0, a + b + bias, stream)
                .map_err(failed("cuMemsetD8Async"))?;
            let ([in_a, in_b], places) = (shape.leading(), places(shape.k()));
            noise.fill(noise.a, shape, (shape.m(), in_a), &places, 1.0)?;
            noise.fill(noise.b, shape, (shape.n(), in_b), &places, -1.0)?;
            let small = |j| BIAS * number(ROWS, j, 1.0);
            let bias: Vec<u8> =
                (0..shape.n()).flat_map(|j| encoded(shape.out_data(), small(j))).collect();
            upload(stream, &bias, noise.bias)?;
        }
        Ok(Some(noise))
    }

    /// Fills `rows` rows of k numbers, `leading` elements apart. Each number stands at both of a pair of
    /// `places`, multiplied by `sign` at the second.
    ///
    /// # Safety
    /// The rows lie in this allocation.
    unsafe fn fill(
        &self,
        at: u64,
        shape: &Shape,
        (rows, leading): (usize, usize),
        places: &[[usize; 2]],
        sign: f32,
    ) -> Result<(), CudaError> {
        let data = shape.data();
        let distinct = rows.min(ROWS);
        let mut host = vec![0u8; distinct * leading * data.bytes()];
        for (row, line) in host.chunks_exact_mut(leading * data.bytes()).enumerate() {
            for (term, place) in places.iter().enumerate() {
                let value = number(row, term, sign);
                for (place, value) in place.iter().zip([value, sign * value]) {
                    let to = line.iter_mut().skip(place * data.bytes());
                    to.zip(encoded(data, value)).for_each(|(to, byte)| *to = byte);
                }
            }
        }
        // SAFETY: upheld by the caller; the last copy ends with the last row.
        unsafe {
            upload(self.stream, &host, at)?;
            let row = (leading * data.bytes()) as u64;
            for first in (distinct..rows).step_by(ROWS) {
                let bytes = distinct.min(rows - first) * row as usize;
                driver::memcpy_dtod_async(at + first as u64 * row, at, bytes, self.stream)
                    .map_err(failed("cuMemcpyDtoDAsync"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; freed in the order of the stream, after the trials.
        let _ = unsafe { driver::free_async(self.allocation, self.stream) };
    }
}

/// Copies from the host, and waits for the copy: some systems read pageable memory in place.
///
/// # Safety
/// The range lies in held memory.
unsafe fn upload(stream: CUstream, host: &[u8], to: u64) -> Result<(), CudaError> {
    // SAFETY: upheld by the caller; the host's memory outlives the wait.
    unsafe {
        driver::memcpy_htod_async(to, host, stream).map_err(failed("cuMemcpyHtoDAsync"))?;
        driver::stream::synchronize(stream).map_err(failed("cuStreamSynchronize"))
    }
}

/// Positions of the two terms of each pair among k terms: shuffled, so that no way to split a sum has the
/// partners in one part, or the same terms in two. If k is odd, one term has no partner and is zero.
fn places(k: usize) -> Vec<[usize; 2]> {
    let mut order: Vec<usize> = (0..k).collect();
    for last in (1..k).rev() {
        let [bits, ..] = philox4x32_10([last as u32, 0, 2, 0], [0, 0]);
        order.swap(last, bits as usize % (last + 1));
    }
    order.as_chunks().0.to_vec()
}

/// The bytes of a number as the device stores it.
fn encoded(data: DataType, value: f32) -> impl Iterator<Item = u8> {
    let (wide, narrow) = (value.to_le_bytes(), bf16::from_f32(value).to_le_bytes());
    let wide = matches!(data, DataType::F32).then_some(wide).into_iter().flatten();
    let narrow = matches!(data, DataType::Bf16).then_some(narrow).into_iter().flatten();
    wide.chain(narrow)
}

/// A pseudorandom number of either sign whose magnitude is between 2⁻¹⁶ and 1. The sign of `sign` selects
/// the operand that it is for.
fn number(row: usize, term: usize, sign: f32) -> f32 {
    let [bits, ..] = philox4x32_10([row as u32, term as u32, u32::from(sign < 0.0), 0], [0, 0]);
    let mantissa = 1.0 + (bits >> 9) as f32 / (1 << 23) as f32;
    let magnitude = mantissa / (2u32 << (bits % EXPONENTS)) as f32;
    if bits & 0x100 == 0 { magnitude } else { -magnitude }
}

/// Reads the rows `[m, n]` of a result, without what lies between them.
///
/// # Safety
/// The rows lie in held memory.
pub(super) unsafe fn read(stream: CUstream, at: u64, shape: &Shape) -> Result<Vec<u8>, CudaError> {
    let (row, leading, bytes) = (shape.n(), shape.out_leading(), shape.out_data().bytes());
    let mut host = vec![0u8; ((shape.m() - 1) * leading + row) * bytes];
    // SAFETY: upheld by the caller; the host's memory outlives the wait.
    unsafe {
        driver::memcpy_dtoh_async(&mut host, at, stream).map_err(failed("cuMemcpyDtoHAsync"))?;
        driver::stream::synchronize(stream).map_err(failed("cuStreamSynchronize"))?;
    }
    if leading == row {
        return Ok(host);
    }
    Ok(host.chunks(leading * bytes).flat_map(|line| &line[..row * bytes]).copied().collect())
}

/// The shortest time, in seconds on the device, that the work took in several runs.
pub(super) fn seconds(
    clock: &Clock,
    stream: CUstream,
    run: impl Fn() -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        let events = [Event::new()?, Event::new()?];
        events[0].record(stream)?;
        run()?;
        events[1].record(stream)?;
        least = least.min(clock.seconds(&events)?);
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The terms of a sum of k, in order.
    fn terms(k: usize, row: usize, column: usize) -> Vec<f32> {
        let rounded = |row, term, sign| bf16::from_f32(number(row, term, sign)).to_f32();
        let mut terms = vec![0.0; k];
        for (term, [first, second]) in places(k).into_iter().enumerate() {
            let product = rounded(row, term, 1.0) * rounded(column, term, -1.0);
            (terms[first], terms[second]) = (product, -product);
        }
        terms
    }

    #[test]
    fn sums_of_noise_are_rounding_alone() {
        for k in [16, 33, 1024] {
            let terms = terms(k, 3, 5);
            assert_eq!(terms.iter().map(|&t| f64::from(t)).sum::<f64>(), 0.0, "{k}");
            assert!(terms.iter().all(|t| t.abs() <= 1.0), "{k}");
            assert_eq!(terms.iter().filter(|t| **t == 0.0).count(), k % 2, "{k}");
        }
    }

    #[test]
    fn sums_of_noise_show_their_order() {
        type Order = fn(&[f32]) -> f32;
        let sum = |terms: &[f32]| terms.iter().sum::<f32>();
        let orders: [(&str, Order); 5] = [
            ("one after the other", |t| t.iter().sum()),
            ("two halves", |t| t.chunks(t.len() / 2).map(|part| part.iter().sum::<f32>()).sum()),
            ("two halves, each backwards", |t| {
                t.chunks(t.len() / 2).map(|part| part.iter().rev().sum::<f32>()).sum()
            }),
            ("every other", |t| {
                t.iter().step_by(2).sum::<f32>() + t.iter().skip(1).step_by(2).sum::<f32>()
            }),
            ("pairs", |t| t.chunks(2).map(|pair| pair.iter().sum::<f32>()).sum()),
        ];
        for k in [16, 64, 4096] {
            let all: Vec<Vec<f32>> = (0..ROWS).map(|row| terms(k, row, 7)).collect();
            for (i, (name, order)) in orders.iter().enumerate() {
                assert!(all.iter().any(|terms| sum(terms) != 0.0), "{k}: all is lost");
                for (other, second) in &orders[i + 1..] {
                    let differ = all.iter().any(|t| order(t).to_bits() != second(t).to_bits());
                    assert!(differ, "{k}: {name}, {other}");
                }
            }
        }
    }
}
