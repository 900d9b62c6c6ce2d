//! Reduction on a device: rows are summed in parts whose number follows from the shape.

use lgm_core::{BlobSpec, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Fwd, Grid, Plan, Result, args};
use lgm_proto::reduction_parameter::ReductionOp;

use super::Reduction;
use crate::on_device::{extent, row_grid};

/// What is summed, as the kernels number it.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    /// x.
    Sum = 0,
    /// ∣x∣.
    Absolute = 1,
    /// x².
    Squares = 2,
}

/// Parts that each of `rows` rows of `width` elements is summed in.
pub(crate) fn parts(rows: usize, width: usize) -> usize {
    1024usize.div_ceil(rows.max(1)).min(width.div_ceil(4096)).max(1)
}

/// y = coeff · Σ of each row of x − b; `partial` is scratch for a number of each part.
pub(crate) fn sum_rows(
    queue: &dyn DeviceQueue,
    operation: Operation,
    (x, b): (DevicePtr, Option<DevicePtr>),
    y: DevicePtr,
    coeff: f32,
    (rows, width): (usize, usize),
    partial: DevicePtr,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let parts = parts(rows, width);
    let grid = Grid { blocks: [extent(rows)?, parts as u32, 1], threads: [threads(width), 1, 1] };
    queue.launch("reduction_partials", grid, args![partial, x, b, operation as i32, width as i64])?;
    queue.launch("reduction_finish", Grid::elements(rows), args![y, partial, parts as u32, coeff, extent(rows)?])
}

/// Threads for a row: as many warps as it can use.
fn threads(width: usize) -> u32 {
    width.max(1).next_multiple_of(32).min(Grid::THREADS as usize) as u32
}

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
