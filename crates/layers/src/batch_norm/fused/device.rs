//! BatchNorm, Scale, a sum and ReLU in one, on a device: two reads of x and one of r forward; two of x and dy backward,
//! with r one of y and, for dx, of g in the place of dy.

use lgm_core::{Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Formats, Fwd, Offer, Plan, Result};

use super::{FusedBatchNorm, SCALE, SHIFT};
use crate::batch_norm::launch::{DeviceNormalization, Found, Reads, Sums};
use crate::common::by_channel::ByChannel;

impl DeviceLayer for FusedBatchNorm {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch.truncate(2);
        plan.scratch.push(ByChannel::new(self.axes, plan.formats.top(0)).scratch(&plan.tops[0], 2));
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let along = ByChannel::new(self.axes, io.format());
        let x = io.bottom(0)?;
        let y = io.top(0)?;
        let r = if self.joins { io.bottom_unless_shared(1).unwrap_or(y) } else { DevicePtr::NULL };
        let (mean, inverse, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
        let found = Found { mean, inverse, kept_mean: io.saved(0), kept_inverse: io.saved(1) };
        self.statistics.forward_on(x, along, &mut io, &found, partial)?;
        let gamma = io.param(SCALE)?;
        let beta = if self.bias { io.param(SHIFT)? } else { DevicePtr::NULL };
        DeviceNormalization { along, mean, inverse, gamma, beta, relu: self.relu }.forward(io.call, y, x, r)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = ByChannel::new(self.axes, io.format());
        let (x, mean, inverse) = (io.bottom(0)?, io.saved(0)?, io.saved(1)?);
        let gamma = io.param(SCALE)?;
        let beta = if self.bias { io.param(SHIFT)? } else { DevicePtr::NULL };
        let dx = io.bottom_diff(0);
        let dr = if self.joins { io.bottom_diff(1) } else { None };
        let dy = io.top_diff_or(0, if self.joins { dr } else { dx })?;
        // With a sum, y tells what passed the ReLU.
        let gate = if self.joins && self.relu { io.top(0)? } else { DevicePtr::NULL };
        let (a, b, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
        let normalization = DeviceNormalization { along, mean, inverse, gamma, beta, relu: self.relu };
        let d_beta = if self.bias { io.param_diff(SHIFT) } else { None };
        let params = [io.param_diff(SCALE), d_beta];
        let (reads, sums) = (Reads { dy, x, gate }, Sums::new(along, [a, b], partial, !self.statistics.global, params));
        normalization.sums(io.call, reads, &sums, dr)?;
        let Some(dx) = dx else { return Ok(()) };
        match dr {
            // It is dy behind the ReLU.
            Some(dr) => {
                let reads = Reads { dy: dr, x, gate: DevicePtr::NULL };
                DeviceNormalization { relu: false, ..normalization }.backward(io.call, dx, reads, sums.means)
            }
            None => normalization.backward(io.call, dx, reads, sums.means),
        }
    }
}
