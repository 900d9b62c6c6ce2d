//! What the device halves of layers share: extents and grids of kernels.

use lgm_core::{
    BlobSpec, DevicePtr, DeviceQueue, Element, Error, Format, Gemm, Grid, Layout, Result, Shape, args, kernel,
};

#[cfg(test)]
mod tests;

/// An extent as kernels take it.
///
/// # Errors
/// When it exceeds 2³² − 2²⁹.
pub(crate) fn extent(n: usize) -> Result<u32> {
    // Strides of a grid must not wrap around before the end is seen.
    let most = u32::MAX - (1 << 29);
    n.try_into().ok().filter(|&n| n <= most).ok_or_else(|| {
        Error::config(format!("an extent of {n} is more than kernels can count ({most}); split the blob"))
    })
}

/// The grid of a kernel that strides over `rows` rows in y and `width` positions in x: blocks of up to 256 threads, as
/// wide as a row needs.
pub(crate) fn row_grid(rows: usize, width: usize) -> Grid {
    let threads = row_threads(width);
    let blocks = |n: usize, by: u32, most: usize| n.div_ceil(by as usize).clamp(1, most) as u32;
    Grid { blocks: [blocks(width, threads[0], 1 << 20), blocks(rows, threads[1], 65535), 1], threads }
}

/// Threads of a block for rows of so many positions: no more across than these, and as many rows as fit.
fn row_threads(width: usize) -> [u32; 3] {
    let across = width.clamp(1, Grid::THREADS as usize) as u32;
    [across, Grid::THREADS / across, 1]
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
pub(crate) const BLOCKS: usize = 528;
/// Elements that are worth a block.
const WORTH: usize = 4096;
/// Packs, or rows of them, that a thread asks for before it looks at the first: AHEAD of the kernels.
const AHEAD: usize = 2;
/// Rows that are worth a thread.
const ROWS: usize = 8;
/// Most columns of a block that sums over rows.
pub(crate) const TOGETHER: usize = 32;

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

    /// What a row's positions are taken in: packs of 16 bytes where they divide it.
    fn packs(&self, width: usize) -> usize {
        let pack = 16 / self.element.bytes();
        if width.is_multiple_of(pack) { width / pack } else { width }
    }

    /// The grid of a kernel that goes over the blob by CHANNEL, and its last three arguments. Where channels come last, a
    /// thread keeps to its own and goes down the rows.
    ///
    /// # Errors
    /// When the blob is too large.
    pub fn rows(&self) -> Result<(Grid, [u32; 3])> {
        let (rows, width, channels) = self.layout();
        let packs = self.packs(width);
        let grid = if channels == 0 {
            let Grid { blocks, threads } = row_grid(rows.div_ceil(AHEAD), packs);
            Grid { blocks: [blocks[0], blocks[1].min((BLOCKS as u32).div_ceil(blocks[0])), 1], threads }
        } else {
            let threads = row_threads(packs);
            let across = packs.div_ceil(AHEAD * threads[0] as usize).max(1) as u32;
            Grid { blocks: [across, row_grid(rows, packs).blocks[1], 1], threads }
        };
        Ok((grid, [extent(rows)?, extent(width)?, extent(channels)?]))
    }

    /// Threads of a block that sums over channels, and blocks side by side.
    fn columns(&self) -> ([u32; 3], usize) {
        if self.inner > 1 {
            let threads = (self.outer * self.packs(self.inner)).next_multiple_of(32).clamp(32, Grid::THREADS as usize);
            return ([threads as u32, 1, 1], self.channels.max(1));
        }
        let packs = self.packs(self.channels).max(1);
        let across = packs.div_ceil(packs.div_ceil(TOGETHER));
        (row_threads(across), packs.div_ceil(across))
    }

    /// Parts that each channel's elements are summed in; it follows from the shape and the format alone.
    pub fn chunks(&self) -> usize {
        let ([_, down, _], columns) = self.columns();
        let worth = if self.inner == 1 { down as usize * ROWS } else { WORTH };
        BLOCKS.div_ceil(columns).min((self.outer * self.inner).div_ceil(worth)).max(1)
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
        let (threads, columns) = self.columns();
        let grid = Grid { blocks: [extent(columns)?, self.chunks() as u32, 1], threads };
        Ok((grid, [extent(self.outer)?, extent(self.channels)?, extent(self.inner)?]))
    }

    /// The grid of a kernel that adds up what the chunks left, in blocks of up to so many threads.
    pub fn finish(&self, most: u32) -> Grid {
        let threads = (32 * self.chunks() as u32).min(most);
        Grid { blocks: [self.channels.div_ceil(32).max(1) as u32, 1, 1], threads: [threads, 1, 1] }
    }

    /// y = x · s + b, each where given, and the larger of that and 0 with `relu`; y may be x.
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
        let args = args![y, x, s, b, u32::from(relu), rows, width, channels];
        queue.launch(kernel!(self.element, "channels_affine"), grid, args)
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
        queue.launch("channels_finish", self.finish(1024), finish)
    }
}
