//! EuclideanLoss on a device.

use lgm_core::{Bwd, Device, DeviceLayer, DeviceQueue, Fwd, Grid, Plan, Result, args};

use super::EuclideanLoss;
use crate::common::row_sums::{Operation, parts, sum_rows};

impl DeviceLayer for EuclideanLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![plan.tops[0].with_shape([parts(1, self.count)])];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (a, b, y, partial) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?, io.scratch(0)?);
        let coeff = 0.5 / self.items as f32;
        sum_rows(io.queue(), Operation::Squares, (a, Some(b)), y, coeff, (1, self.count), partial)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (a, b, d_loss) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?);
        for (i, sign) in [1.0f32, -1.0].into_iter().enumerate() {
            if let Some(d) = io.bottom_diff(i) {
                let args = args![d, a, b, d_loss, self.items as f32, sign, self.count as i64];
                io.launch("euclidean_backward", Grid::elements(self.count), args)?;
            }
        }
        Ok(())
    }
}
