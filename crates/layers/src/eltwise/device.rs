//! Eltwise on a device: two bottoms in one kernel, each further one in another.

use lgm_core::{Bwd, Device, DevicePtr, DeviceQueue, Formats, Fwd, Grid, Offer, Result, Run, args, kernel};
use lgm_proto::eltwise_parameter::EltwiseOp;

use super::Eltwise;

impl Eltwise {
    /// The gradient by bottom `i`; `dx` may be `dy`.
    fn gradient_on(
        &self,
        queue: &dyn DeviceQueue,
        io: &Bwd<'_, Device>,
        i: usize,
        dx: DevicePtr,
        dy: DevicePtr,
    ) -> Result<()> {
        let (n, element) = (self.count as i64, io.formats.top(0).element);
        let run = |kernel, args: &[_]| queue.launch(kernel, Grid::elements(self.count), args);
        match self.param.operation() {
            EltwiseOp::Sum if self.coeffs[i] != 1.0 => {
                run(kernel!(element, "eltwise_scale"), args![dx, dy, self.coeffs[i] as f32, n])
            }
            EltwiseOp::Sum if dx != dy => queue.copy(dy, dx, element.bytes() * self.count),
            EltwiseOp::Sum => Ok(()),
            EltwiseOp::Prod if self.param.stable_prod_grad() => {
                let mut product = dy;
                for j in (0..self.coeffs.len()).filter(|&j| j != i) {
                    run(kernel!(element, "eltwise_product"), args![dx, product, io.bottom(j)?, n])?;
                    product = dx;
                }
                Ok(())
            }
            EltwiseOp::Prod => run(kernel!(element, "eltwise_quotient"), args![dx, dy, io.top(0)?, io.bottom(i)?, n]),
            EltwiseOp::Max => run(kernel!(element, "eltwise_max_backward"), args![dx, dy, io.saved(0)?, i as i32, n]),
        }
    }
}

impl Run<Device> for Eltwise {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Fwd<'_, Device>) -> Result<()> {
        let (n, element) = (self.count as i64, io.formats.top(0).element);
        let run = |kernel, args: &[_]| queue.launch(kernel, Grid::elements(self.count), args);
        let first = io.bottom_or_top(0, 0)?;
        let y = io.top(0)?;
        let chosen = io.saved(0);
        let c = |i: usize| self.coeffs[i] as f32;
        for i in 1..self.coeffs.len() {
            let x = io.bottom(i)?;
            let (so_far, factor) = if i == 1 { (first, c(0)) } else { (y, 1.0) };
            match self.param.operation() {
                EltwiseOp::Sum if self.relu && i + 1 == self.coeffs.len() => {
                    run(kernel!(element, "eltwise_rectified_sum"), args![y, so_far, x, factor, c(i), n])?;
                }
                EltwiseOp::Sum => run(kernel!(element, "eltwise_sum"), args![y, so_far, x, factor, c(i), n])?,
                EltwiseOp::Prod => run(kernel!(element, "eltwise_product"), args![y, so_far, x, n])?,
                EltwiseOp::Max if i == 1 => run(kernel!(element, "eltwise_max_first"), args![y, chosen, so_far, x, n])?,
                EltwiseOp::Max => run(kernel!(element, "eltwise_max_next"), args![y, chosen, x, i as i32, n])?,
            }
        }
        Ok(())
    }

    fn backward(&self, queue: &(dyn DeviceQueue + 'static), mut io: Bwd<'_, Device>) -> Result<()> {
        let dy = io.top_diff_or_bottom(0, 0)?;
        // The first bottom comes last: its diff may hold the top's until then.
        for i in (0..self.coeffs.len()).rev() {
            if let Some(dx) = io.bottom_diff(i) {
                self.gradient_on(queue, &io, i, dx, dy)?;
            }
        }
        Ok(())
    }
}
