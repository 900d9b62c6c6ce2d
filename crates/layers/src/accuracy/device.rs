//! Accuracy on a device: a warp judges each position, a block adds up each output.

use lgm_core::{Axes3, Device, DeviceLayer, DeviceQueue, Error, Fault, Fwd, Grid, Plan, Result, args};

use super::Accuracy;
use crate::common::labels;
use crate::common::launch::extent;

impl Accuracy {
    fn positions(&self) -> usize {
        self.along.outer / self.crops * self.along.inner
    }
}

impl DeviceLayer for Accuracy {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![plan.tops[0].with_shape([self.positions()])];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.along.channels)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let Axes3 { channels, inner, .. } = self.along;
        let (scores, labels, verdicts) = (io.bottom(0)?, io.bottom(1)?, io.scratch(0)?);
        let (accuracy, by_class) = (io.top(0)?, if self.by_class { Some(io.top(1)?) } else { None });
        let positions = extent(self.positions())?;
        let judge =
            args![verdicts, scores, labels, positions, extent(inner)?, extent(self.crops)?, self.param.top_k(),];
        io.launch("accuracy_judge", Grid::elements(self.positions() * 32), &self.labels.after(judge)?)?;
        let outputs = 1 + if self.by_class { channels } else { 0 };
        let finish = args![accuracy, by_class, verdicts, labels, positions, io.call.fault];
        io.launch("accuracy_finish", Grid::rows(outputs, Grid::THREADS), finish)
    }
}
