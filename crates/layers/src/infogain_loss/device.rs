//! InfogainLoss on a device. The probabilities are scratch or saved memory, 1/Z is kept from forward, a matrix of a file is
//! among the layer's constants, and a label that names no class is reported by its position.

use lgm_core::{
    Axes3, Bwd, Device, DeviceCall, DeviceLayer, DevicePtr, DeviceQueue, Error, Fault, Fwd, Grid, Plan, Result, args,
};

use super::{InfogainLoss, scratch};
use crate::common::labels;
use crate::common::launch::extent;
use crate::common::loss::Tally;
use crate::common::row_sums::{Operation, parts, sum_rows};
use crate::common::softmax;

/// Scratch for the sums of rows in parts.
const PARTS: usize = 3;

impl InfogainLoss {
    fn tally(&self) -> Tally {
        Tally { terms: self.along.count() }
    }

    fn matrix_on(&self, call: DeviceCall<'_>, bottom: Option<DevicePtr>) -> DevicePtr {
        bottom.unwrap_or(call.constants)
    }

    /// Which saved memory holds 1/Z.
    fn share(&self) -> usize {
        usize::from(!self.with_probabilities)
    }
}

impl DeviceLayer for InfogainLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (loss, classes) = (plan.tops[0].clone(), self.along.channels);
        plan.saved.push(loss.with_shape([1]));
        plan.scratch[scratch::MATRIX] = loss.with_shape([classes]);
        plan.scratch[scratch::SUMS] = self.tally().scratch(&loss);
        plan.scratch.push(loss.with_shape([classes * parts(classes, classes)]));
        Ok(())
    }

    fn constants(&self) -> Vec<f32> {
        self.matrix.iter().map(|&h| h as f32).collect()
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.along.channels)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (scores, labels, loss) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?);
        let matrix = self.matrix_on(io.call, io.bottom_unless_shared(2));
        let partial = io.scratch(scratch::SUMS)?;
        let p = softmax::probabilities_on(&mut io, self.with_probabilities)?;
        softmax::forward_on(self.along, io.queue(), p, scores)?;
        let (count, inner) = (extent(self.along.count())?, extent(self.along.inner.max(1))?);
        let args = args![partial, p, labels, matrix, count, inner];
        io.launch("infogain_partials", self.tally().grid(), &self.labels.after(args)?)?;
        let (tops, z) = ((loss, io.saved(self.share())), self.fixed_normalizer().map(|z| z as f32));
        self.tally().finish(io.call, tops, partial, Some(labels), z)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (labels, d_loss, share) = (io.bottom(1)?, io.top_diff(0)?, io.saved(self.share())?);
        let matrix = self.matrix_on(io.call, io.bottom(2).ok());
        let p = if self.with_probabilities { io.top(1)? } else { io.saved(0)? };
        let Axes3 { channels, inner, .. } = self.along;
        let (sums, in_parts) = (io.scratch(scratch::MATRIX)?, io.scratch(PARTS)?);
        sum_rows(io.queue(), Operation::Sum, (matrix, None), sums, 1.0, (channels, channels), in_parts)?;
        if self.with_probabilities {
            softmax::backward_on(self.along, io.queue(), dx, io.top_diff(1)?, p)?;
        }
        let (count, add) = (self.along.count(), u32::from(self.with_probabilities));
        let inner = extent(inner.max(1))?;
        let args = args![dx, p, labels, matrix, sums, d_loss, share, add, extent(count)?, inner];
        io.launch("infogain_backward", Grid::elements(count), &self.labels.after(args)?)
    }
}
