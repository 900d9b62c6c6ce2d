//! Sigmoid: y = 1 / (1 + e⁻ˣ).
//!
//! Gradient: dx = dy · y · (1 − y). Shapes: one top like the bottom; runs in place. Source: Caffe's layer of this name.

use lgm_core::{BuildCx, Float, Node, Result};
use lgm_cpu::math;
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct Sigmoid;

impl Sigmoid {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        pointwise::node(Sigmoid)
    }
}

impl Pointwise for Sigmoid {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        map.each(math::sigmoid);
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        gradient.each(|y, dy| dy * y * (T::one() - y));
    }

    fn spec(&self) -> Spec {
        Spec::new(kernels!("sigmoid"), Reads::Top, 4)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check};

    #[test]
    fn cases() {
        let layer = r#"layer { name: "s" type: "Sigmoid" bottom: "x" top: "y" }"#;
        let extremes = Fill::Given(vec![-1e4, -100.0, -1.0, 0.0, 1.0, 30.0, 1e4]);
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/sigmoid_0"),
                Case::new(layer).bottom_of([4, 5], Fill::Normal(0.0, 3.0)),
                Case::new(layer).bottom_of([7], extremes),
            ],
        );
    }
}
