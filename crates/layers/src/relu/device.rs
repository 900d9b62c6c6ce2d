//! ReLU on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Fwd, Grid, Result, Run, args};

use super::ReLU;

impl Run<Device> for ReLU {
    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, y) = (io.bottom_or_top(0, 0)?, io.top(0)?);
        queue.launch("relu_forward", Grid::elements(self.count), args![y, x, self.slope, self.count as i64])
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let sign = if self.by_top() { io.top(0)? } else { io.bottom(0)? };
        let dy = io.top_diff_or_bottom(0, 0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        queue.launch("relu_backward", Grid::elements(self.count), args![dx, dy, sign, self.slope, self.count as i64])
    }
}
