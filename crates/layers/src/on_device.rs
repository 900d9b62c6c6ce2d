//! What the device halves of layers share: extents and grids of kernels.

use lgm_core::{
    BlobSpec, DevicePtr, DeviceQueue, Element, Error, Format, Gemm, Grid, Layout, Result, Shape, args, kernel,
};

#[cfg(test)]
mod tests;

/// Says that a layer has a device half; within `impl Layer`.
macro_rules! on_device {
    () => {
        fn device(&self) -> Option<&dyn lgm_core::Run<lgm_core::Device>> {
            Some(self)
        }

        fn device_mut(&mut self) -> Option<&mut dyn lgm_core::Run<lgm_core::Device>> {
            Some(self)
        }
    };
}
pub(crate) use on_device;

/// An extent as kernels take it.
///
/// # Errors
/// When it exceeds 2³² − 1.
pub(crate) fn extent(n: usize) -> Result<u32> {
    n.try_into().map_err(|_| Error::config(format!("an extent of {n} is more than kernels can count; split the blob")))
}

/// The grid of a kernel that strides over `rows` rows in y and `width` positions in x: blocks of 256 threads, as wide as
/// a row needs.
pub(crate) fn row_grid(rows: usize, width: usize) -> Grid {
    let across = width.clamp(1, Grid::THREADS as usize).next_power_of_two() as u32;
    let down = Grid::THREADS / across;
    let blocks = |n: usize, by: u32, most: usize| n.div_ceil(by as usize).clamp(1, most) as u32;
    Grid { blocks: [blocks(width, across, 1 << 20), blocks(rows, down, 65535), 1], threads: [across, down, 1] }
}

/// y[i] = value.
pub(crate) fn fill(queue: &dyn DeviceQueue, element: Element, y: DevicePtr, value: f32, n: usize) -> Result<()> {
    queue.launch(kernel!(element, "pointwise_fill"), Grid::elements(n), args![y, value, n as i64])
}

/// y = x, or y += x with `add`, from one format to another; the blob has `outer` images of `channels` of `inner` positions.
pub(crate) fn convert(
    queue: &dyn DeviceQueue,
    (y, to): (DevicePtr, Format),
    (x, from): (DevicePtr, Format),
    [outer, channels, inner]: [usize; 3],
    add: bool,
) -> Result<()> {
    let (n, flag) = (outer * channels * inner, u32::from(add));
    if to.layout == from.layout || channels == 1 || inner == 1 {
        let narrowing = match (to.element, from.element) {
            (Element::Bf16, Element::F32) => "format_narrow",
            (Element::F32, Element::Bf16) => "format_widen",
            (element, _) if add => {
                let args = args![y, y, x, 1.0f32, 1.0f32, n as i64];
                return queue.launch(kernel!(element, "eltwise_sum"), Grid::elements(n), args);
            }
            (element, _) => return queue.copy(x, y, n * element.bytes()),
        };
        return queue.launch(narrowing, Grid::elements(n.div_ceil(4)), args![y, x, flag, n as i64]);
    }
    let kernel = match (to.element, from.element) {
        (Element::F32, Element::F32) => "format_transpose",
        (Element::Bf16, Element::Bf16) => "format_transpose_bf16",
        (Element::Bf16, Element::F32) => "format_transpose_narrow",
        (Element::F32, Element::Bf16) => "format_transpose_widen",
    };
    let (rows, columns) = if from.layout == Layout::ChannelsFirst { (channels, inner) } else { (inner, channels) };
    let squares = extent(rows.div_ceil(32) * columns.div_ceil(32))?;
    let grid = Grid { blocks: [squares, outer.clamp(1, 65535) as u32, 1], threads: [32, 8, 1] };
    queue.launch(kernel, grid, args![y, x, flag, extent(outer)?, extent(rows)?, extent(columns)?])
}

/// C ← A · B + β · C: one product of matrices given by their address and the distance between their rows.
pub(crate) fn product(
    (m, n, k): (usize, usize, usize),
    (a, lda): (DevicePtr, usize),
    (b, ldb): (DevicePtr, usize),
    beta: f32,
    (c, ldc): (DevicePtr, usize),
) -> Gemm {
    let (trans_a, trans_b, alpha, batch, exact) = (false, false, 1.0, (1, [0; 3]), false);
    let (factors, result) = (Element::F32, Element::F32);
    Gemm { trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batch, exact, factors, result }
}

