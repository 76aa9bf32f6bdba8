//! Convolution by im2col and matrix products.
//!
//! The patches of a part of the batch are written out as columns `[inputs·k², positions]` and
//! multiplied by the weights as they lie; a 1×1 convolution needs no columns. Columns are bounded: as
//! many whole images as fit, or a band of rows of one. A 3×3 layer writes and reads 9 elements for each
//! of x in the forward, and the same for each of its two gradients.
//!
//! Where several images have a part together, the weight gradient has their columns side by side, so
//! that the batch is among the terms of one product.

use super::maps::{THREADS, blocks, narrow, step};
use crate::KernelArg;
use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::gemm::{DataType, Gemm, Matrix};
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::ConvDims;

const BIAS: Kernel = Kernel { file: "conv2d", name: "conv_bias" };
const IM2COL: Kernel = Kernel { file: "conv2d", name: "im2col" };
const IM2COL_3X3: Kernel = Kernel { file: "conv2d", name: "im2col_3x3" };
const COL2IM: Kernel = Kernel { file: "conv2d", name: "col2im" };
const CHANNELS_FIRST: Kernel = Kernel { file: "conv2d", name: "conv_channels_first" };
const CHANNEL_SUMS: Kernel = Kernel { file: "conv2d", name: "conv_channel_sums" };
const ADD_SUMS: Kernel = Kernel { file: "conv2d", name: "conv_add_sums" };

/// Scratch for columns.
const COLUMN_BYTES: usize = 256 << 20;
/// Elements of a channel that a block sums; a multiple of what sixteen bytes hold.
const SLICE: usize = 8192;
/// Positions from which on the weight gradient of a 1×1 convolution is a product an image: terms
/// enough to fill the GPU, and nothing to copy.
const LONG_SUM: usize = 4096;
/// Bytes that pieces of scratch are aligned to.
const ALIGN: usize = 256;

/// A convolution and how much of it is done at once.
#[derive(Clone, Copy)]
struct Plan {
    d: ConvDims,
    /// Rows, columns and elements of a plane of y.
    out_height: usize,
    out_width: usize,
    area: usize,
    /// Rows of the columns.
    taps: usize,
    /// Scratch for columns.
    bytes: usize,
}

/// Images and rows of outputs that are done at once: whole images, or some rows of one.
#[derive(Clone, Copy)]
struct Part {
    image: usize,
    images: usize,
    row: usize,
    rows: usize,
}

/// Columns in scratch: where, and how far apart rows and images are.
#[derive(Clone, Copy)]
struct Columns<S> {
    at: Address<S>,
    row_stride: usize,
    image_stride: usize,
}

/// `y[b, outputs, oh, ow]`.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: ConvDims,
    x: Address<S>,
    weight: Address<S>,
    bias: Address<f32>,
    y: Address<S>,
) -> Result<(), CudaError> {
    Plan::new(dims, COLUMN_BYTES).forward(gpu, x, weight, bias, y)
}

/// Gradients of [`forward`]: `dx` overwritten where asked for, `dweight` and `dbias` added to.
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: ConvDims,
    dy: Address<S>,
    x: Address<S>,
    weight: Address<S>,
    dx: Option<Address<S>>,
    dweight: Address<f32>,
    dbias: Address<f32>,
) -> Result<(), CudaError> {
    Plan::new(dims, COLUMN_BYTES).backward(gpu, dy, (x, weight), dx, (dweight, dbias))
}

impl Plan {
    fn new(d: ConvDims, bytes: usize) -> Self {
        let (out_height, out_width) = d.output();
        let taps = d.inputs * d.kernel * d.kernel;
        Self { d, out_height, out_width, area: out_height * out_width, taps, bytes }
    }

    /// Whether columns are the maps as they lie.
    fn pointwise(self) -> bool {
        let ConvDims { kernel, stride, pad_before, pad_after, .. } = self.d;
        kernel == 1 && stride == 1 && pad_before == 0 && pad_after == 0
    }

    fn x_image(self) -> usize {
        self.d.inputs * self.d.height * self.d.width
    }

    fn y_image(self) -> usize {
        self.d.outputs * self.area
    }

    /// Images and rows that fit where a position takes `per_position` elements.
    fn fitting<S: Storage>(self, per_position: usize) -> (usize, usize) {
        let row = per_position * self.out_width * size_of::<S>();
        match self.bytes / (row * self.out_height).max(1) {
            0 => (1, (self.bytes / row).clamp(1, self.out_height)),
            images => (images.min(self.d.batch), self.out_height),
        }
    }

    fn parts(self, (images, rows): (usize, usize)) -> impl Iterator<Item = Part> {
        let (batch, height) = (self.d.batch, self.out_height);
        (0..batch).step_by(images).flat_map(move |image| {
            let images = images.min(batch - image);
            let part = move |row| Part { image, images, row, rows: rows.min(height - row) };
            (0..height).step_by(rows).map(part)
        })
    }

    /// Columns of a part, image after image.
    fn columns<S: Storage>(self, at: Address<S>, part: Part) -> Columns<S> {
        let positions = part.rows * self.out_width;
        Columns { at, row_stride: positions, image_stride: self.taps * positions }
    }

