//! Depthwise convolution, of as many groups as channels, by kernels of its own, which take the filters in single precision:
//! as the parameter has them, or, with channels last, tap by tap, so that neighbouring threads read neighbouring numbers.

use lgm_core::{Axes3, DeviceConvolution, DevicePtr, Element, Format, Grid, Layout, Result, args, kernel};

use super::direct::Own;
use super::geometry::is_last;
use crate::common::by_channel::{BLOCKS, REDUCE_COLUMNS};
use crate::common::convert::convert;
use crate::common::launch::{extent, row_grid};

/// Neighbouring positions that a thread takes, and taps that a block does: STRIP and SET of `kernels/depthwise.cu`.
const STRIP: usize = 4;
const SET: usize = 3;
/// Positions that are worth a thread.
const POSITIONS_PER_THREAD: usize = 8;

/// Outputs of a channel.
fn each(c: &DeviceConvolution) -> usize {
    c.outputs / c.channels
}

/// Vectors of 16 bytes that the channels fill, where each has one output and they divide them; else channels.
fn vectors(c: &DeviceConvolution) -> usize {
    let vector = 16 / c.format.element.bytes();
    if each(c) == 1 && c.channels.is_multiple_of(vector) { c.channels / vector } else { c.outputs }
}

/// The grid of the filter gradient's first step with channels last; it follows from the shape and the format alone.
fn partials(c: &DeviceConvolution) -> Grid {
    let vectors = vectors(c).max(1);
    let across = vectors.div_ceil(vectors.div_ceil(REDUCE_COLUMNS));
    let down = Grid::THREADS as usize / across;
    let columns = vectors.div_ceil(across) * c.kernel_area().div_ceil(SET);
    let worth = (c.batch * c.output_area()).div_ceil(down * POSITIONS_PER_THREAD);
    let chunks = BLOCKS.div_ceil(columns).min(worth).max(1);
    Grid { blocks: [columns as u32, chunks as u32, 1], threads: [across as u32, down as u32, 1] }
}

/// Floats that [`Own::filter`] takes of scratch.
pub(super) fn filter_scratch(c: &DeviceConvolution) -> usize {
    if is_last(c) { partials(c).blocks[1] as usize * c.kernel_area() * c.outputs } else { 0 }
}

impl Own<'_> {
    /// Filters in HWC order.
    pub fn filters_to_hwc(&self, made: DevicePtr, w: DevicePtr) -> Result<()> {
        let c = self.conv;
        let last = Format { element: Element::F32, layout: Layout::ChannelsLast };
        convert(self.queue, (made, last), (w, Format::PLAIN), Axes3::new(1, c.outputs, c.kernel_area()), false)
    }

    /// y = w ∗ x + b.
    pub fn forward_depthwise(&self, (y, x, w, b): (DevicePtr, DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let c = self.conv;
        let (outputs, each, e) = (extent(c.outputs)?, extent(each(c))?, c.format.element);
        if is_last(c) {
            let [down, across] = c.windows.map(|w| w.output);
            let rows = c.batch * down * across.div_ceil(STRIP);
            let own = args![y, x, w, b, extent(rows)?, outputs, each];
            return self.launch(kernel!(e, "conv_depthwise_forward_last"), row_grid(rows, vectors(c)), own);
        }
        let planes = c.batch * c.outputs;
        let own = args![y, x, w, b, extent(planes)?, outputs, each];
        self.launch(kernel!(e, "conv_depthwise_forward"), row_grid(planes, c.output_area()), own)
    }

    /// dx: what every tap saw of dy, gathered.
    pub fn data_depthwise(&self, (dx, w, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let c = self.conv;
        let (channels, of_each, e) = (extent(c.channels)?, extent(each(c))?, c.format.element);
        if is_last(c) {
            let [down, across] = c.windows.map(|w| w.input);
            let rows = c.batch * down * across.div_ceil(STRIP);
            let own = args![dx, w, dy, extent(rows)?, channels, of_each];
            // A thread takes all outputs of a channel.
            let width = vectors(c).min(c.channels);
            return self.launch(kernel!(e, "conv_depthwise_data_last"), row_grid(rows, width), own);
        }
        let planes = c.batch * c.channels;
        let own = args![dx, w, dy, extent(planes)?, channels, of_each];
        self.launch(kernel!(e, "conv_depthwise_data"), row_grid(planes, c.input_area()), own)
    }

    /// dw += the filters' gradient, in single precision and axis by axis.
    pub fn filter_depthwise(&self, (dw, x, dy): (DevicePtr, DevicePtr, DevicePtr)) -> Result<()> {
        let (c, scratch) = (self.conv, self.scratch);
        let (batch, outputs, each, e) = (extent(c.batch)?, extent(c.outputs)?, extent(each(c))?, c.format.element);
        let filters = c.outputs * c.kernel_area();
        if !is_last(c) {
            let own = args![dw, x, dy, batch, outputs, each];
            return self.launch(kernel!(e, "conv_depthwise_filter"), Grid::rows(filters, Grid::THREADS), own);
        }
        extent(c.batch * c.output_area())?;
        let grid = partials(c);
        let own = args![scratch, x, dy, batch, outputs, each];
        self.launch(kernel!(e, "conv_depthwise_partials_last"), grid, own)?;
        let chunks = grid.blocks[1];
        let finish = Grid::rows(extent(filters)?.div_ceil(32) as usize, (32 * chunks).min(1024));
        self.queue.launch(
            "conv_depthwise_finish",
            finish,
            args![dw, scratch, chunks, outputs, extent(c.kernel_area())?],
        )
    }
}
