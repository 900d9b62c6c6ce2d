//! Silence on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Fwd, Result, Run};

use super::Silence;

impl Run<Device> for Silence {
    fn forward(&self, _queue: &(dyn DeviceQueue + 'static), _io: Fwd<'_, Device>) -> Result<()> {
        Ok(())
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), io: Bwd<'_, Device>) -> Result<()> {
        io.bottom_diffs.iter().flatten().try_for_each(|dx| queue.zero(dx.addr(), 4 * dx.shape().count()))
    }
}
