//! Scale on a device.

use lgm_core::{Bwd, Device, DeviceLayer, DeviceQueue, Formats, Fwd, Offer, Plan, Result};

use super::Scale;

impl DeviceLayer for Scale {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        self.along.formats(offer)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.along.by_channel(plan.formats.top(0)).scratch(&plan.tops[0], 2)];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let s = if self.learned { io.param(0)? } else { io.bottom(1)? };
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let b = self.bias_index().map(|i| io.param(i)).transpose()?;
        self.along.by_channel(io.format()).affine(io.queue(), y, x, Some(s), b, false)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = self.along.by_channel(io.format());
        let dx = io.bottom_diff(0);
        let dy = io.top_diff_or(0, dx)?;
        let ds = if self.learned { io.param_diff(0) } else { io.bottom_diff(1) };
        let db = self.bias_index().and_then(|i| io.param_diff(i));
        let partial = io.scratch(0)?;
        if self.learned {
            if ds.is_some() || db.is_some() {
                let x = ds.map(|_| io.bottom(0)).transpose()?;
                along.add_sums(io.queue(), (dy, x), (ds, db), true, partial)?;
            }
        } else {
            if ds.is_some() {
                along.add_sums(io.queue(), (dy, Some(io.bottom(0)?)), (ds, None), false, partial)?;
            }
            if db.is_some() {
                along.add_sums(io.queue(), (dy, None), (None, db), true, partial)?;
            }
        }
        // Last, because dx may hold dy until then.
        let Some(dx) = dx else { return Ok(()) };
        let s = if self.learned { io.param(0)? } else { io.bottom(1)? };
        along.affine(io.queue(), dx, dy, Some(s), None, false)
    }
}
