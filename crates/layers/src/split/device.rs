//! Split on a device.

use lgm_core::{Bwd, Device, DeviceLayer, Formats, Fwd, Grid, Offer, Result, args, kernel};

use super::Split;

impl DeviceLayer for Split {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let element = io.format().element;
        for t in 0..self.tops {
            if let Some(y) = io.top_unless_view(t) {
                io.queue().copy(io.bottom(0)?, y, element.bytes() * self.count)?;
            }
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let element = io.format().element;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let first = io.top_diff_unless_shared(0).unwrap_or(dx);
        if self.tops == 1 && first != dx {
            return io.queue().copy(first, dx, element.bytes() * self.count);
        }
        for t in 1..self.tops {
            let sum = if t == 1 { first } else { dx };
            let args = args![dx, sum, io.top_diff(t)?, 1.0f32, 1.0f32, self.count as i64];
            io.launch(kernel!("eltwise_sum"), Grid::elements(self.count), args)?;
        }
        Ok(())
    }
}
