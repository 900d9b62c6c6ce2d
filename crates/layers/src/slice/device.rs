//! Slice on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Fwd, Result, Run};

use super::Slice;
use crate::concat::device::{copy_rows, spans};
use crate::reshape::device::{backward_view, forward_view};

impl Run<Device> for Slice {
    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        if self.parts.is_empty() {
            return forward_view(queue, io);
        }
        let (x, whole) = (io.bottom(0)?, self.parts.iter().sum());
        for (t, (start, len)) in spans(&self.parts).enumerate() {
            copy_rows(queue, self.rows, len, (io.top(t)?, len), (x.floats(start), whole))?;
        }
        Ok(())
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        if self.parts.is_empty() {
            return backward_view(queue, io);
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let whole = self.parts.iter().sum();
        for (t, (start, len)) in spans(&self.parts).enumerate() {
            copy_rows(queue, self.rows, len, (dx.floats(start), whole), (io.top_diff(t)?, len))?;
        }
        Ok(())
    }
}
