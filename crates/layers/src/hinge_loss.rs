//! HingeLoss: 1/N · Σᵢ Σⱼ max(0, 1 − δᵢⱼ·xᵢⱼ)ᵖ, where δᵢⱼ is 1 for the item's own class and −1 for the others, and p is 1
//! or, with `norm: L2`, 2: each class against all others.
//!
//! Gradient: −dL/N · δᵢⱼ, times twice what is missing with `L2`, where something is missing; else 0.
//!
//! Shapes: bottoms scores [N, …], of as many classes as an item has elements, and N labels; top the loss. Source: Caffe's
//! layer of this name. Where we differ: a label outside the classes is an error that names it.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Error, Fault, Float, Fwd, Grid, Host, HostLayer,
    Layer, Node, Plan, Result, args,
};
use lgm_cpu::elementwise::reduce;
use lgm_proto::LayerParameter;
use lgm_proto::hinge_loss_parameter::Norm;

use crate::common::labels::{self, Items};
use crate::common::launch::extent;
use crate::common::loops::for_rows;
use crate::common::loss::Tally;

/// The layer; see the module.
pub struct HingeLoss {
    squared: bool,
    items: Items,
}

impl HingeLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let norm = param.hinge_loss_param.unwrap_or_default().norm();
        Node::compute(HingeLoss { squared: norm == Norm::L2, items: Items::default() })
    }

    fn tally(&self) -> Tally {
        Tally { terms: self.items.count() }
    }
}

/// 1 − δ·x, as far as it is positive.
fn missing<T: Float>(x: T, own: bool) -> T {
    (T::one() + if own { -x } else { x }).max(T::zero())
}

impl Layer for HingeLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.items = Items::of(bottoms)?;
        let flops = 3 * self.items.count() as u64;
        Ok(Plan { backward_bottoms: vec![0, 1], flops, ..Plan::loss(bottoms[0].dtype) })
    }
}

impl HostLayer for HingeLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let power = |v: T| if self.squared { v * v } else { v };
        // All as other classes, and then what the own ones are instead.
        let all = reduce(x.len(), |r| x[r].iter().map(|&x| power(missing(x, false))).sum::<T>());
        let mut own = 0.0;
        for (i, x) in x.chunks(self.items.classes.max(1)).enumerate() {
            let x = x[self.items.class(labels, i)?];
            own += power(missing(x, true)).f64() - power(missing(x, false)).f64();
        }
        io.top::<T>(0)?[0] = T::of((all.f64() + own) / self.items.items.max(1) as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        let scale = io.top_diff::<T>(0)?[0] / T::of(self.items.items.max(1) as f64);
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let (n, two) = (self.items.classes, T::of(2.0));
        let slope = |missing: T| match (missing > T::zero(), self.squared) {
            (false, _) => T::zero(),
            (true, false) => scale,
            (true, true) => two * scale * missing,
        };
        self.items.check(labels)?;
        for_rows(dx, n, 2 * n, |i, dx| {
            let x = &x[i * n..][..n];
            dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx = slope(missing(x, false)));
            if let Some(own) = self.items.known(labels, i) {
                dx[own] = -slope(missing(x[own], true));
            }
        });
        Ok(())
    }
}

impl DeviceLayer for HingeLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.tally().scratch(&plan.tops[0])];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.items.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, labels, loss, partial) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?, io.scratch(0)?);
        let args = args![partial, x, labels, u32::from(self.squared), extent(self.items.count())?];
        io.launch("hinge_partials", self.tally().grid(), &self.items.after(args)?)?;
        self.tally().finish(io.call, (loss, None), partial, Some(labels), Some(self.items.z()))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (x, labels, d_loss, count) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?, self.items.count());
        let args = args![dx, x, labels, d_loss, self.items.z(), u32::from(self.squared), extent(count)?];
        io.launch("hinge_backward", Grid::elements(count), &self.items.after(args)?)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn text(fields: &str) -> String {
        format!(
            "layer {{ name: 'h' type: 'HingeLoss' bottom: 'x' bottom: 'y' top: 'l' hinge_loss_param {{ {fields} }} }}"
        )
    }

    #[test]
    fn cases() {
        let golden = ["0", "1", "more_0"].map(|i| Case::golden(&format!("layers/hinge_{i}")));
        let mut cases = golden.to_vec();
        for fields in ["", "norm: L2"] {
            let case = Case::new(text(fields)).kink(0, 1.0, 0.01).kink(0, -1.0, 0.01);
            cases.push(case.clone().bottom([5, 7]).bottom_of([5], Fill::Labels(7)));
            cases.push(case.clone().bottom([3, 2, 2]).bottom_of([3, 1], Fill::Labels(4)));
            cases.push(case.bottom([40, 33]).bottom_of([40], Fill::Labels(33)).without_gradients());
        }
        check(&crate::tests::registry(), &cases);
    }

    #[test]
    fn mistakes_are_named() {
        let registry = crate::tests::registry();
        config_error(&registry, &text(""), &[[2, 3].into(), [3].into()], &["expected 2", "found 3"]);
        config_error(&registry, &text(""), &[lgm_core::Shape::scalar(), [1].into()], &["batch axis"]);
    }
}
