//! Gradients of a convolution: products over the same columns, and the way back from columns to maps.

use super::super::maps::{THREADS, blocks, narrow, step};
use super::{Columns, Part, Plan, matrix, transposed};
use crate::KernelArg;
use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::gemm::{DataType, Gemm, Matrix, Sample};
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::ConvDims;

const COL2IM: Kernel = Kernel { file: "conv2d", name: "col2im" };
const CHANNELS_FIRST: Kernel = Kernel { file: "conv2d", name: "conv_channels_first" };
const CHANNEL_SUMS: Kernel = Kernel { file: "conv2d", name: "conv_channel_sums" };
const ADD_SUMS: Kernel = Kernel { file: "conv2d", name: "conv_add_sums" };

/// Elements of a channel that a block sums; a multiple of what sixteen bytes hold.
const SLICE: usize = 8192;
/// Number of positions from which on the weight gradient of a 1×1 convolution takes one product per
/// image: it has enough terms to fill the GPU, and nothing need be copied.
const LONG_SUM: usize = 4096;
/// Side of a tile. A weight gradient has few elements and many terms: its products are split by terms until
/// there are [`TILES`] tiles, as long as each has [`LEAST_TERMS`] terms. Their sums are added in order.
const TILE: usize = 128;
const TILES: usize = 256;
const LEAST_TERMS: usize = 1024;
/// Terms of a split are a multiple of this, so that each starts at a multiple of sixteen bytes.
const TERMS: usize = 8;
/// Bytes that pieces of scratch are aligned to.
const ALIGN: usize = 256;

