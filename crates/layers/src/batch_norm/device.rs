//! BatchNorm on a device: one read for the statistics, one for the values.

use lgm_core::{
    Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Format, Formats, Fwd, Grid, Offer, Plan, Result, args, kernel,
};
use lgm_cpu::batchnorm::Extents;

use super::{BatchNorm, Statistics};
use crate::on_device::Channels;

/// How kernels go over a bottom.
pub(crate) fn channels(e: Extents, format: Format) -> Channels {
    Channels::new(e.n, e.channels, e.spatial).stored(format)
}

/// Where statistics go: the mean and the inverse deviation, and copies of them for backward.
pub(crate) struct Found {
    pub mean: DevicePtr,
    pub inverse: DevicePtr,
    pub kept_mean: Option<DevicePtr>,
    pub kept_inverse: Option<DevicePtr>,
}

impl Statistics {
    /// As [`Statistics::forward`]; `partial` is scratch for two sums of each channel.
    pub fn forward_on(
        &self,
        queue: &dyn DeviceQueue,
        x: DevicePtr,
        along: Channels,
        io: &mut Fwd<'_, Device>,
        to: &Found,
        partial: DevicePtr,
    ) -> Result<()> {
        let (sum_mean, sum_variance, sum_weight) = (io.param(0)?, io.param(1)?, io.param(2)?);
        let Found { mean, inverse, kept_mean, kept_inverse } = *to;
        let eps = self.param.eps();
        let (grid, [outer, channels, inner]) = along.sums()?;
        if self.global {
            let args = args![mean, inverse, kept_mean, kept_inverse, sum_mean, sum_variance, sum_weight, channels, eps];
            return queue.launch("bn_global", Grid::elements(along.channels), args);
        }
        queue.launch(kernel!(along.element, "bn_statistics"), grid, args![partial, x, outer, channels, inner])?;
        let m = along.outer * along.inner;
        let unbias = if m > 1 { (m as f64 / (m - 1) as f64) as f32 } else { 1.0 };
        let keep = self.param.moving_average_fraction();
        let args = args![
            mean,
            inverse,
            kept_mean,
            kept_inverse,
            sum_mean,
            sum_variance,
            sum_weight,
            partial,
            x,
            along.chunks() as u32,
            outer,
            channels,
            inner,
            keep,
            unbias,
            eps,
        ];
        queue.launch(kernel!(along.element, "bn_statistics_finish"), along.finish(512), args)
    }
}

impl DeviceLayer for BatchNorm {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch.push(channels(self.extents, plan.formats.top(0)).scratch(&plan.tops[0], 2));
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let along = channels(self.extents, io.format());
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let (mean, inverse, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
        let found = Found { mean, inverse, kept_mean: None, kept_inverse: io.saved(0) };
        self.statistics.forward_on(io.queue(), x, along, &mut io, &found, partial)?;
        let (grid, [rows, width, channels]) = along.rows()?;
        let none = DevicePtr::NULL;
        io.launch(
            kernel!("bn_normalize"),
            grid,
            args![y, x, none, mean, inverse, none, none, 0u32, rows, width, channels],
        )
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = channels(self.extents, io.format());
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let dy = io.top_diff_unless_shared(0).unwrap_or(dx);
        let (a, b, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
        if self.statistics.global {
            let none = DevicePtr::NULL;
            let sums = (io.param(0)?, io.param(1)?, io.param(2)?);
            let eps = self.statistics.param.eps();
            let args = args![none, a, none, none, sums.0, sums.1, sums.2, along.channels as u32, eps];
            io.launch("bn_global", Grid::elements(along.channels), args)?;
            return along.affine(io.queue(), dx, dy, Some(a), None, false);
        }
        let y = io.top(0)?;
        let (grid, [outer, channels, inner]) = along.sums()?;
        io.launch(kernel!("bn_backward_partials"), grid, args![partial, dy, y, outer, channels, inner])?;
        let count = (along.outer * along.inner) as f32;
        let finish = args![a, b, partial, along.chunks() as u32, channels, count];
        io.launch("bn_backward_finish", along.finish(1024), finish)?;
        let (grid, [rows, width, channels]) = along.rows()?;
        io.launch(kernel!("bn_backward"), grid, args![dx, dy, y, io.saved(0)?, a, b, rows, width, channels])
    }
}
