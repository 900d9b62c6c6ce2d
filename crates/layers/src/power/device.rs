//! Power on a device.

use lgm_core::{Bwd, Device, DeviceLayer, Formats, Fwd, Grid, Offer, Result, args, kernel};

use super::Power;
use crate::on_device::fill;

impl DeviceLayer for Power {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let element = io.format().element;
        let (p, a, b, n) = (self.power, self.scale, self.shift, self.count);
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        if self.is_constant() {
            return fill(io.queue(), element, y, if p == 0.0 { 1.0 } else { b.powf(p) }, n);
        }
        io.launch(kernel!("power_forward"), Grid::elements(n), args![y, x, p, a, b, n as i64])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let element = io.format().element;
        let (p, a, b, n) = (self.power, self.scale, self.shift, self.count);
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let dy = io.top_diff_unless_shared(0).unwrap_or(dx);
        if self.is_constant() {
            fill(io.queue(), element, dx, 0.0, n)
        } else if p == 1.0 {
            io.launch(kernel!("eltwise_scale"), Grid::elements(n), args![dx, dy, a, n as i64])
        } else {
            io.launch(kernel!("power_backward"), Grid::elements(n), args![dx, dy, io.bottom(0)?, p, a, b, n as i64])
        }
    }
}
