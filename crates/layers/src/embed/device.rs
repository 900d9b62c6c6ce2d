//! Embed on a device. The table, its gradient and the indices are in single precision; the top is stored as the device
//! would have it. An index that names no row is reported by its position. For the table's gradient, the positions are
//! sorted by their index.

use lgm_core::{
    Axes3, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Error, Fault, Format, Formats, Fwd, Grid, Offer, Plan,
    Result, args, kernel,
};

use super::Embed;
use crate::common::by_channel::ByChannel;
use crate::common::launch::{extent, row_grid};

/// Keys that a block sorts, as the kernel has it.
const SORTED: usize = 1024;
/// Keys whose gradients are added up together, as the kernel has it.
const CHUNK: usize = 16;
/// Threads of the block that looks for indices of no row.
const CHECKERS: u32 = 1024;

/// Scratch memory, by number.
mod scratch {
    /// The bias' sums in parts.
    pub const PARTIAL: usize = 0;
    /// Keys of two words, as many as positions, twice.
    pub const KEYS: usize = 1;
    /// Sums of rows that go over more than one chunk, a row of the top for each chunk.
    pub const HEADS: usize = 2;
}

impl Embed {
    fn channels(&self, format: Format) -> ByChannel {
        ByChannel::new(Axes3::new(self.bottom.count(), self.outputs, 1), format)
    }

    /// The keys of all positions in order, in one half of `keys`.
    fn sort(&self, queue: &dyn DeviceQueue, x: DevicePtr, keys: DevicePtr) -> Result<DevicePtr> {
        let positions = self.bottom.count();
        let (table, count) = (extent(self.rows)?, extent(positions)?);
        let (mut sorted, mut other) = (keys, keys.floats(2 * positions));
        let grid = Grid::rows(positions.div_ceil(SORTED), Grid::THREADS);
        queue.launch("embed_sort", grid, args![sorted, x, table, count])?;
        let mut run = SORTED;
        while run < positions {
            queue.launch("embed_merge", Grid::elements(positions), args![other, sorted, run as i64, count])?;
            (sorted, other) = (other, sorted);
            run *= 2;
        }
        Ok(sorted)
    }
}

impl DeviceLayer for Embed {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        let top = Format { element: offer.storage.element, ..Format::PLAIN };
        Formats { bottoms: [Format::PLAIN].into_iter().collect(), tops: [top].into_iter().collect() }
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (top, positions) = (&plan.tops[0], self.bottom.count());
        let partial = self.channels(plan.formats.top(0)).scratch(top, 2);
        let keys = top.with_shape([4 * positions]);
        plan.scratch = vec![partial, keys, top.with_shape([positions.div_ceil(CHUNK), self.outputs])];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        self.unknown_row(f32::from_bits(fault[2]), fault[1] as usize)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (positions, n) = (self.bottom.count(), self.outputs);
        let (table, count) = (extent(self.rows)?, extent(positions)?);
        let (x, w, y) = (io.bottom(0)?, io.param(0)?, io.top(0)?);
        let b = if self.param.bias_term() { Some(io.param(1)?) } else { None };
        io.launch("embed_check", Grid::rows(1, CHECKERS), args![x, table, count, io.call.fault])?;
        let kernel = kernel!(io.format().element, "embed_forward");
        io.launch(kernel, row_grid(positions, n), args![y, x, w, b, table, count, extent(n)?])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (positions, n) = (self.bottom.count(), self.outputs);
        let (count, width, format) = (extent(positions)?, extent(n)?, io.format());
        let dy = io.top_diff(0)?;
        if let Some(dw) = io.param_diff(0).filter(|_| positions > 0) {
            let (keys, heads) = (io.scratch(scratch::KEYS)?, io.scratch(scratch::HEADS)?);
            let keys = self.sort(io.queue(), io.bottom(0)?, keys)?;
            let chunks = positions.div_ceil(CHUNK);
            let kernel = kernel!(format.element, "embed_add");
            io.launch(kernel, row_grid(chunks, n), args![dw, heads, keys, dy, count, width])?;
            if chunks > 1 {
                io.launch("embed_add_heads", row_grid(chunks - 1, n), args![dw, heads, keys, count, width])?;
            }
        }
        let db = if self.param.bias_term() { io.param_diff(1) } else { None };
        if db.is_none() {
            return Ok(());
        }
        self.channels(format).add_sums(io.queue(), (dy, None), (None, db), true, io.scratch(scratch::PARTIAL)?)
    }
}