/// A blob as images × channels × positions, and how kernels go over it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Channels {
    /// Positions before the channels.
    pub outer: usize,
    /// Channels.
    pub channels: usize,
    /// Positions after the channels.
    pub inner: usize,
    /// The type of elements.
    pub element: Element,
}

/// Blocks that keep a device busy.
const BLOCKS: usize = 1024;
/// Elements that are worth a block.
const WORTH: usize = 4096;
/// Channels of a block where nothing stands after the channels.
const TOGETHER: usize = 32;

impl Channels {
    /// A blob in single precision, axis by axis.
    pub fn new(outer: usize, channels: usize, inner: usize) -> Self {
        Channels { outer, channels, inner, element: Element::F32 }
    }

    /// The same blob as it lies in a format: with channels last, nothing stands after them.
    pub fn stored(self, format: Format) -> Self {
        let element = format.element;
        match format.layout {
            Layout::ChannelsFirst => Channels { element, ..self },
            Layout::ChannelsLast => Channels { outer: self.outer * self.inner, inner: 1, element, ..self },
        }
    }

    /// The rows of a kernel that goes over the blob: their number, their length and, for the kernel's CHANNEL, the
    /// channels that follow one another row by row.
    fn layout(&self) -> (usize, usize, usize) {
        if self.inner == 1 {
            (self.outer, self.channels, 0)
        } else {
            (self.outer * self.channels, self.inner, self.channels)
        }
    }

    /// The grid of a kernel that goes over the blob, and its last three arguments.
    ///
    /// # Errors
    /// When the blob is too large.
    pub fn rows(&self) -> Result<(Grid, [u32; 3])> {
        let (rows, width, channels) = self.layout();
        Ok((row_grid(rows, width), [extent(rows)?, extent(width)?, extent(channels)?]))
    }

    fn column_blocks(&self) -> usize {
        if self.inner == 1 { self.channels.div_ceil(TOGETHER) } else { self.channels }
    }

    /// Parts that each channel's elements are summed in; it follows from the shape alone.
    pub fn chunks(&self) -> usize {
        let columns = self.column_blocks().max(1);
        let work = self.outer * self.inner * if self.inner == 1 { TOGETHER } else { 1 };
        BLOCKS.div_ceil(columns).min(work.div_ceil(WORTH)).max(1)
    }

    /// Scratch for `sums` sums of each channel.
    pub fn scratch(&self, like: &BlobSpec, sums: usize) -> BlobSpec {
        like.with_shape(Shape::from([sums * self.chunks() * self.channels]))
    }

    /// The grid of a kernel that sums over channels, and its last three arguments.
    ///
    /// # Errors
    /// When a channel is too large.
    pub fn sums(&self) -> Result<(Grid, [u32; 3])> {
        extent(self.outer * self.inner)?;
        let blocks = [extent(self.column_blocks().max(1))?, self.chunks() as u32, 1];
        let grid = Grid { blocks, threads: [Grid::THREADS, 1, 1] };
        Ok((grid, [extent(self.outer)?, extent(self.channels)?, extent(self.inner)?]))
    }

    /// y = x · s + b, each where given, then max(y, 0) with `relu`; y may be x.
    #[allow(clippy::too_many_arguments)]
    pub fn affine(
        &self,
        queue: &dyn DeviceQueue,
        y: DevicePtr,
        x: DevicePtr,
        s: Option<DevicePtr>,
        b: Option<DevicePtr>,
        relu: bool,
    ) -> Result<()> {
        let (grid, [rows, width, channels]) = self.rows()?;
        queue.launch(
            kernel!(self.element, "channels_affine"),
            grid,
            args![y, x, s, b, u32::from(relu), rows, width, channels],
        )
    }

    /// Sums of dy · x into `ds` and of dy into `db`, over all that is not the channel; added to what is there with `add`.
    /// `partial` is scratch for two sums.
    pub fn add_sums(
        &self,
        queue: &dyn DeviceQueue,
        (dy, x): (DevicePtr, Option<DevicePtr>),
        (ds, db): (Option<DevicePtr>, Option<DevicePtr>),
        add: bool,
        partial: DevicePtr,
    ) -> Result<()> {
        let (grid, [outer, channels, inner]) = self.sums()?;
        queue.launch(
            kernel!(self.element, "channels_partials"),
            grid,
            args![partial, dy, x, outer, channels, inner],
        )?;
        let finish = args![ds, db, partial, self.chunks() as u32, channels, u32::from(add)];
        queue.launch("channels_finish", Grid::elements(self.channels), finish)
    }
}
