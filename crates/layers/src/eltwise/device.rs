//! Eltwise on a device: two bottoms in one kernel, each further one in another.

use lgm_core::{Bwd, Device, DeviceLayer, DevicePtr, Formats, Fwd, Grid, Kernel, Offer, Result, args, kernel};
use lgm_proto::eltwise_parameter::EltwiseOp;

use super::Eltwise;

impl Eltwise {
    /// The gradient by bottom `i`; `dx` may be `dy`.
    fn gradient_on(&self, io: &Bwd<'_, Device>, i: usize, dx: DevicePtr, dy: DevicePtr) -> Result<()> {
        let n = self.count as i64;
        let run = |kernel, args: &[_]| io.launch(kernel, Grid::elements(self.count), args);
        match self.param.operation() {
            EltwiseOp::Sum if self.coeffs[i] != 1.0 => {
                run(kernel!("eltwise_scale"), args![dx, dy, self.coeffs[i] as f32, n])
            }
            EltwiseOp::Sum if dx != dy => io.queue().copy(dy, dx, io.format().element.bytes() * self.count),
            EltwiseOp::Sum => Ok(()),
            EltwiseOp::Prod if self.param.stable_prod_grad() => {
                let mut product = dy;
                for j in (0..self.coeffs.len()).filter(|&j| j != i) {
                    run(kernel!("eltwise_product"), args![dx, product, io.bottom(j)?, n])?;
                    product = dx;
                }
                Ok(())
            }
            EltwiseOp::Prod => run(kernel!("eltwise_quotient"), args![dx, dy, io.top(0)?, io.bottom(i)?, n]),
            EltwiseOp::Max => run(kernel!("eltwise_max_backward"), args![dx, dy, io.saved(0)?, i as i32, n]),
        }
    }
}

impl DeviceLayer for Eltwise {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let n = self.count as i64;
        let call = io.call;
        let run = |kernel: Kernel, args: &[_]| call.launch(kernel, Grid::elements(self.count), args);
        let y = io.top(0)?;
        let first = io.bottom_unless_shared(0).unwrap_or(y);
        let chosen = io.saved(0);
        let c = |i: usize| self.coeffs[i] as f32;
        for i in 1..self.coeffs.len() {
            let x = io.bottom(i)?;
            let (so_far, factor) = if i == 1 { (first, c(0)) } else { (y, 1.0) };
            match self.param.operation() {
                EltwiseOp::Sum if self.relu && i + 1 == self.coeffs.len() => {
                    run(kernel!("eltwise_rectified_sum"), args![y, so_far, x, factor, c(i), n])?;
                }
                EltwiseOp::Sum => run(kernel!("eltwise_sum"), args![y, so_far, x, factor, c(i), n])?,
                EltwiseOp::Prod => run(kernel!("eltwise_product"), args![y, so_far, x, n])?,
                EltwiseOp::Max if i == 1 => run(kernel!("eltwise_max_first"), args![y, chosen, so_far, x, n])?,
                EltwiseOp::Max => run(kernel!("eltwise_max_next"), args![y, chosen, x, i as i32, n])?,
            }
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let diffs: Vec<_> = (0..self.coeffs.len()).map(|i| io.bottom_diff(i)).collect();
        let dy = io.top_diff_or(0, diffs[0])?;
        // The first bottom comes last: its diff may hold the top's until then.
        for (i, dx) in diffs.into_iter().enumerate().rev() {
            if let Some(dx) = dx {
                self.gradient_on(&io, i, dx, dy)?;
            }
        }
        Ok(())
    }
}
