//! MarginContrastiveLoss: 1/N · Σᵢ Σⱼ max(0, m + xᵢⱼ − xᵢy) over the classes j other than the item's own, y: the score of its
//! own class should exceed every other by m, `contrastive_loss_param.margin` (1).
//!
//! Gradient: dL/N for each class that comes within the margin, minus their sum for the own class.
//!
//! Shapes: bottoms scores [N, …], of as many classes as an item has elements, and N labels; top the loss. Source: the L-GM
//! fork's layer of this name, which runs on a GPU alone; Crammer and Singer's multi-class hinge loss (2001), summed over
//! classes.

use lgm_core::{BuildCx, Float, Grid, Node, Result, ensure};
use lgm_proto::LayerParameter;

use crate::common::item_loss::{self, ItemLoss, Scored, Spec};
use crate::common::labels::Items;
use crate::common::loops::for_rows;

/// The layer; see the module.
pub struct MarginContrastiveLoss {
    margin: f32,
}

impl MarginContrastiveLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let margin = param.contrastive_loss_param.unwrap_or_default().margin();
        ensure!(margin.is_finite(), "margin must be a finite number, found {margin}");
        item_loss::node(MarginContrastiveLoss { margin })
    }
}

impl ItemLoss for MarginContrastiveLoss {
    fn loss<T: Float>(&self, scored: Scored<'_, T>, sums: &mut [T]) -> f64 {
        let margin = T::of(self.margin.into());
        for_rows(sums, 1, 3 * scored.classes(), |i, sum| {
            let Some((x, own)) = scored.item(i) else { return };
            let within = |&other: &T| (margin + other - x[own]).max(T::zero());
            sum[0] = x.iter().map(within).sum::<T>() - within(&x[own]);
        });
        sums.iter().map(|s| s.f64()).sum()
    }

    fn gradient<T: Float>(&self, scored: Scored<'_, T>, scale: T, dx: &mut [T]) {
        let (n, margin) = (scored.classes(), T::of(self.margin.into()));
        for_rows(dx, n, 3 * n, |i, dx| {
            let Some((x, own)) = scored.item(i) else { return };
            let bound = x[own];
            let one = |x: T| if margin + x - bound > T::zero() { T::one() } else { T::zero() };
            let within = x.iter().map(|&x| one(x)).sum::<T>() - one(bound);
            dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx = scale * one(x));
            dx[own] = -scale * within;
        });
    }

    fn spec(&self, items: Items) -> Spec {
        Spec {
            partials: ("margin_contrastive_partials", items.count()),
            // A warp for each item.
            backward: ("margin_contrastive_backward", items.items, Grid::elements(items.items * 32)),
            number: self.margin.into(),
            flops: 3 * items.count(),
        }
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
