//! Conversion on a device.

use lgm_core::{Bwd, Device, DeviceLayer, Formats, Fwd, Offer, Result};

use super::Conversion;
use crate::common::convert::convert;

impl DeviceLayer for Conversion {
    fn formats(&self, _offer: &Offer<'_>) -> Formats {
        Conversion::formats(self)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, y) = (io.bottom(0)?, io.top(0)?);
        convert(io.queue(), (y, self.to), (x, self.from), self.axes, false)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let dy = io.top_diff(0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        convert(io.queue(), (dx, self.from), (dy, self.to), self.axes, false)
    }
}
