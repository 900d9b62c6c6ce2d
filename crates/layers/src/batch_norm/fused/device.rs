//! BatchNorm, Scale, a sum and ReLU in one, on a device: two reads of x and one of r forward; two of x and dy backward,
//! with r one of y and, for dx, of g in the place of dy.

use lgm_core::{Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Formats, Fwd, Offer, Plan, Result, args, kernel};

use super::{FusedBatchNorm, SCALE, SHIFT};
use crate::batch_norm::statistics::Found;
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
        let (grid, [rows, width, channels]) = along.rows()?;
        let relu = u32::from(self.relu);
        io.launch(
            kernel!("bn_normalize"),
            grid,
            args![y, x, r, mean, inverse, gamma, beta, relu, rows, width, channels],
        )
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
        let (grid, [outer, channels, inner]) = along.sums()?;
        let relu = u32::from(self.relu);
        let args = args![partial, dr, dy, x, gate, mean, inverse, gamma, beta, relu, outer, channels, inner];
        io.launch(kernel!("bn_fused_partials"), grid, args)?;
        let share = if self.statistics.global { 0.0 } else { 1.0 / (along.axes.outer * along.axes.inner) as f32 };
        let d_gamma = io.param_diff(SCALE);
        let d_beta = if self.bias { io.param_diff(SHIFT) } else { None };
        let finish = args![a, b, d_gamma, d_beta, partial, along.chunks() as u32, channels, share];
        io.launch("bn_fused_finish", along.finish(1024), finish)?;
        let Some(dx) = dx else { return Ok(()) };
        let (dy, gate, relu) = dr.map_or((dy, gate, relu), |g| (g, DevicePtr::NULL, 0));
        let (grid, [rows, width, channels]) = along.rows()?;
        let args = args![dx, dy, x, gate, mean, inverse, gamma, beta, a, b, relu, rows, width, channels];
        io.launch(kernel!("bn_fused_backward"), grid, args)
    }
}
