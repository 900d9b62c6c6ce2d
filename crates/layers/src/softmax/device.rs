//! Softmax on a device.

use lgm_core::{Bwd, Device, DeviceLayer, Fwd, Result};

use super::Softmax;
use crate::common::softmax;

impl DeviceLayer for Softmax {
    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        softmax::forward_on(self.along, io.queue(), y, x)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (y, dy) = (io.top(0)?, io.top_diff_unless_shared(0).unwrap_or(dx));
        softmax::backward_on(self.along, io.queue(), dx, dy, y)
    }
}
