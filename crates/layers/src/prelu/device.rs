//! PReLU on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Format, Formats, Fwd, Grid, Offer, Plan, Result, Run, args, kernel};

use super::PReLU;
use crate::on_device::Channels;

impl PReLU {
    fn extents(&self, format: Format) -> Channels {
        Channels::new(self.batch, self.channels, self.inner).stored(format)
    }
}

impl Run<Device> for PReLU {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn prepare(&mut self, _queue: &(dyn DeviceQueue + 'static), plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.extents(plan.formats.top(0)).scratch(&plan.tops[0], 1)];
        Ok(())
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, slopes, y) = (io.bottom(0)?, io.param(0)?, io.top(0)?);
        let (grid, [rows, width, channels]) = self.extents(io.formats.top(0)).rows()?;
        let shared = u32::from(self.param.channel_shared());
        queue.launch(
            kernel!(io.formats.top(0).element, "prelu_forward"),
            grid,
            args![y, x, slopes, shared, rows, width, channels],
        )
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let (x, slopes, dy) = (io.bottom(0)?, io.param(0)?, io.top_diff_or_bottom(0, 0)?);
        let extents = self.extents(io.formats.top(0));
        let shared = u32::from(self.param.channel_shared());
        // Before dx is written, which may be where dy lies.
        if let Some(da) = io.param_diff(0) {
            let partial = io.scratch(0)?;
            let (grid, [outer, channels, inner]) = extents.sums()?;
            queue.launch(
                kernel!(extents.element, "prelu_partials"),
                grid,
                args![partial, dy, x, outer, channels, inner],
            )?;
            let finish = args![da, partial, extents.chunks() as u32, channels];
            match self.param.channel_shared() {
                true => queue.launch("prelu_finish_shared", Grid::rows(1, 1024), finish)?,
                false => queue.launch("prelu_finish", extents.finish(1024), finish)?,
            }
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (grid, [rows, width, channels]) = extents.rows()?;
        queue.launch(
            kernel!(extents.element, "prelu_backward"),
            grid,
            args![dx, dy, x, slopes, shared, rows, width, channels],
        )
    }
}
