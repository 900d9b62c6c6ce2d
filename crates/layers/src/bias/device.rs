//! Bias on a device.

use lgm_core::{Bwd, Device, DeviceLayer, DeviceQueue, Formats, Fwd, Offer, Plan, Result};

use super::Bias;

impl DeviceLayer for Bias {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        self.along.formats(offer)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.along.by_channel(plan.formats.top(0)).scratch(&plan.tops[0], 2)];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let b = if self.learned { io.param(0)? } else { io.bottom(1)? };
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        self.along.by_channel(io.format()).affine(io.queue(), y, x, None, Some(b), false)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = self.along.by_channel(io.format());
        let dx = io.bottom_diff(0);
        let dy = io.top_diff_or(0, dx)?;
        let db = if self.learned { io.param_diff(0) } else { io.bottom_diff(1) };
        if db.is_some() {
            along.add_sums(io.queue(), (dy, None), (None, db), self.learned, io.scratch(0)?)?;
        }
        match dx {
            Some(dx) if dx != dy => io.queue().copy(dy, dx, along.element.bytes() * along.axes.count()),
            _ => Ok(()),
        }
    }
}
