//! TanH on a device.

use lgm_core::{Bwd, Device, DeviceLayer, Formats, Fwd, Grid, Offer, Result, args, kernel};

use super::TanH;

impl DeviceLayer for TanH {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        io.launch(kernel!("tanh_forward"), Grid::elements(self.count), args![y, x, self.count as i64])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (y, dy) = (io.top(0)?, io.top_diff_unless_shared(0).unwrap_or(dx));
        io.launch(kernel!("tanh_backward"), Grid::elements(self.count), args![dx, dy, y, self.count as i64])
    }
}
