//! Reduction on a device: rows are summed in parts whose number follows from the shape.

use lgm_core::{BlobSpec, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Fwd, Grid, Plan, Result, args};
use lgm_proto::reduction_parameter::ReductionOp;

use super::Reduction;
use crate::common::launch::{extent, row_grid};
use crate::common::row_sums::{Operation, parts, sum_rows, threads};

impl Reduction {
    fn operation(&self) -> Operation {
        match self.param.operation() {
            ReductionOp::Asum => Operation::Absolute,
            ReductionOp::Sumsq => Operation::Squares,
            _ => Operation::Sum,
        }
    }

    fn is_largest(&self) -> u32 {
        u32::from(self.param.operation() == ReductionOp::Max)
    }
}

impl DeviceLayer for Reduction {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let top: &BlobSpec = &plan.tops[0];
        self.rows = top.shape.count();
        if self.is_extreme() {
            // The places of the extremes, 32 bits each.
            plan.saved = vec![top.clone()];
            plan.backward_bottoms.clear();
        } else {
            plan.scratch = vec![top.with_shape([self.rows * parts(self.rows, self.width)])];
        }
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, y, coeff) = (io.bottom(0)?, io.top(0)?, self.coeff() as f32);
        if !self.is_extreme() {
            let partial = io.scratch(0)?;
            return sum_rows(io.queue(), self.operation(), (x, None), y, coeff, (self.rows, self.width), partial);
        }
        if self.rows == 0 {
            return Ok(());
        }
        let args = args![y, io.saved(0), x, self.is_largest(), coeff, extent(self.width)?];
        io.launch("reduction_extreme", Grid::rows(self.rows, threads(self.width)), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (dy, coeff) = (io.top_diff(0)?, self.coeff() as f32);
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (grid, rows, width) = (row_grid(self.rows, self.width), extent(self.rows)?, extent(self.width)?);
        if self.is_extreme() {
            let args = args![dx, dy, io.saved(0)?, coeff, rows, width];
            return io.launch("reduction_extreme_backward", grid, args);
        }
        let operation = self.operation();
        let x = if matches!(operation, Operation::Sum) { DevicePtr::NULL } else { io.bottom(0)? };
        io.launch("reduction_backward", grid, args![dx, dy, x, operation as i32, coeff, rows, width])
    }
}
