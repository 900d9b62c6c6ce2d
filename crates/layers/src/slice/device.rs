//! Slice on a device.

use lgm_core::{Bwd, Device, DeviceLayer, DeviceQueue, Formats, Fwd, Offer, Plan, Result};

use super::Slice;
use crate::common::rows::{copy_rows, formats, rows_in, spans};
use crate::common::view;

impl DeviceLayer for Slice {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        formats(offer, self.axis)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        (self.rows, self.parts) = rows_in(plan.formats.top(0), &plan.tops[0].shape, self.rows, &self.parts);
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if self.parts.is_empty() {
            return view::forward_on(io);
        }
        let element = io.call.formats.bottom(0).element;
        let (x, whole) = (io.bottom(0)?, self.parts.iter().sum());
        for (t, (start, len)) in spans(&self.parts).enumerate() {
            copy_rows(io.queue(), element, (self.rows, len), (io.top(t)?, len), (x.elements(start, element), whole))?;
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        if self.parts.is_empty() {
            return view::backward_on(io);
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let element = io.call.formats.bottom(0).element;
        let whole = self.parts.iter().sum();
        for (t, (start, len)) in spans(&self.parts).enumerate() {
            copy_rows(
                io.queue(),
                element,
                (self.rows, len),
                (dx.elements(start, element), whole),
                (io.top_diff(t)?, len),
            )?;
        }
        Ok(())
    }
}
