//! PReLU on a device.

use lgm_core::{Bwd, Device, DeviceLayer, DeviceQueue, Formats, Fwd, Grid, Offer, Plan, Result, args, kernel};

use super::PReLU;
use crate::common::by_channel::ByChannel;

impl DeviceLayer for PReLU {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![ByChannel::new(self.axes, plan.formats.top(0)).scratch(&plan.tops[0], 1)];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, slopes, y) = (io.bottom(0)?, io.param(0)?, io.top(0)?);
        let (grid, [rows, width, channels]) = ByChannel::new(self.axes, io.format()).rows()?;
        let shared = u32::from(self.param.channel_shared());
        io.launch(kernel!("prelu_forward"), grid, args![y, x, slopes, shared, rows, width, channels])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let dx = io.bottom_diff(0);
        let (x, slopes, dy) = (io.bottom(0)?, io.param(0)?, io.top_diff_or(0, dx)?);
        let extents = ByChannel::new(self.axes, io.format());
        let shared = u32::from(self.param.channel_shared());
        // Before dx is written, which may be where dy lies.
        if let Some(da) = io.param_diff(0) {
            let partial = io.scratch(0)?;
            let (grid, [outer, channels, inner]) = extents.sums()?;
            io.launch(kernel!("prelu_partials"), grid, args![partial, dy, x, outer, channels, inner])?;
            let finish = args![da, partial, extents.chunks() as u32, channels];
            match self.param.channel_shared() {
                true => io.launch("prelu_finish_shared", Grid::rows(1, 1024), finish)?,
                false => io.launch("prelu_finish", extents.finish(1024), finish)?,
            }
        }
        let Some(dx) = dx else { return Ok(()) };
        let (grid, [rows, width, channels]) = extents.rows()?;
        io.launch(kernel!("prelu_backward"), grid, args![dx, dy, x, slopes, shared, rows, width, channels])
    }
}
