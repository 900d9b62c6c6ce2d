//! HingeLoss: 1/N · Σᵢ Σⱼ max(0, 1 − δᵢⱼ·xᵢⱼ)ᵖ, where δᵢⱼ is 1 for the item's own class and −1 for the others, and p is 1
//! or, with `norm: L2`, 2: each class against all others.
//!
//! Gradient: −dL/N · δᵢⱼ, times twice what is missing with `L2`, where something is missing; else 0.
//!
//! Shapes: bottoms scores [N, …], of as many classes as an item has elements, and N labels; top the loss. `loss_param` has no
//! effect (in Intel's fork `normalization: NONE` has). Source: Caffe's layer of this name. Where we differ: a label outside the
//! classes is an error that names it.

use lgm_core::{BuildCx, Float, Grid, Node, Result};
use lgm_cpu::elementwise::reduce;
use lgm_proto::LayerParameter;
use lgm_proto::hinge_loss_parameter::Norm;

use crate::common::item_loss::{self, ItemLoss, Scored, Spec};
use crate::common::labels::Items;
use crate::common::loops::for_rows;
use crate::common::loss::warn_of_normalization;

/// The layer; see the module.
pub struct HingeLoss {
    squared: bool,
}

impl HingeLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        warn_of_normalization(param);
        let norm = param.hinge_loss_param.unwrap_or_default().norm();
        item_loss::node(HingeLoss { squared: norm == Norm::L2 })
    }
}

/// 1 − δ·x, as far as it is positive.
fn missing<T: Float>(x: T, own: bool) -> T {
    (T::one() + if own { -x } else { x }).max(T::zero())
}

impl ItemLoss for HingeLoss {
    fn loss<T: Float>(&self, scored: Scored<'_, T>, _sums: &mut [T]) -> f64 {
        let power = |v: T| if self.squared { v * v } else { v };
        // All as other classes, and then what the own ones are instead.
        let all = |x: &[T]| x.iter().map(|&x| power(missing(x, false))).sum::<T>();
        let own = |x: T| power(missing(x, true)).f64() - power(missing(x, false)).f64();
        reduce(scored.x.len(), |r| all(&scored.x[r])).f64() + scored.items().fold(0.0, |sum, (x, c)| sum + own(x[c]))
    }

    fn gradient<T: Float>(&self, scored: Scored<'_, T>, scale: T, dx: &mut [T]) {
        let (n, two) = (scored.classes(), T::of(2.0));
        let slope = |missing: T| match (missing > T::zero(), self.squared) {
            (false, _) => T::zero(),
            (true, false) => scale,
            (true, true) => two * scale * missing,
        };
        for_rows(dx, n, 2 * n, |i, dx| {
            let Some((x, own)) = scored.item(i) else { return };
            dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx = slope(missing(x, false)));
            dx[own] = -slope(missing(x[own], true));
        });
    }

    fn spec(&self, items: Items) -> Spec {
        Spec {
            partials: ("hinge_partials", items.count()),
            backward: ("hinge_backward", items.count(), Grid::elements(items.count())),
            number: u32::from(self.squared).into(),
            flops: 3 * items.count(),
        }
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
