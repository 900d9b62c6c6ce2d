//! TanH on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Formats, Fwd, Grid, Offer, Result, Run, args, kernel};

use super::TanH;

impl Run<Device> for TanH {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, y) = (io.bottom_or_top(0, 0)?, io.top(0)?);
        queue.launch(
            kernel!(io.formats.top(0).element, "tanh_forward"),
            Grid::elements(self.count),
            args![y, x, self.count as i64],
        )
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let (y, dy) = (io.top(0)?, io.top_diff_or_bottom(0, 0)?);
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        queue.launch(
            kernel!(io.formats.top(0).element, "tanh_backward"),
            Grid::elements(self.count),
            args![dx, dy, y, self.count as i64],
        )
    }
}
