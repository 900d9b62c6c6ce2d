//! Dropout on a device.

use lgm_core::{Bwd, Device, DeviceCall, DeviceLayer, DevicePtr, Formats, Fwd, Grid, Offer, Result, args, kernel};

use super::Dropout;
use crate::common::view;

impl Dropout {
    /// y = x, dropped and scaled; y may be x.
    fn drop_on(&self, call: DeviceCall<'_>, y: DevicePtr, x: DevicePtr) -> Result<()> {
        let args = args![y, x, call.clock, self.stream, self.least_kept(), self.scale as f32, self.count as i64];
        call.launch(kernel!("dropout_apply"), Grid::elements(self.count.div_ceil(4)), args)
    }
}

impl DeviceLayer for Dropout {
    /// Draws are numbered in the host's order.
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if self.is_view() {
            return view::forward_on(io);
        }
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        self.drop_on(io.call, y, x)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        if self.is_view() {
            return view::backward_on(io);
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let dy = io.top_diff_unless_shared(0).unwrap_or(dx);
        self.drop_on(io.call, dx, dy)
    }
}
