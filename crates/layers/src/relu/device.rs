//! ReLU on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Formats, Fwd, Grid, Offer, Result, Run, args, kernel};

use super::ReLU;
use crate::reshape::device::forward_view;

impl Run<Device> for ReLU {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        if self.done {
            return forward_view(queue, io);
        }
        let (x, y) = (io.bottom_or_top(0, 0)?, io.top(0)?);
        queue.launch(
            kernel!(io.formats.top(0).element, "relu_forward"),
            Grid::elements(self.count),
            args![y, x, self.slope, self.count as i64],
        )
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let sign = if self.by_top() { io.top(0)? } else { io.bottom(0)? };
        let dy = io.top_diff_or_bottom(0, 0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        queue.launch(
            kernel!(io.formats.top(0).element, "relu_backward"),
            Grid::elements(self.count),
            args![dx, dy, sign, self.slope, self.count as i64],
        )
    }
}
