//! Power on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Formats, Fwd, Grid, Offer, Result, Run, args, kernel};

use super::Power;
use crate::on_device::fill;

impl Run<Device> for Power {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let element = io.formats.top(0).element;
        let (p, a, b, n) = (self.power, self.scale, self.shift, self.count);
        let (x, y) = (io.bottom_or_top(0, 0)?, io.top(0)?);
        if self.is_constant() {
            return fill(queue, element, y, if p == 0.0 { 1.0 } else { b.powf(p) }, n);
        }
        queue.launch(kernel!(element, "power_forward"), Grid::elements(n), args![y, x, p, a, b, n as i64])
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let element = io.formats.top(0).element;
        let (p, a, b, n) = (self.power, self.scale, self.shift, self.count);
        let dy = io.top_diff_or_bottom(0, 0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        if self.is_constant() {
            fill(queue, element, dx, 0.0, n)
        } else if p == 1.0 {
            queue.launch(kernel!(element, "eltwise_scale"), Grid::elements(n), args![dx, dy, a, n as i64])
        } else {
            queue.launch(
                kernel!(element, "power_backward"),
                Grid::elements(n),
                args![dx, dy, io.bottom(0)?, p, a, b, n as i64],
            )
        }
    }
}
