//! Class token, words and positions.
//!
//! The forward writes x once: product, bias and positions in one kernel. The backward reads dx twice:
//! for the sum over the batch, from which all gradients except the words' are taken, and as an operand
//! of one matrix product per sample, whose results are added in the order of the batch.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, KernelArg};
use crate::error::CudaError;
use crate::gemm::{DataType, Gemm, Matrix, Sample};
use crate::memory::Address;
use crate::ops::elementwise::{THREADS, blocks, vector};
use crate::storage::Storage;
use sar_math::backend::EmbeddingDims;

/// Parameters of the embedding.
pub(crate) struct Weights {
    /// `[C, K]`.
    pub(crate) word: Address<f32>,
    /// `[C]`.
    pub(crate) bias: Option<Address<f32>>,
    /// `[C]`.
    pub(crate) pos_start: Option<Address<f32>>,
}

/// Their gradients.
pub(crate) type Gradients = Weights;

const FORWARD: Kernel = kernel("token_embedding");
const SUMS: Kernel = kernel("embedding_sums");
const SUMS_ANY: Kernel = kernel("embedding_sums_any");
const BIASES: Kernel = kernel("embedding_biases");
const WORDS: Kernel = kernel("embedding_words");

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "token_embedding", name }
}

/// Columns of a block of the forward; the kernel is compiled for this number.
const COLUMNS: usize = 128;
/// Tokens of such a block: twice as many as it has at once, so that it uses its words twice.
const TOKENS: usize = 128;
/// Columns of a block that adds up biases, one per lane, and its threads: there are few blocks, and
/// therefore many warps in each.
const BIAS_COLUMNS: usize = 32;
const BIAS_THREADS: usize = 512;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &EmbeddingDims,
    cond: Address<S>,
    inputs: Address<S>,
    weights: &Weights,
    pos: Address<S>,
    x: Address<S>,
) -> Result<(), CudaError> {
    let (tokens, width) = (dims.span.len(), dims.width);
    let grid = [dims.batch * tokens.div_ceil(TOKENS), width.div_ceil(COLUMNS), 1];
    let args: [&dyn KernelArg; 13] = [
        &x,
        &cond,
        &inputs,
        &weights.word,
        &weights.bias.unwrap_or(Address::NULL),
        &weights.pos_start.unwrap_or(Address::NULL),
        &pos,
        &(dims.input_batch as i32),
        &(dims.span.start as i32),
        &(tokens as i32),
        &(width as i32),
        &(dims.channels as i32),
        &(TOKENS as i32),
    ];
    // SAFETY: parameters as declared; lengths were checked on entry.
    unsafe { gpu.launch(FORWARD, grid, THREADS, 0, &args) }
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &EmbeddingDims,
    dx: Address<S>,
    inputs: Address<S>,
    dcond: Address<S>,
    dpos: Address<S>,
    gradients: &Gradients,
) -> Result<(), CudaError> {
    let (batch, width) = (dims.batch, dims.width);
    let sample = dims.span.len() * width;
    if sample == 0 {
        // SAFETY: the length was checked on entry.
        return unsafe { gpu.zero(dcond, batch * width) };
    }
    let word_len = width * dims.channels;
    // Sums over the batch, then the products; both aligned.
    let sums_len = sample.next_multiple_of(64);
    let sums = gpu.scratch((sums_len + batch * word_len) * 4)?.cast::<f32>();
    let products = sums.at(sums_len);
    let (kernel, step) = match vector::<S>() {
        step if width % step == 0 => (SUMS, step),
        _ => (SUMS_ANY, 1),
    };
    let (tokens, width_arg) = (dims.span.len() as i32, width as i32);
    let (batch_arg, sample_arg, word_arg) = (batch as i32, sample as u64, word_len as u64);
    // SAFETY: parameters as declared; lengths were checked on entry, `sums` holds a sample and
    // `products` a gradient of the words for every sample.
    unsafe {
        let args: [&dyn KernelArg; 7] =
            [&dpos, &sums, &dcond, &dx, &batch_arg, &sample_arg, &width_arg];
        gpu.launch(kernel, blocks(sample / step), THREADS, 0, &args)?;
        let bias = gradients.bias.unwrap_or(Address::NULL);
        let pos_start = gradients.pos_start.unwrap_or(Address::NULL);
        let args: [&dyn KernelArg; 5] = [&bias, &pos_start, &sums, &tokens, &width_arg];
        let grid = [width.div_ceil(BIAS_COLUMNS), 1, 1];
        gpu.launch(BIASES, grid, BIAS_THREADS, 0, &args)?;
        if dims.span.len() > 1 {
            gpu.gemm(&word_products(dims, dx, inputs, products))?;
            let args: [&dyn KernelArg; 4] = [&gradients.word, &products, &batch_arg, &word_arg];
            gpu.launch(WORDS, blocks(word_len), THREADS, 0, &args)?;
        }
    }
    Ok(())
}

/// `products[b] = dx_bᵀ·inputs_b` over the tokens that are not the class token.
fn word_products<S: Storage>(
    dims: &EmbeddingDims,
    dx: Address<S>,
    inputs: Address<S>,
    products: Address<f32>,
) -> Gemm {
    let (words, width, channels) = (dims.span.len() - 1, dims.width, dims.channels);
    let matrix = |address, data, leading, stride| Matrix {
        address,
        data,
        leading,
        transposed: false,
        stride,
    };
    let dx = matrix(dx.at(width).raw(), S::DATA_TYPE, width, (words + 1) * width);
    Gemm {
        m: width,
        n: channels,
        k: words,
        a: Matrix { transposed: true, ..dx },
        b: matrix(inputs.raw(), S::DATA_TYPE, channels, words * channels),
        out: matrix(products.raw(), DataType::F32, channels, width * channels),
        accumulate: false,
        bias: None,
        batch: dims.batch,
        sample: Sample::Product,
    }
}
