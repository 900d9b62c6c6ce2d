//! Dropout on a device.

use lgm_core::{Bwd, Device, DevicePtr, DeviceQueue, Element, Formats, Fwd, Grid, Offer, Result, Run, args, kernel};

use super::Dropout;
use crate::reshape::device::{backward_view, forward_view};

impl Dropout {
    /// y = x, dropped and scaled; y may be x.
    fn drop_on(
        &self,
        queue: &dyn DeviceQueue,
        element: Element,
        y: DevicePtr,
        x: DevicePtr,
        clock: Option<DevicePtr>,
    ) -> Result<()> {
        let scale = (1.0 / (1.0 - self.ratio as f64)) as f32;
        let args = args![y, x, clock, self.stream, self.least_kept(), scale, self.count as i64];
        queue.launch(kernel!(element, "dropout_apply"), Grid::elements(self.count.div_ceil(4)), args)
    }
}

impl Run<Device> for Dropout {
    /// Draws are numbered in the host's order.
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        if !self.train {
            return forward_view(queue, io);
        }
        let (x, y) = (io.bottom_or_top(0, 0)?, io.top(0)?);
        self.drop_on(queue, io.formats.top(0).element, y, x, io.clock)
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        if !self.train {
            return backward_view(queue, io);
        }
        let dy = io.top_diff_or_bottom(0, 0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        self.drop_on(queue, io.formats.top(0).element, dx, dy, io.clock)
    }
}
