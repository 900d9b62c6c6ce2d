//! Conversion on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Formats, Fwd, Offer, Result, Run};

use super::Conversion;
use crate::on_device::convert;

impl Run<Device> for Conversion {
    fn formats(&self, _offer: &Offer<'_>) -> Formats {
        Conversion::formats(self)
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, y) = (io.bottom(0)?, io.top(0)?);
        convert(queue, (y, self.to), (x, self.from), self.extents, false)
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let dy = io.top_diff(0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        convert(queue, (dx, self.from), (dy, self.to), self.extents, false)
    }
}
