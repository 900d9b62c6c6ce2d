//! Concat on a device.

use lgm_core::{Bwd, Device, DeviceLayer, DeviceQueue, Formats, Fwd, Offer, Plan, Result};

use super::Concat;
use crate::common::rows::{copy_rows, formats, rows_in, spans};
use crate::common::view;

impl DeviceLayer for Concat {
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
        let element = io.format().element;
        let (y, whole) = (io.top(0)?, self.parts.iter().sum());
        for (i, (start, len)) in spans(&self.parts).enumerate() {
            copy_rows(
                io.queue(),
                element,
                (self.rows, len),
                (y.elements(start, element), whole),
                (io.bottom(i)?, len),
            )?;
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        if self.parts.is_empty() {
            return view::backward_on(io);
        }
        let element = io.format().element;
        let (dy, whole) = (io.top_diff(0)?, self.parts.iter().sum());
        for (i, (start, len)) in spans(&self.parts).enumerate() {
            if let Some(dx) = io.bottom_diff(i) {
                copy_rows(io.queue(), element, (self.rows, len), (dx, len), (dy.elements(start, element), whole))?;
            }
        }
        Ok(())
    }
}
