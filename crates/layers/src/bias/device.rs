//! Bias on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Fwd, Plan, Result, Run};

use super::{Bias, Broadcast};
use crate::on_device::Channels;

impl Broadcast {
    /// How kernels go over the blob.
    pub fn channels(&self) -> Channels {
        Channels { outer: self.outer, channels: self.dim, inner: self.inner }
    }
}

impl Run<Device> for Bias {
    fn prepare(&mut self, _queue: &(dyn DeviceQueue + 'static), plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.along.channels().scratch(&plan.tops[0], 2)];
        Ok(())
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let b = if self.learned { io.param(0)? } else { io.bottom(1)? };
        let (x, y) = (io.bottom_or_top(0, 0)?, io.top(0)?);
        self.along.channels().affine(queue, y, x, None, Some(b))
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let along = self.along.channels();
        let dy = io.top_diff_or_bottom(0, 0)?;
        let dx = io.bottom_diff(0);
        let db = if self.learned { io.param_diff(0) } else { io.bottom_diff(1) };
        if db.is_some() {
            along.add_sums(queue, (dy, None), (None, db), self.learned, io.scratch(0)?)?;
        }
        match dx {
            Some(dx) if dx != dy => queue.copy(dy, dx, 4 * along.outer * along.channels * along.inner),
            _ => Ok(()),
        }
    }
}
