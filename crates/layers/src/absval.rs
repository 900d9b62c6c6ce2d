//! AbsVal: y = ∣x∣.
//!
//! Gradient: dx = dy · sign x, with sign 0 = 0; backward reads the bottom. Shapes: one top like the bottom. Source: Caffe's
//! layer of this name. Where we differ: Caffe refuses it in place, ours keeps the bottom for backward.

use lgm_core::{BuildCx, Float, Node, Result};
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct AbsVal;

impl AbsVal {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        pointwise::node(AbsVal)
    }
}

impl Pointwise for AbsVal {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        map.each(T::abs);
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        gradient.each(|x, dy| {
            let positive = if x > T::zero() { dy } else { T::zero() };
            if x < T::zero() { -dy } else { positive }
        });
    }

    fn spec(&self) -> Spec {
        Spec::new(kernels!("absval"), Reads::Bottom, 1)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check};

    #[test]
    fn cases() {
        let layer = r#"layer { name: "a" type: "AbsVal" bottom: "x" top: "y" }"#;
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/absval_0").kink(0, 0.0, 1e-3),
                Case::golden("layers/absval_more_0").kink(0, 0.0, 1e-3),
                Case::new(layer).bottom([3, 4, 5]).kink(0, 0.0, 1e-3),
                // At zero, the gradient is zero.
                Case::new(layer).bottom_of([4], Fill::Given(vec![0.0, -0.0, 1e30, -1e-30])).without_gradients(),
            ],
        );
    }
}
