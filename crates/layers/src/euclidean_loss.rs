//! EuclideanLoss: 1/(2N) · Σ (a − b)², N being the first extent of the bottoms.
//!
//! Gradient: da = dL/N · (a − b), db = −da. Shapes: bottoms a and b of the same first extent and as many elements; top
//! the loss. `loss_param` has no effect (in Intel's fork `normalization: NONE` has). Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    Plan, Result, args, ensure,
};
use lgm_proto::LayerParameter;

use crate::common::loops::{map2, total};
use crate::common::loss::warn_of_normalization;
use crate::common::row_sums::{Operation, parts, sum_rows};

/// The layer; see the module.
pub struct EuclideanLoss {
    items: usize,
    count: usize,
}

impl EuclideanLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        warn_of_normalization(param);
        Node::compute(EuclideanLoss { items: 1, count: 0 })
    }
}

impl Layer for EuclideanLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (a, b) = (&bottoms[0].shape, &bottoms[1].shape);
        ensure!(
            a.first() == b.first() && a.count() == b.count(),
            "the bottoms must have the same first extent and as many elements, found shapes {a} and {b}"
        );
        self.count = a.count();
        self.items = a.first().copied().unwrap_or(1).max(1);
        Ok(Plan {
            backward_bottoms: vec![0, 1],
            no_gradient: vec![],
            flops: 3 * a.count() as u64,
            ..Plan::loss(bottoms[0].dtype)
        })
    }
}

impl HostLayer for EuclideanLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let squares = total(io.bottom::<T>(0)?, io.bottom::<T>(1)?, |a, b| (a - b) * (a - b));
        io.top::<T>(0)?[0] = T::of(squares / (2 * self.items) as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (a, b) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let scale = io.top_diff::<T>(0)?[0] / T::of(self.items as f64);
        for (i, scale) in [scale, -scale].into_iter().enumerate() {
            if let Some(d) = io.bottom_diff::<T>(i)? {
                map2(a, Some(b), d, |a, b| scale * (a - b));
            }
        }
        Ok(())
    }
}

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

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, check, config_error};

    const LAYER: &str = r#"layer { name: "l" type: "EuclideanLoss" bottom: "a" bottom: "b" top: "l" }"#;

    #[test]
    fn cases() {
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/euclidean_0"),
                Case::new(LAYER).bottom([4, 3, 2]).bottom([4, 6]),
                Case::new(LAYER).bottom([5]).bottom([5]),
            ],
        );
    }

    #[test]
    fn the_bottoms_must_match() {
        config_error(&crate::tests::registry(), LAYER, &[[4, 3].into(), [4, 2].into()], &["(4, 3)", "(4, 2)"]);
        config_error(&crate::tests::registry(), LAYER, &[[4, 3].into(), [3, 4].into()], &["(4, 3)", "(3, 4)"]);
    }
}
