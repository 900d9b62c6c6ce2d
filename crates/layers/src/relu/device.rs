//! ReLU on a device.

use lgm_core::{Bwd, Device, DeviceLayer, Formats, Fwd, Grid, Offer, Result, args, kernel};

use super::ReLU;
use crate::reshape::device::forward_view;

impl DeviceLayer for ReLU {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if self.done {
            return forward_view(io);
        }
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        io.launch(kernel!("relu_forward"), Grid::elements(self.count), args![y, x, self.slope, self.count as i64])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let sign = if self.by_top() { io.top(0)? } else { io.bottom(0)? };
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let dy = io.top_diff_unless_shared(0).unwrap_or(dx);
        io.launch(
            kernel!("relu_backward"),
            Grid::elements(self.count),
            args![dx, dy, sign, self.slope, self.count as i64],
        )
    }
}
