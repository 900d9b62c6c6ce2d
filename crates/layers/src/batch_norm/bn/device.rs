//! BN on a device: by the kernels of BatchNorm with a scale of its own.

use lgm_core::{Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Format, Formats, Fwd, Offer, Plan, Result};

use super::{Bn, From, MEAN, SCALE, SHIFT, VARIANCE};
use crate::batch_norm::launch::{DeviceNormalization, Found, Reads, Sums, global};
use crate::batch_norm::statistics::{Moving, batch_on};
use crate::common::by_channel::ByChannel;

impl Bn {
    /// Where a batch's mean and variance go besides, as averages that begin at 0 and keep nothing: the tops that there are for them.
    fn tops_of_statistics(&self, io: &mut Fwd<'_, Device>) -> Result<[DevicePtr; 3]> {
        if self.tops == 1 {
            return Ok([DevicePtr::NULL; 3]);
        }
        let (mean, variance) = (io.top(1)?, if self.tops > 2 { io.top(2)? } else { io.scratch(3)? });
        for at in [mean, variance] {
            io.queue().zero(at, 4 * self.axes.channels)?;
        }
        Ok([mean, variance, DevicePtr::NULL])
    }
}

impl DeviceLayer for Bn {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        let mut formats = offer.follow();
        formats.tops.iter_mut().skip(1).for_each(|statistic| *statistic = Format::PLAIN);
        formats
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch.truncate(2);
        plan.scratch.push(ByChannel::new(self.axes, plan.formats.top(0)).scratch(&plan.tops[0], 2));
        // The variance, where the mean alone has a top.
        if self.tops == 2 {
            plan.scratch.push(plan.scratch[0].clone());
        }
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
                let averages = [io.param(MEAN)?, io.param(VARIANCE)?, none];
                let found = Found { mean, inverse, kept_mean: io.saved(0), kept_inverse: io.saved(1) };
                global(io.call, along, &found, averages, self.eps)?;
                (mean, inverse)
            }
            From::Batch { momentum } => {
                let (mean, inverse, partial) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
                let sums = match momentum {
                    Some(_) => [io.param(MEAN)?, io.param(VARIANCE)?, none],
                    None => self.tops_of_statistics(&mut io)?,
                };
                let keep = momentum.unwrap_or_default();
                let moving = Moving { sums, keep, fresh: 1.0 - keep, unbias: 1.0 };
                let found = Found { mean, inverse, kept_mean: io.saved(0), kept_inverse: io.saved(1) };
                batch_on(&io, x, along, &found, &moving, partial, self.eps)?;
                (mean, inverse)
            }
        };
        let (gamma, beta) = (io.param(SCALE)?, io.param(SHIFT)?);
        DeviceNormalization { along, mean, inverse, gamma, beta, relu: false }.forward(io.call, y, x, none)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let along = ByChannel::new(self.axes, io.format());
        let none = DevicePtr::NULL;
        let (mean, inverse) = if self.from == From::Nowhere { (none, none) } else { (io.saved(0)?, io.saved(1)?) };
        let (gamma, beta) = (io.param(SCALE)?, io.param(SHIFT)?);
        let dx = io.bottom_diff(0);
        let dy = io.top_diff_or(0, dx)?;
        let normalization = DeviceNormalization { along, mean, inverse, gamma, beta, relu: false };
        // Without sums to take part of, x counts for nothing; dy stands for it.
        let (mut reads, mut means) = (Reads { dy, x: dy, gate: none }, [none; 2]);
        if self.from != (From::Averages { frozen: true }) {
            reads.x = io.bottom(0)?;
            means = [io.scratch(0)?, io.scratch(1)?];
            let params = [io.param_diff(SCALE), io.param_diff(SHIFT)];
            let sums = Sums::new(along, means, io.scratch(2)?, self.of_batch(), params);
            normalization.sums(io.call, reads, &sums, None)?;
        }
        let Some(dx) = dx else { return Ok(()) };
        normalization.backward(io.call, dx, reads, means)
    }
}
