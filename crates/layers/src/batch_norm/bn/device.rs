//! BN on a device: by the kernels of BatchNorm with a scale of its own.

use lgm_core::{
    Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Formats, Fwd, Grid, Offer, Plan, Result, args, kernel,
};

use super::{Bn, From, MEAN, SCALE, SHIFT, VARIANCE};
use crate::batch_norm::statistics::{Found, Moving, batch_on};
use crate::common::by_channel::ByChannel;

impl DeviceLayer for Bn {
    fn is_supported(&self) -> bool {
        self.tops == 1
    }

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
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let none = DevicePtr::NULL;
        let (mean, inverse) = match self.from {
            From::Nowhere => (none, none),
            From::Averages { .. } => {
                let (mean, inverse) = (io.scratch(0)?, io.scratch(1)?);
                let averages = (io.param(MEAN)?, io.param(VARIANCE)?);
                let kept = (io.saved(0), io.saved(1));
                let channels = along.axes.channels as u32;
                let args = args![mean, inverse, kept.0, kept.1, averages.0, averages.1, none, channels, self.eps];
                io.launch("bn_global", Grid::elements(along.axes.channels), args)?;
                (mean, inverse)
            }
            From::Batch { momentum } => {
                let (mean, inverse, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
                let averages = if momentum.is_some() { (io.param(MEAN)?, io.param(VARIANCE)?) } else { (none, none) };
                let keep = momentum.unwrap_or_default();
                let moving = Moving { sums: (averages.0, averages.1, none), keep, fresh: 1.0 - keep, unbias: 1.0 };
                let found = Found { mean, inverse, kept_mean: io.saved(0), kept_inverse: io.saved(1) };
                batch_on(&io, x, along, &found, &moving, partial, self.eps)?;
                (mean, inverse)
            }
        };
        let (gamma, beta) = (io.param(SCALE)?, io.param(SHIFT)?);
        let (grid, [rows, width, channels]) = along.rows()?;
        let args = args![y, x, none, mean, inverse, gamma, beta, 0u32, rows, width, channels];
        io.launch(kernel!("bn_normalize"), grid, args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = ByChannel::new(self.axes, io.format());
        let none = DevicePtr::NULL;
        let (mean, inverse) = if self.from == From::Nowhere { (none, none) } else { (io.saved(0)?, io.saved(1)?) };
        let (gamma, beta) = (io.param(SCALE)?, io.param(SHIFT)?);
        let dx = io.bottom_diff(0);
        let dy = io.top_diff_or(0, dx)?;
        // Without sums to take part of, x counts for nothing; dy stands for it.
        let (mut x, mut a, mut b) = (dy, none, none);
        if self.from != (From::Averages { frozen: true }) {
            let partial = io.scratch(2)?;
            (x, a, b) = (io.bottom(0)?, io.scratch(0)?, io.scratch(1)?);
            let (grid, [outer, channels, inner]) = along.sums()?;
            let args = args![partial, none, dy, x, none, mean, inverse, gamma, beta, 0u32, outer, channels, inner];
            io.launch(kernel!("bn_fused_partials"), grid, args)?;
            let share = if self.of_batch() { 1.0 / (along.axes.outer * along.axes.inner) as f32 } else { 0.0 };
            let (d_gamma, d_beta) = (io.param_diff(SCALE), io.param_diff(SHIFT));
            let finish = args![a, b, d_gamma, d_beta, partial, along.chunks() as u32, channels, share];
            io.launch("bn_fused_finish", along.finish(1024), finish)?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let (grid, [rows, width, channels]) = along.rows()?;
        let args = args![dx, dy, x, none, mean, inverse, gamma, beta, a, b, 0u32, rows, width, channels];
        io.launch(kernel!("bn_fused_backward"), grid, args)
    }
}
