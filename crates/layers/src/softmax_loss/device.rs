//! SoftmaxWithLoss on a device. The probabilities are scratch or saved memory, 1/Z is kept from forward, and a label that
//! names no class is reported by its position.

use lgm_core::{
    Axes3, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Error, Fault, Format, Fwd, Plan, Result, args,
};

use super::SoftmaxWithLoss;
use crate::common::by_channel::ByChannel;
use crate::common::labels;
use crate::common::launch::extent;
use crate::common::loss::Tally;
use crate::common::softmax;

impl SoftmaxWithLoss {
    fn tally(&self) -> Tally {
        Tally { terms: self.along.outer * self.along.inner }
    }

    fn weights_on(&self, constants: DevicePtr) -> Option<DevicePtr> {
        (!self.weights.is_empty()).then_some(constants)
    }

    /// Which saved memory holds 1/Z.
    fn share(&self) -> usize {
        usize::from(!self.with_probabilities())
    }
}

impl DeviceLayer for SoftmaxWithLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.saved.push(plan.tops[0].with_shape([1]));
        plan.scratch.push(self.tally().scratch(&plan.tops[0]));
        Ok(())
    }

    fn constants(&self) -> Vec<f32> {
        self.weights.clone()
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.along.channels)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let Axes3 { outer, inner, .. } = self.along;
        let (scores, labels, loss) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?);
        let partial = io.scratch(self.share())?;
        let p = softmax::probabilities_on(&mut io, self.with_probabilities())?;
        softmax::forward_on(self.along, io.queue(), p, scores)?;
        let each = if self.tops > 2 { Some(io.top(2)?) } else { None };
        let args =
            args![partial, each, p, labels, self.weights_on(io.call.constants), extent(outer * inner)?, extent(inner)?];
        io.launch("softmax_loss_partials", self.tally().grid(), &self.labels.after(args)?)?;
        let (tops, z) = ((loss, io.saved(self.share())), self.fixed_normalizer().map(|z| z as f32));
        self.tally().finish(io.call, tops, partial, Some(labels), z)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (labels, d_loss, share) = (io.bottom(1)?, io.top_diff(0)?, io.saved(self.share())?);
        let p = if self.with_probabilities() { io.top(1)? } else { io.saved(0)? };
        if self.with_probabilities() {
            softmax::backward_on(self.along, io.queue(), dx, io.top_diff(1)?, p)?;
        }
        let (grid, rows) = ByChannel::new(self.along, Format::PLAIN).rows()?;
        let add = u32::from(self.with_probabilities());
        let args =
            args![dx, p, labels, self.weights_on(io.call.constants), d_loss, share, add, rows[0], rows[1], rows[2]];
        io.launch("softmax_loss_backward", grid, &self.labels.after(args)?)
    }
}