    /// A part of a map of the size of y, `[outputs, positions]` of each image.
    fn outputs<S: Storage>(self, y: Address<S>, part: Part) -> Matrix {
        let first = part.image * self.y_image() + part.row * self.out_width;
        matrix(y.at(first), S::DATA_TYPE, self.area, self.y_image())
    }

    fn weights<S: Storage>(self, weight: Address<S>) -> Matrix {
        matrix(weight, S::DATA_TYPE, self.taps, 0)
    }

    fn forward<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        x: Address<S>,
        weight: Address<S>,
        bias: Address<f32>,
        y: Address<S>,
    ) -> Result<(), CudaError> {
        if self.d.batch * self.y_image() == 0 {
            return Ok(());
        }
        self.fill_bias(gpu, bias, y)?;
        if self.taps == 0 {
            return Ok(());
        }
        let whole = Part { image: 0, images: self.d.batch, row: 0, rows: self.out_height };
        if self.pointwise() {
            let columns = self.columns(x, whole);
            return self.add_product(gpu, whole, columns, weight, y);
        }
        let fitting = self.fitting::<S>(self.taps);
        let (images, rows) = fitting;
        let len = images * self.taps * rows * self.out_width;
        let at = gpu.scratch(len * size_of::<S>())?.cast::<S>();
        for part in self.parts(fitting) {
            let columns = self.columns(at, part);
            self.im2col(gpu, part, x, columns)?;
            self.add_product(gpu, part, columns, weight, y)?;
        }
        Ok(())
    }

    fn fill_bias<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        bias: Address<f32>,
        y: Address<S>,
    ) -> Result<(), CudaError> {
        let outputs = narrow("conv2d", "outputs", self.d.outputs)?;
        let area = narrow("conv2d", "elements of a plane of y", self.area)?;
        let step = step::<S>(self.area);
        let steps = self.d.batch * self.y_image() / step;
        // SAFETY: parameters as declared; a thread a step of y.
        unsafe {
            let args: [&dyn KernelArg; 6] =
                [&y, &bias, &(steps as u64), &outputs, &area, &(step as i32)];
            gpu.launch(BIAS, blocks(steps), THREADS, 0, &args)
        }
    }

    /// `y += W·columns` for a part.
    fn add_product<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        part: Part,
        columns: Columns<S>,
        weight: Address<S>,
        y: Address<S>,
    ) -> Result<(), CudaError> {
        let gemm = Gemm {
            m: self.d.outputs,
            n: part.rows * self.out_width,
            k: self.taps,
            a: self.weights(weight),
            b: columns.matrix(),
            out: self.outputs(y, part),
            accumulate: true,
            bias: None,
            batch: part.images,
        };
        // SAFETY: the part lies within y, the columns in scratch or, 1×1, in x.
        unsafe { gpu.gemm(&gemm) }
    }

    fn im2col<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        part: Part,
        x: Address<S>,
        columns: Columns<S>,
    ) -> Result<(), CudaError> {
        const OP: &str = "conv2d";
        let ConvDims { inputs, height, width, kernel, stride, pad_before, pad_after, .. } = self.d;
        narrow(OP, "elements of a plane of x", height * width)?;
        let positions = part.rows * self.out_width;
        let x = x.at(part.image * self.x_image());
        let pack = step::<S>(width);
        let vector = (kernel, stride, pad_before, pad_after) == (3, 1, 1, 1) && pack > 1;
        let threads = part.images * inputs * positions / if vector { pack } else { 1 };
        let (count, inputs) = (narrow(OP, "columns of all inputs", threads)?, inputs as u32);
        let (height, width, row) = (height as i32, width as i32, part.row as i32);
        let (positions, row_stride) = (positions as u32, columns.row_stride as u64);
        let image_stride = columns.image_stride as u64;
        let grid = blocks(threads);
        // SAFETY: parameters as declared; columns are as long as their strides say.
        unsafe {
            if vector {
                let args: [&dyn KernelArg; 10] = [
                    &columns.at,
                    &x,
                    &count,
                    &inputs,
                    &height,
                    &width,
                    &row,
                    &positions,
                    &row_stride,
                    &image_stride,
                ];
                return gpu.launch(IM2COL_3X3, grid, THREADS, 0, &args);
            }
            let args: [&dyn KernelArg; 14] = [
                &columns.at,
                &x,
                &count,
                &inputs,
                &height,
                &width,
                &(kernel as i32),
                &(stride as i32),
                &(pad_before as i32),
                &(self.out_width as u32),
                &row,
                &positions,
                &row_stride,
                &image_stride,
            ];
            gpu.launch(IM2COL, grid, THREADS, 0, &args)
        }
    }

    fn backward<S: Storage, D: Device>(
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
        let scratch =
            gpu.scratch(sums.max(self.weight_bytes::<S>()).max(self.input_bytes::<S>()))?;
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
        let count = narrow(OP, "slices of a channel", slices)?;
        let step = step::<S>(self.area) as i32;
        let len = (self.d.batch * self.area) as u64;
        // SAFETY: parameters as declared; a sum for every slice of every channel.
        unsafe {
            let args: [&dyn KernelArg; 7] =
                [&partials, &dy, &len, &outputs, &area, &(SLICE as i32), &step];
            gpu.launch(CHANNEL_SUMS, [slices * self.d.outputs, 1, 1], THREADS, 0, &args)?;
            let args: [&dyn KernelArg; 4] = [&dbias, &partials, &count, &outputs];
            gpu.launch(ADD_SUMS, blocks(self.d.outputs), THREADS, 0, &args)
        }
    }

    /// Parts of the weight gradient: room for the columns and, beside them, dy rearranged.
    fn weight_parts<S: Storage>(self) -> (usize, usize) {
        if self.pointwise() && self.area >= LONG_SUM {
            return (1, self.out_height);
        }
        self.fitting::<S>(self.taps + self.d.outputs)
    }

    fn weight_bytes<S: Storage>(self) -> usize {
        let (images, rows) = self.weight_parts::<S>();
        if self.pointwise() && images == 1 {
            return 0;
        }
        let positions = images * rows * self.out_width * size_of::<S>();
        (self.taps * positions).next_multiple_of(ALIGN) + self.d.outputs * positions
    }

    fn add_weight_gradient<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        dy: Address<S>,
        x: Address<S>,
        scratch: Address<u32>,
        dweight: Address<f32>,
    ) -> Result<(), CudaError> {
        for part in self.parts(self.weight_parts::<S>()) {
            let positions = part.images * part.rows * self.out_width;
            let (columns, given) = if part.images > 1 {
                self.side_by_side(gpu, part, dy, x, scratch)?
            } else if self.pointwise() {
                (self.columns(x.at(part.image * self.x_image()), part), self.outputs(dy, part))
            } else {
                let columns = self.columns(scratch.cast::<S>(), part);
                self.im2col(gpu, part, x, columns)?;
                (columns, self.outputs(dy, part))
            };
            let gemm = Gemm {
                m: self.d.outputs,
                n: self.taps,
                k: positions,
                a: given,
                b: transposed(columns.matrix()),
                out: matrix(dweight, DataType::F32, self.taps, 0),
                accumulate: true,
                bias: None,
                batch: 1,
            };
            // SAFETY: columns and dy of the part, and a weight gradient checked at the door.
            unsafe { gpu.gemm(&gemm)? };
        }
        Ok(())
    }

    /// Columns `[taps, images·positions]` and dy `[outputs, images·positions]` of several images.
    fn side_by_side<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        part: Part,
        dy: Address<S>,
        x: Address<S>,
        scratch: Address<u32>,
    ) -> Result<(Columns<S>, Matrix), CudaError> {
        let row_stride = part.images * self.area;
        let columns = Columns { at: scratch.cast::<S>(), row_stride, image_stride: self.area };
        if self.pointwise() {
            let x = x.at(part.image * self.x_image());
            self.channels_first(gpu, part.images, self.d.inputs, x, columns.at)?;
        } else {
            self.im2col(gpu, part, x, columns)?;
        }
        let bytes = (self.taps * row_stride * size_of::<S>()).next_multiple_of(ALIGN);
        let given = scratch.at(bytes / size_of::<u32>()).cast::<S>();
        let dy = dy.at(part.image * self.y_image());
        self.channels_first(gpu, part.images, self.d.outputs, dy, given)?;
        Ok((columns, matrix(given, S::DATA_TYPE, row_stride, 0)))
    }

    /// Maps of the size of y's, `[images, channels, area]`, as `[channels, images, area]`.
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

    /// `dx = Wᵀ·dy`, a 1×1 convolution.
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
        };
        // SAFETY: as in `add_product`.
        unsafe { gpu.gemm(&gemm) }
    }

    /// Images and rows of x whose gradient is done at once, and the most rows of y that these need.
    fn input_parts<S: Storage>(self) -> (usize, usize, usize) {
        let (images, rows) = self.fitting::<S>(self.taps);
        if rows == self.out_height {
            return (images, self.d.height, rows);
        }
        // So many rows of x have taps in no more than `rows` rows of y.
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

    /// The rows of y that see rows `first..end` of x: their first, and their number.
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

    /// Rows `own` of dx from the gradients of the columns of a part.
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
        // SAFETY: parameters as declared; a thread an element of these rows, which reads columns of
        // the part alone.
        unsafe { gpu.launch(COL2IM, blocks(threads), THREADS, 0, &args) }
    }
}

impl<S: Storage> Columns<S> {
    /// `[taps, positions]` of each image.
    fn matrix(self) -> Matrix {
        matrix(self.at, S::DATA_TYPE, self.row_stride, self.image_stride)
    }
}

fn matrix<T>(address: Address<T>, data: DataType, leading: usize, stride: usize) -> Matrix {
    Matrix { address: address.raw(), data, leading, transposed: false, stride }
}

fn transposed(matrix: Matrix) -> Matrix {
    Matrix { transposed: true, ..matrix }
}
