//! SoftmaxWithLoss on a device. The probabilities are scratch or saved memory, 1/Z is kept from forward, and a label that
//! names no class is reported by its position.

use lgm_core::{
    Arg, Axes3, Bwd, Device, DeviceLayer, DeviceQueue, Error, Fault, Format, Fwd, Grid, Plan, Result, args,
};

use super::SoftmaxWithLoss;
use crate::common::by_channel::ByChannel;
use crate::common::labels;
use crate::common::launch::extent;
use crate::common::softmax;

impl SoftmaxWithLoss {
    /// How many blocks look at the labels.
    fn blocks(&self) -> usize {
        (self.along.outer * self.along.inner).div_ceil(Grid::THREADS as usize).max(1)
    }

    /// The last arguments of kernels that read labels.
    fn labels(&self) -> Result<[Arg; 5]> {
        let ignored = self.loss.ignore_label;
        Ok([
            extent(self.along.channels)?.into(),
            u32::from(ignored.is_some()).into(),
            ignored.unwrap_or(0).into(),
            u32::from(self.range.is_some()).into(),
            self.range.map_or(0, |r| r.0).into(),
        ])
    }

    /// Which saved memory holds 1/Z.
    fn share(&self) -> usize {
        usize::from(!self.with_probabilities)
    }
}

impl DeviceLayer for SoftmaxWithLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.saved.push(plan.tops[0].with_shape([1]));
        plan.scratch.push(plan.tops[0].with_shape([3 * self.blocks()]));
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.along.channels)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let Axes3 { outer, inner, .. } = self.along;
        let (scores, labels, loss) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?);
        let partial = io.scratch(self.share())?;
        let p = if self.with_probabilities {
            io.top(1)?
        } else {
            match io.saved(0) {
                Some(p) => p,
                None => io.scratch(0)?,
            }
        };
        softmax::forward_on(self.along, io.queue(), p, scores)?;
        let blocks = self.blocks();
        let mut args = args![partial, p, labels, extent(outer * inner)?, extent(inner)?].to_vec();
        args.extend(self.labels()?);
        io.launch("softmax_loss_partials", Grid::rows(blocks, Grid::THREADS), &args)?;
        let fixed = self.fixed_normalizer().map_or(0.0, |n| n.max(1) as f32);
        let args = args![loss, io.saved(self.share()), partial, labels, extent(blocks)?, fixed, io.call.fault];
        io.launch("softmax_loss_finish", Grid::rows(1, Grid::THREADS), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (labels, d_loss, share) = (io.bottom(1)?, io.top_diff(0)?, io.saved(self.share())?);
        let p = if self.with_probabilities { io.top(1)? } else { io.saved(0)? };
        if self.with_probabilities {
            softmax::backward_on(self.along, io.queue(), dx, io.top_diff(1)?, p)?;
        }
        let (grid, rows) = ByChannel::new(self.along, Format::PLAIN).rows()?;
        let add = u32::from(self.with_probabilities);
        let mut args = args![dx, p, labels, d_loss, share, add, rows[0], rows[1], rows[2]].to_vec();
        args.extend(self.labels()?);
        io.launch("softmax_loss_backward", grid, &args)
    }
}
