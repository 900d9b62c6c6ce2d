//! Bias on a device.

use lgm_core::{Bwd, Device, DeviceLayer, DeviceQueue, Format, Formats, Fwd, Offer, Plan, Result};

use super::{Bias, Broadcast};
use crate::on_device::Channels;

impl Broadcast {
    /// How kernels go over the blob.
    pub fn channels(&self, format: Format) -> Channels {
        Channels::new(self.outer, self.dim, self.inner).stored(format)
    }

    /// The blob as it comes, what is repeated along it in single precision. Channels may be last where it is they that
    /// the repeated blob has.
    pub fn formats(&self, offer: &Offer<'_>) -> Formats {
        let shape = &offer.bottoms[0].shape;
        let by_channel = shape.len() > 1 && (self.outer, self.dim) == (shape[0], shape[1]);
        let format = offer.arriving.first().copied().unwrap_or_default();
        let format = if by_channel { format } else { format.channels_first() };
        Formats { bottoms: [format].into_iter().collect(), tops: [format].into_iter().collect() }
    }
}

impl DeviceLayer for Bias {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        self.along.formats(offer)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.along.channels(plan.formats.top(0)).scratch(&plan.tops[0], 2)];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let b = if self.learned { io.param(0)? } else { io.bottom(1)? };
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        self.along.channels(io.format()).affine(io.queue(), y, x, None, Some(b), false)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = self.along.channels(io.format());
        let dx = io.bottom_diff(0);
        let dy = io.top_diff_or(0, dx)?;
        let db = if self.learned { io.param_diff(0) } else { io.bottom_diff(1) };
        if db.is_some() {
            along.add_sums(io.queue(), (dy, None), (None, db), self.learned, io.scratch(0)?)?;
        }
        match dx {
            Some(dx) if dx != dy => {
                io.queue().copy(dy, dx, along.element.bytes() * along.outer * along.channels * along.inner)
            }
            _ => Ok(()),
        }
    }
}
