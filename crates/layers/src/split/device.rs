//! Split on a device.

use lgm_core::{Bwd, Device, DeviceQueue, Formats, Fwd, Grid, Offer, Result, Run, args, kernel};

use super::Split;

impl Run<Device> for Split {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let element = io.formats.top(0).element;
        for t in 0..self.tops {
            if let Some(y) = io.top_unless_view(t) {
                queue.copy(io.bottom(0)?, y, element.bytes() * self.count)?;
            }
        }
        Ok(())
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let element = io.formats.top(0).element;
        let first = io.top_diff_or_bottom(0, 0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        if self.tops == 1 && first != dx {
            return queue.copy(first, dx, element.bytes() * self.count);
        }
        for t in 1..self.tops {
            let sum = if t == 1 { first } else { dx };
            let args = args![dx, sum, io.top_diff(t)?, 1.0f32, 1.0f32, self.count as i64];
            queue.launch(kernel!(element, "eltwise_sum"), Grid::elements(self.count), args)?;
        }
        Ok(())
    }
}
