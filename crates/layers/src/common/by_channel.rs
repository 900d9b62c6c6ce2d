//! Kernels that go over a blob by channel: rows of one channel after another, or, with channels last, of one value of each.

use lgm_core::{Axes3, BlobSpec, DevicePtr, DeviceQueue, Element, Format, Grid, Layout, Result, Shape, args, kernel};

use super::launch::{extent, row_grid, row_threads};

/// A blob as it lies on a device around its channels, and how kernels go over it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByChannel {
    /// The blob as it lies.
    pub axes: Axes3,
    /// The type of elements.
    pub element: Element,
}

/// Blocks that keep a device busy.
pub(crate) const BLOCKS: usize = 528;
/// Elements that are worth a block.
const ELEMENTS_PER_BLOCK: usize = 4096;
/// Vectors, or rows of them, that a thread asks for before it looks at the first: AHEAD of the kernels.
const PREFETCH: usize = 2;
/// Rows that are worth a thread.
const ROWS_PER_THREAD: usize = 8;
/// Most columns of a block that sums over rows.
pub(crate) const REDUCE_COLUMNS: usize = 32;

impl ByChannel {
    /// A blob in a format: with channels last, nothing comes after them.
    pub fn new(axes: Axes3, format: Format) -> Self {
        let axes = match format.layout {
            Layout::ChannelsFirst => axes,
            Layout::ChannelsLast => Axes3::new(axes.outer * axes.inner, axes.channels, 1),
        };
        ByChannel { axes, element: format.element }
    }

    /// The rows of a kernel that goes over the blob: their number, their length and, for the kernel's CHANNEL, the
    /// channels that follow one another row by row.
    fn layout(&self) -> (usize, usize, usize) {
        if self.axes.inner == 1 {
            (self.axes.outer, self.axes.channels, 0)
        } else {
            (self.axes.outer * self.axes.channels, self.axes.inner, self.axes.channels)
        }
    }

    /// How many vectors of 16 bytes a row of positions has; where they do not divide it, how many positions. A thread handles
    /// one at once.
    fn vectors(&self, width: usize) -> usize {
        let vector = 16 / self.element.bytes();
        if width.is_multiple_of(vector) { width / vector } else { width }
    }

    /// The grid of a kernel that goes over the blob by CHANNEL, and its last three arguments. Where channels come last, a
    /// thread keeps to its own and goes down the rows.
    ///
    /// # Errors
    /// When the blob is too large.
    pub fn rows(&self) -> Result<(Grid, [u32; 3])> {
        let (rows, width, channels) = self.layout();
        let vectors = self.vectors(width);
        let grid = if channels == 0 {
            let Grid { blocks, threads } = row_grid(rows.div_ceil(PREFETCH), vectors);
            Grid { blocks: [blocks[0], blocks[1].min((BLOCKS as u32).div_ceil(blocks[0])), 1], threads }
        } else {
            let threads = row_threads(vectors);
            let across = vectors.div_ceil(PREFETCH * threads[0] as usize).max(1) as u32;
            Grid { blocks: [across, row_grid(rows, vectors).blocks[1], 1], threads }
        };
        Ok((grid, [extent(rows)?, extent(width)?, extent(channels)?]))
    }

    /// Threads of a block that sums over channels, and blocks side by side.
    fn columns(&self) -> ([u32; 3], usize) {
        if self.axes.inner > 1 {
            let threads = (self.axes.outer * self.vectors(self.axes.inner))
                .next_multiple_of(32)
                .clamp(32, Grid::THREADS as usize);
            return ([threads as u32, 1, 1], self.axes.channels.max(1));
        }
        let vectors = self.vectors(self.axes.channels).max(1);
        let across = vectors.div_ceil(vectors.div_ceil(REDUCE_COLUMNS));
        (row_threads(across), vectors.div_ceil(across))
    }

    /// Parts that each channel's elements are summed in; it depends on the shape and the format alone.
    pub fn chunks(&self) -> usize {
        let ([_, down, _], columns) = self.columns();
        let worth = if self.axes.inner == 1 { down as usize * ROWS_PER_THREAD } else { ELEMENTS_PER_BLOCK };
        BLOCKS.div_ceil(columns).min((self.axes.outer * self.axes.inner).div_ceil(worth)).max(1)
    }

    /// Scratch for `sums` sums of each channel.
    pub fn scratch(&self, like: &BlobSpec, sums: usize) -> BlobSpec {
        like.with_shape(Shape::from([sums * self.chunks() * self.axes.channels]))
    }

    /// The grid of a kernel that sums over channels, and its last three arguments.
    ///
    /// # Errors
    /// When a channel is too large.
    pub fn sums(&self) -> Result<(Grid, [u32; 3])> {
        extent(self.axes.outer * self.axes.inner)?;
        let (threads, columns) = self.columns();
        let grid = Grid { blocks: [extent(columns)?, self.chunks() as u32, 1], threads };
        Ok((grid, [extent(self.axes.outer)?, extent(self.axes.channels)?, extent(self.axes.inner)?]))
    }

    /// The grid of a kernel that adds up what the chunks left, in blocks of up to so many threads.
    pub fn finish(&self, most: u32) -> Grid {
        let threads = (32 * self.chunks() as u32).min(most);
        Grid { blocks: [self.axes.channels.div_ceil(32).max(1) as u32, 1, 1], threads: [threads, 1, 1] }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_cover_rows_and_chunks_follow_the_shape() {
        let grid = row_grid(70_000, 49);
        assert_eq!((grid.threads, grid.blocks), ([49, 5, 1], [1, 14_000, 1]));
        assert_eq!(row_grid(1, 1000).blocks, [4, 1, 1]);
        assert_eq!(row_grid(0, 0).blocks, [1, 1, 1]);
        assert_eq!(row_grid(usize::MAX, usize::MAX).blocks[1], 65535);
        let plain = |outer, channels, inner| ByChannel::new(Axes3::new(outer, channels, inner), Format::PLAIN);
        let of = |outer, channels, inner| plain(outer, channels, inner).chunks();
        assert_eq!([of(2, 3, 4), of(128, 64, 56 * 56), of(256, 1000, 1), of(65536, 10, 1)], [1, 9, 4, 328]);
        assert!(extent(1 << 32).is_err() && extent((1 << 32) - 1).is_err() && extent(1 << 31).is_ok());
        // Channels last, in vectors of 4: 250 of them in 8 columns of 32, or 24 in one of as many threads.
        let last = |outer, channels| plain(outer, channels, 1);
        assert_eq!(last(256, 1000).sums().unwrap().0, Grid { blocks: [8, 4, 1], threads: [32, 8, 1] });
        assert_eq!(last(4096, 96).sums().unwrap().0, Grid { blocks: [1, 52, 1], threads: [24, 10, 1] });
        assert_eq!(last(4096, 96).rows().unwrap().0, Grid { blocks: [1, 205, 1], threads: [24, 10, 1] });
        assert_eq!(last(1 << 20, 96).rows().unwrap().0.blocks, [1, 528, 1]);
    }
}
