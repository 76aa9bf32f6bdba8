//! The nearest code.
//!
//! z is normalised into scratch, with a 1 behind it if codes are searched by distance. Then tiles of z are
//! multiplied by tiles of the codebook in f32, 8×8 products per thread, and products within rounding of the
//! largest are computed again in f64. Floor: 2·rows·vocab·columns operations in f32, a millisecond for 64
//! images of 680 tokens on an A100.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::{CodeDims, TokenSpan};

const UNIT_ROWS: Kernel = Kernel { file: "nearest_code", name: "unit_rows" };
const LONGEST_CODE: Kernel = Kernel { file: "nearest_code", name: "longest_code" };
const NEAREST_CODE: Kernel = Kernel { file: "nearest_code", name: "nearest_code" };

/// Threads of a block, of every kernel.
const THREADS: usize = 128;
/// Rows of z of a block: `ROWS` of the kernel.
const ROWS: usize = 64;
/// Bytes before the rows in scratch, which keep them aligned.
const HEAD: usize = 256;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    batch: usize,
    span: &TokenSpan,
    codes: CodeDims,
    z: Address<S>,
    codebook: Address<f32>,
    ids: Address<u32>,
) -> Result<(), CudaError> {
    let (written, vocab, columns) = (span.columns(), codes.vocab, codes.columns());
    let rows = batch * written.len();
    let scratch = gpu.scratch(HEAD + rows * columns * size_of::<f32>())?;
    let longest = scratch;
    let unit = Address::<f32>::new(scratch.raw() + HEAD as u64);
    let (rows_arg, vocab_arg, columns_arg) = (rows as u64, vocab as i32, columns as i32);
    // SAFETY: parameters as declared; scratch holds a number and the rows; the rest was checked on entry.
    unsafe {
        gpu.zero(longest, 1)?;
        let args: [&dyn crate::KernelArg; 4] = [&longest, &codebook, &vocab_arg, &columns_arg];
        gpu.launch(LONGEST_CODE, [vocab.div_ceil(THREADS), 1, 1], THREADS, 0, &args)?;
        let args: [&dyn crate::KernelArg; 5] =
            [&unit, &z, &rows_arg, &(codes.channels as i32), &columns_arg];
        gpu.launch(UNIT_ROWS, [rows.div_ceil(THREADS), 1, 1], THREADS, 0, &args)?;
        let args: [&dyn crate::KernelArg; 10] = [
            &ids,
            &unit,
            &codebook,
            &longest,
            &rows_arg,
            &vocab_arg,
            &columns_arg,
            &(span.row() as i32),
            &(written.start as i32),
            &(written.len() as i32),
        ];
        gpu.expect(0, rows * columns * size_of::<f32>(), 2 * rows * vocab * columns);
        gpu.launch(NEAREST_CODE, [rows.div_ceil(ROWS), 1, 1], THREADS, 0, &args)
    }
}
