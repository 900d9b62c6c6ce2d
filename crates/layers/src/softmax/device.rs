//! Softmax on a device.

use lgm_core::{Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Fwd, Grid, Result, args};

use super::{Along, Softmax};
use crate::on_device::{extent, row_grid};

impl Along {
    /// y = softmax(x); y may be x.
    pub fn softmax_on(&self, queue: &dyn DeviceQueue, y: DevicePtr, x: DevicePtr) -> Result<()> {
        let Along { outer, channels, inner } = *self;
        if outer * channels * inner == 0 {
            return Ok(());
        }
        if inner == 1 {
            return queue.launch("softmax_rows_forward", self.rows(), args![y, x, extent(channels)?]);
        }
        let args = args![y, x, extent(outer)?, extent(channels)?, extent(inner)?];
        queue.launch("softmax_columns_forward", row_grid(outer, inner), args)
    }

    /// dx = y · (dy − Σ dy·y); dx may be dy.
    pub fn gradient_on(&self, queue: &dyn DeviceQueue, dx: DevicePtr, dy: DevicePtr, y: DevicePtr) -> Result<()> {
        let Along { outer, channels, inner } = *self;
        if outer * channels * inner == 0 {
            return Ok(());
        }
        if inner == 1 {
            return queue.launch("softmax_rows_backward", self.rows(), args![dx, dy, y, extent(channels)?]);
        }
        let args = args![dx, dy, y, extent(outer)?, extent(channels)?, extent(inner)?];
        queue.launch("softmax_columns_backward", row_grid(outer, inner), args)
    }

    /// A block for each row, of as many warps as it can use.
    fn rows(&self) -> Grid {
        Grid::rows(self.outer, (self.channels.next_multiple_of(32) as u32).min(Grid::THREADS))
    }
}

impl DeviceLayer for Softmax {
    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        self.along.softmax_on(io.queue(), y, x)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (y, dy) = (io.top(0)?, io.top_diff_unless_shared(0).unwrap_or(dx));
        self.along.gradient_on(io.queue(), dx, dy, y)
    }
}
