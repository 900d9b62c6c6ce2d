//! MarginContrastiveLoss: 1/N · Σᵢ Σⱼ max(0, m + xᵢⱼ − xᵢy) over the classes j other than the item's own, y: the score of its
//! own class should exceed every other by m, `contrastive_loss_param.margin` (1).
//!
//! Gradient: dL/N for each class that comes within the margin, minus their sum for the own class.
//!
//! Shapes: bottoms scores [N, …], of as many classes as an item has elements, and N labels; top the loss. Source: the L-GM
//! fork's layer of this name, which runs on a GPU alone; Crammer and Singer's multi-class hinge loss (2001), summed over
//! classes.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Error, Fault, Float, Fwd, Grid, Host, HostLayer,
    Layer, Node, Plan, Result, args, ensure,
};
use lgm_proto::LayerParameter;

use crate::common::labels::{self, Items};
use crate::common::launch::extent;
use crate::common::loops::for_rows;
use crate::common::loss::Tally;

/// The layer; see the module.
pub struct MarginContrastiveLoss {
    margin: f32,
    items: Items,
}

impl MarginContrastiveLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let margin = param.contrastive_loss_param.unwrap_or_default().margin();
        ensure!(margin.is_finite(), "margin must be a finite number, found {margin}");
        Node::compute(MarginContrastiveLoss { margin, items: Items::default() })
    }

    fn tally(&self) -> Tally {
        Tally { terms: self.items.count() }
    }
}

impl Layer for MarginContrastiveLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.items = Items::of(bottoms)?;
        Ok(Plan {
            scratch: vec![bottoms[0].with_shape([self.items.items])],
            backward_bottoms: vec![0, 1],
            flops: 3 * self.items.count() as u64,
            ..Plan::loss(bottoms[0].dtype)
        })
    }
}

impl HostLayer for MarginContrastiveLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels, sums) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.scratch::<T>(0)?);
        let (n, margin) = (self.items.classes, T::of(self.margin.into()));
        self.items.check(labels)?;
        for_rows(sums, 1, 3 * n, |i, sum| {
            let x = &x[i * n..][..n];
            let Some(own) = self.items.known(labels, i) else { return };
            let within = |&other: &T| (margin + other - x[own]).max(T::zero());
            sum[0] = x.iter().map(within).sum::<T>() - within(&x[own]);
        });
        let loss: f64 = sums.iter().map(|s| s.f64()).sum();
        io.top::<T>(0)?[0] = T::of(loss / self.items.items.max(1) as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let scale = io.top_diff::<T>(0)?[0] / T::of(self.items.items.max(1) as f64);
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let (n, margin) = (self.items.classes, T::of(self.margin.into()));
        self.items.check(labels)?;
        for_rows(dx, n, 3 * n, |i, dx| {
            let x = &x[i * n..][..n];
            let Some(own) = self.items.known(labels, i) else { return };
            let bound = x[own];
            let one = |x: T| if margin + x - bound > T::zero() { T::one() } else { T::zero() };
            let within = x.iter().map(|&x| one(x)).sum::<T>() - one(bound);
            dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx = scale * one(x));
            dx[own] = -scale * within;
        });
        Ok(())
    }
}

impl DeviceLayer for MarginContrastiveLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.tally().scratch(&plan.tops[0])];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.items.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, labels, loss, partial) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?, io.scratch(0)?);
        let args = args![partial, x, labels, self.margin, extent(self.items.count())?];
        io.launch("margin_contrastive_partials", self.tally().grid(), &self.items.after(args)?)?;
        self.tally().finish(io.call, (loss, None), partial, Some(labels), Some(self.items.z()))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (x, labels, d_loss) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?);
        let args = args![dx, x, labels, d_loss, self.margin, extent(self.items.items)?];
        let grid = Grid::elements(self.items.items * 32);
        io.launch("margin_contrastive_backward", grid, &self.items.after(args)?)
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn text(fields: &str) -> String {
        let blobs = "bottom: 'x' bottom: 'y' top: 'l'";
        format!("layer {{ name: 'm' type: 'MarginContrastiveLoss' {blobs} contrastive_loss_param {{ {fields} }} }}")
    }

    #[test]
    fn cases() {
        let case = |fields: &str| Case::new(text(fields));
        check(
            &crate::tests::registry(),
            &[
                case("").bottom([5, 7]).bottom_of([5], Fill::Labels(7)),
                case("margin: -0.5").bottom([3, 2, 2]).bottom_of([3, 1], Fill::Labels(4)),
                case("margin: 3").bottom([40, 70]).bottom_of([40], Fill::Labels(70)).without_gradients(),
            ],
        );
    }

    #[test]
    fn the_sum_is_over_the_other_classes() {
        let registry = crate::tests::registry();
        let shapes = [[2, 3].into(), [2].into()];
        let harness = Harness::new(&registry, &text("margin: 2"), Phase::Train, DType::F64, &shapes).unwrap();
        let mut inputs = harness.forward_inputs(&[&[1.0, 2.0, -3.0, 0.0, 5.0, 4.0], &[0.0, 1.0]]).unwrap();
        inputs.top_diffs = vec![vec![1.0]];
        let out = harness.run(&inputs).unwrap();
        // Of the first item class 1 lacks 3, of the second class 2 lacks 1.
        assert_eq!(out.tops[0], [2.0]);
        assert_eq!(out.bottom_diffs[0].as_ref().unwrap(), &[-0.5, 0.5, 0.0, 0.0, -0.5, 0.5]);
    }

    #[test]
    fn the_margin_must_be_finite() {
        config_error(&crate::tests::registry(), &text("margin: inf"), &[[2, 3].into(), [2].into()], &["margin", "inf"]);
    }
}
