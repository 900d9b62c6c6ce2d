//! BatchNorm on a device: one read for the statistics, one for the values.

use lgm_core::{Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Formats, Fwd, Offer, Plan, Result, args, kernel};

use super::BatchNorm;
use super::launch::{DeviceNormalization, Found, global};
use crate::common::by_channel::ByChannel;

impl DeviceLayer for BatchNorm {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch.push(ByChannel::new(self.axes, plan.formats.top(0)).scratch(&plan.tops[0], 2));
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let along = ByChannel::new(self.axes, io.format());
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let (mean, inverse, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
        let found = Found { mean, inverse, kept_mean: None, kept_inverse: io.saved(0) };
        self.statistics.forward_on(x, along, &mut io, &found, partial)?;
        let none = DevicePtr::NULL;
        let normalization = DeviceNormalization { along, mean, inverse, gamma: none, beta: none, relu: false };
        normalization.forward(io.call, y, x, none)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = ByChannel::new(self.axes, io.format());
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let dy = io.top_diff_unless_shared(0).unwrap_or(dx);
        let (a, b, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
        if self.statistics.global {
            let sums = [io.param(0)?, io.param(1)?, io.param(2)?];
            let found = Found { mean: DevicePtr::NULL, inverse: a, kept_mean: None, kept_inverse: None };
            global(io.call, along, &found, sums, self.statistics.param.eps())?;
            return along.affine(io.queue(), dx, dy, Some(a), None, false);
        }
        let y = io.top(0)?;
        let (grid, [outer, channels, inner]) = along.sums()?;
        io.launch(kernel!("bn_backward_partials"), grid, args![partial, dy, y, outer, channels, inner])?;
        let count = (along.axes.outer * along.axes.inner) as f32;
        let finish = args![a, b, partial, along.chunks() as u32, channels, count];
        io.launch("bn_backward_finish", along.finish(1024), finish)?;
        let (grid, [rows, width, channels]) = along.rows()?;
        io.launch(kernel!("bn_backward"), grid, args![dx, dy, y, io.saved(0)?, a, b, rows, width, channels])
    }
}
