//! BNLL, the binomial normal log likelihood, also called softplus: y = ln(1 + eˣ).
//!
//! Computed as max(x, 0) + ln(1 + e^−∣x∣), which neither overflows nor loses small values. Gradient: dx = dy · σ(x), and
//! σ(x) = 1 − e^−y, so backward reads the top and the layer runs in place. Shapes: one top like the bottom.
//!
//! Source: Caffe's layer of this name. Where we differ: Caffe in place takes the gradient at the top's values.

use lgm_core::{BuildCx, Float, Node, Result};
use lgm_cpu::math::{exp_m1, softplus};
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct Bnll;

impl Bnll {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        pointwise::node(Bnll)
    }
}

impl Pointwise for Bnll {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        map.each(softplus);
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        gradient.each(|y, dy| -dy * exp_m1(-y));
    }

    fn spec(&self) -> Spec {
        Spec::new(kernels!("bnll"), Reads::Top, 5)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check};

    #[test]
    fn cases() {
        let layer = r#"layer { name: "b" type: "BNLL" bottom: "x" top: "y" }"#;
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/bnll_0"),
                Case::golden("layers/bnll_more_0"),
                Case::new(layer).bottom_of([4, 5], Fill::Normal(0.0, 3.0)),
                Case::new(layer).bottom_of([6], Fill::Given(vec![-1e4, -60.0, -20.0, 0.0, 60.0, 1e4])),
            ],
        );
    }
}
