//! BatchNorm on a device: one read for the statistics, one for the values.

use lgm_core::{
    Bwd, Device, DevicePtr, DeviceQueue, Format, Formats, Fwd, Grid, Offer, Plan, Result, Run, args, kernel,
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
            let sums = (sum_mean, sum_variance, sum_weight);
            let args = args![mean, inverse, kept_mean, kept_inverse, sums.0, sums.1, sums.2, channels, eps];
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
            channels,
            inner,
            m as f32,
            keep,
            unbias,
            eps,
        ];
        queue.launch(kernel!(along.element, "bn_statistics_finish"), Grid::elements(along.channels), args)
    }
}

impl Run<Device> for BatchNorm {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn prepare(&mut self, _queue: &(dyn DeviceQueue + 'static), plan: &mut Plan) -> Result<()> {
        plan.scratch.push(channels(self.extents, plan.formats.top(0)).scratch(&plan.tops[0], 2));
        Ok(())
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let along = channels(self.extents, io.formats.top(0));
        let (x, y) = (io.bottom_or_top(0, 0)?, io.top(0)?);
        let (mean, inverse, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
        let found = Found { mean, inverse, kept_mean: None, kept_inverse: io.saved(0) };
        self.statistics.forward_on(queue, x, along, &mut io, &found, partial)?;
        let (grid, [rows, width, channels]) = along.rows()?;
        let none = DevicePtr::NULL;
        queue.launch(
            kernel!(along.element, "bn_normalize"),
            grid,
            args![y, x, mean, inverse, none, none, 0u32, rows, width, channels],
        )
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let along = channels(self.extents, io.formats.top(0));
        let dy = io.top_diff_or_bottom(0, 0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (a, b, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
        if self.statistics.global {
            let none = DevicePtr::NULL;
            let sums = (io.param(0)?, io.param(1)?, io.param(2)?);
            let eps = self.statistics.param.eps();
            let args = args![none, a, none, none, sums.0, sums.1, sums.2, along.channels as u32, eps];
            queue.launch("bn_global", Grid::elements(along.channels), args)?;
            return along.affine(queue, dx, dy, Some(a), None, false);
        }
        let y = io.top(0)?;
        let (grid, [outer, channels, inner]) = along.sums()?;
        queue.launch(
            kernel!(along.element, "bn_backward_partials"),
            grid,
            args![partial, dy, y, outer, channels, inner],
        )?;
        let count = (along.outer * along.inner) as f32;
        let finish = args![a, b, partial, along.chunks() as u32, channels, count];
        queue.launch("bn_backward_finish", Grid::elements(along.channels), finish)?;
        let (grid, [rows, width, channels]) = along.rows()?;
        queue.launch(
            kernel!(along.element, "bn_backward"),
            grid,
            args![dx, dy, y, io.saved(0)?, a, b, rows, width, channels],
        )
    }
}