impl Plan {
    /// Gradients of [`Plan::forward`]: `dx` is overwritten if asked for, the others are added to.
    pub(super) fn backward<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        dy: Address<S>,
        (x, weight): (Address<S>, Address<S>),
        dx: Option<Address<S>>,
        (dweight, dbias): (Address<f32>, Address<f32>),
    ) -> Result<(), CudaError> {
        if self.d.batch * self.y_image() == 0 {
            // SAFETY: dx has as many elements, or there is none.
            return dx.map_or(Ok(()), |dx| unsafe { gpu.zero(dx, self.d.batch * self.x_image()) });
        }
        let slices = (self.d.batch * self.area).div_ceil(SLICE);
        let sums = slices * self.d.outputs * 4;
        let scratch = gpu.scratch(
            sums.max(self.weight_bytes::<S>().iter().sum()).max(self.input_bytes::<S>()),
        )?;
        self.add_bias_gradient(gpu, slices, dy, scratch.cast(), dbias)?;
        self.add_weight_gradient(gpu, dy, x, scratch, dweight)?;
        match dx {
            Some(dx) if self.pointwise() => self.pointwise_input(gpu, dy, weight, dx),
            Some(dx) => self.input_gradient(gpu, dy, weight, scratch.cast(), dx),
            None => Ok(()),
        }
    }

    fn add_bias_gradient<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        slices: usize,
        dy: Address<S>,
        partials: Address<f32>,
        dbias: Address<f32>,
    ) -> Result<(), CudaError> {
        const OP: &str = "conv2d_backward";
        let outputs = narrow(OP, "outputs", self.d.outputs)?;
        let area = narrow(OP, "elements of a plane of y", self.area)?;
        let step = step::<S>(self.area) as i32;
        let len = (self.d.batch * self.area) as u64;
        // SAFETY: parameters as declared; a sum for every slice of every channel.
        unsafe {
            let args: [&dyn KernelArg; 7] =
                [&partials, &dy, &len, &outputs, &area, &(SLICE as i32), &step];
            gpu.launch(CHANNEL_SUMS, [slices * self.d.outputs, 1, 1], THREADS, 0, &args)?;
        }
        add_sums(gpu, slices, self.d.outputs, partials, dbias)
    }

    /// Images and rows of a part of the weight gradient, whose scratch holds columns and dy rearranged.
    fn weight_parts<S: Storage>(self) -> (usize, usize) {
        let (images, rows) = self.fitting::<S>(self.taps + self.d.outputs);
        match self.pointwise() {
            false => (images, rows),
            // A single image is multiplied as it is stored, all of it at once.
            true if self.area >= LONG_SUM => (1, self.out_height),
            true => (images, self.out_height),
        }
    }

    /// Bytes of the sums of split products, of the columns, and of dy rearranged.
    fn weight_bytes<S: Storage>(self) -> [usize; 3] {
        let (images, rows) = self.weight_parts::<S>();
        let positions = images * rows * self.out_width;
        let sums = self.splits(positions) * self.d.outputs * self.taps * size_of::<f32>();
        let bytes = positions * size_of::<S>();
        let [columns, given] = match self.pointwise() && images == 1 {
            true => [0, 0],
            false => [self.taps * bytes, self.d.outputs * bytes],
        };
        [sums, columns, given].map(|bytes| bytes.next_multiple_of(ALIGN))
    }

    /// Number of products that the weight gradient over `positions` is split into; 0 if it is not split.
    fn splits(self, positions: usize) -> usize {
        let tiles = self.d.outputs.div_ceil(TILE) * self.taps.div_ceil(TILE);
        match TILES.div_ceil(tiles.max(1)).min(positions / LEAST_TERMS) {
            0 | 1 => 0,
            splits => splits,
        }
    }

    fn add_weight_gradient<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        dy: Address<S>,
        x: Address<S>,
        scratch: Address<u32>,
        dweight: Address<f32>,
    ) -> Result<(), CudaError> {
        let [sums, columns, _] = self.weight_bytes::<S>().map(|bytes| bytes / size_of::<u32>());
        let (sums, held, given) =
            (scratch, scratch.at(sums).cast::<S>(), scratch.at(sums + columns).cast::<S>());
        for part in self.parts(self.weight_parts::<S>()) {
            let positions = part.images * part.rows * self.out_width;
            let (columns, dy) = if part.images > 1 {
                self.side_by_side(gpu, part, dy, x, (held, given))?
            } else if self.pointwise() {
                (self.columns(x.at(part.image * self.x_image()), part), self.outputs(dy, part))
            } else {
                let columns = self.columns(held, part);
                self.im2col(gpu, part, x, columns)?;
                (columns, self.outputs(dy, part))
            };
            self.add_terms(gpu, positions, dy, columns.matrix(), sums.cast(), dweight)?;
        }
        Ok(())
    }

    /// `dW += dy·columnsᵀ` over `positions` positions.
    fn add_terms<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        positions: usize,
        dy: Matrix,
        columns: Matrix,
        sums: Address<f32>,
        dweight: Address<f32>,
    ) -> Result<(), CudaError> {
        let len = self.d.outputs * self.taps;
        let splits = self.splits(positions);
        let terms = positions.checked_div(splits).unwrap_or(0) / TERMS * TERMS;
        let whole = |terms| Gemm {
            m: self.d.outputs,
            n: self.taps,
            k: terms,
            a: dy,
            b: transposed(columns),
            out: matrix(dweight, DataType::F32, self.taps, 0),
            accumulate: true,
            bias: None,
            batch: 1,
            sample: Sample::All,
        };
        if splits > 0 {
            let each = |matrix| Matrix { stride: terms, ..matrix };
            let product = Gemm {
                a: each(dy),
                b: each(transposed(columns)),
                out: matrix(sums, DataType::F32, self.taps, len),
                accumulate: false,
                batch: splits,
                ..whole(terms)
            };
            // SAFETY: the terms of all splits lie within the columns; scratch has a sum for each.
            unsafe { gpu.gemm(&product)? };
            add_sums(gpu, splits, len, sums, dweight)?;
        }
        let done = splits * terms;
        if done == positions {
            return Ok(());
        }
        let rest = |matrix: Matrix| Matrix {
            address: matrix.address + (done * matrix.data.bytes()) as u64,
            ..matrix
        };
        let product = Gemm { a: rest(dy), b: rest(transposed(columns)), ..whole(positions - done) };
        // SAFETY: what is left of the columns; the weight gradient was checked on entry.
        unsafe { gpu.gemm(&product) }
    }

    /// Columns `[taps, images·positions]` and dy `[outputs, images·positions]` of several images.
    fn side_by_side<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        part: Part,
        dy: Address<S>,
        x: Address<S>,
        (held, given): (Address<S>, Address<S>),
    ) -> Result<(Columns<S>, Matrix), CudaError> {
        let row_stride = part.images * self.area;
        let columns = Columns { at: held, row_stride, image_stride: self.area };
        if self.pointwise() {
            let x = x.at(part.image * self.x_image());
            self.channels_first(gpu, part.images, self.d.inputs, x, columns.at)?;
        } else {
            self.im2col(gpu, part, x, columns)?;
        }
        let dy = dy.at(part.image * self.y_image());
        self.channels_first(gpu, part.images, self.d.outputs, dy, given)?;
        Ok((columns, matrix(given, S::DATA_TYPE, row_stride, 0)))
    }

    /// Copies maps of the size of y's from `[images, channels, area]` to `[channels, images, area]`.
    fn channels_first<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        images: usize,
        channels: usize,
        from: Address<S>,
        to: Address<S>,
    ) -> Result<(), CudaError> {
        let step = step::<S>(self.area);
        let steps = images * channels * self.area / step;
        let (images, channels) = (images as u32, channels as u32);
        // SAFETY: parameters as declared; both have as many elements, and `to` is scratch.
        unsafe {
            let args: [&dyn KernelArg; 7] = [
                &to,
                &from,
                &(steps as u64),
                &images,
                &channels,
                &(self.area as u32),
                &(step as i32),
            ];
            gpu.launch(CHANNELS_FIRST, blocks(steps), THREADS, 0, &args)
        }
    }

    /// `dx = Wᵀ·dy`, for a 1×1 convolution.
    fn pointwise_input<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        dy: Address<S>,
        weight: Address<S>,
        dx: Address<S>,
    ) -> Result<(), CudaError> {
        let whole = Part { image: 0, images: self.d.batch, row: 0, rows: self.out_height };
        self.column_gradient(gpu, whole, dy, weight, self.columns(dx, whole))
    }

    /// `columns = Wᵀ·dy` for a part.
    fn column_gradient<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        part: Part,
        dy: Address<S>,
        weight: Address<S>,
        columns: Columns<S>,
    ) -> Result<(), CudaError> {
        let gemm = Gemm {
            m: self.taps,
            n: part.rows * self.out_width,
            k: self.d.outputs,
            a: transposed(self.weights(weight)),
            b: self.outputs(dy, part),
            out: columns.matrix(),
            accumulate: false,
            bias: None,
            batch: part.images,
            sample: Sample::Product,
        };
        // SAFETY: as in `product`.
        unsafe { gpu.gemm(&gemm) }
    }

    /// Images and rows of x whose gradient is computed at once, and the most rows of y that these need.
    fn input_parts<S: Storage>(self) -> (usize, usize, usize) {
        let (images, rows) = self.fitting::<S>(self.taps);
        if rows == self.out_height {
            return (images, self.d.height, rows);
        }
        // This many rows of x have taps in no more than `rows` rows of y.
        let ConvDims { kernel, stride, height, .. } = self.d;
        let own = (rows * stride).saturating_sub(kernel - 1).clamp(1, height.max(1));
        let seen = (own + kernel - 2) / stride + 1;
        (images, own, seen.min(self.out_height))
    }

    fn input_bytes<S: Storage>(self) -> usize {
        if self.pointwise() {
            return 0;
        }
        let (images, _, rows) = self.input_parts::<S>();
        images * self.taps * rows * self.out_width * size_of::<S>()
    }

    /// The rows of y that see rows `first..end` of x, as the first row and their number.
    fn seeing(self, first: usize, end: usize) -> (usize, usize) {
        let ConvDims { kernel, stride, pad_before, .. } = self.d;
        let from = (first + pad_before + 1).saturating_sub(kernel).div_ceil(stride);
        let to = ((end - 1 + pad_before) / stride + 1).min(self.out_height);
        (from, to.saturating_sub(from))
    }

    fn input_gradient<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        dy: Address<S>,
        weight: Address<S>,
        scratch: Address<S>,
        dx: Address<S>,
    ) -> Result<(), CudaError> {
        let ConvDims { batch, height, .. } = self.d;
        let (images, own, _) = self.input_parts::<S>();
        for image in (0..batch).step_by(images) {
            for first in (0..height).step_by(own) {
                let end = height.min(first + own);
                let (row, rows) = self.seeing(first, end);
                let part = Part { image, images: images.min(batch - image), row, rows };
                let columns = self.columns(scratch, part);
                self.column_gradient(gpu, part, dy, weight, columns)?;
                self.col2im(gpu, part, first..end, columns, dx)?;
            }
        }
        Ok(())
    }

    /// Computes rows `own` of dx from the gradients of the columns of a part.
    fn col2im<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        part: Part,
        own: core::ops::Range<usize>,
        columns: Columns<S>,
        dx: Address<S>,
    ) -> Result<(), CudaError> {
        const OP: &str = "conv2d_backward";
        let ConvDims { inputs, height, width, kernel, stride, pad_before, .. } = self.d;
        narrow(OP, "elements of a plane of x", height * width)?;
        let threads = part.images * inputs * own.len() * width;
        let count = narrow(OP, "elements of a part of dx", threads)?;
        let dx = dx.at(part.image * self.x_image());
        let args: [&dyn KernelArg; 16] = [
            &dx,
            &columns.at,
            &count,
            &(inputs as u32),
            &(height as i32),
            &(width as u32),
            &(kernel as i32),
            &(stride as i32),
            &(pad_before as i32),
            &(self.out_width as i32),
            &(own.start as i32),
            &(own.len() as u32),
            &(part.row as i32),
            &(part.rows as i32),
            &(columns.row_stride as u64),
            &(columns.image_stride as u64),
        ];
        // SAFETY: parameters as declared; one thread per element of these rows, which reads only
        // columns of the part.
        unsafe { gpu.launch(COL2IM, blocks(threads), THREADS, 0, &args) }
    }
}

/// `to[len] += Σ sums[count, len]`, in order.
fn add_sums<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    count: usize,
    len: usize,
    sums: Address<f32>,
    to: Address<f32>,
) -> Result<(), CudaError> {
    const OP: &str = "conv2d_backward";
    let (count, elements) = (narrow(OP, "sums", count)?, narrow(OP, "weights", len)?);
    // SAFETY: parameters as declared; the caller's sums and gradient.
    unsafe {
        let args: [&dyn KernelArg; 4] = [&to, &sums, &count, &elements];
        gpu.launch(ADD_SUMS, blocks(len), THREADS, 0, &args)
    }
}
