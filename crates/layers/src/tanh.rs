//! TanH: y = tanh x.
//!
//! Gradient: dx = dy · (1 − y²). Shapes: one top like the bottom; runs in place. Source: Caffe's layer of this name.

use lgm_core::{BuildCx, Float, Node, Result};
use lgm_cpu::math;
use lgm_proto::LayerParameter;

use crate::common::pointwise::{self, Gradient, Map, Pointwise, Reads, Spec, kernels};

/// The layer; see the module.
pub struct TanH;

impl TanH {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        pointwise::node(TanH)
    }
}

impl Pointwise for TanH {
    fn forward<T: Float>(&self, map: Map<'_, T>) {
        map.each(math::tanh);
    }

    fn backward<T: Float>(&self, gradient: Gradient<'_, T>) {
        gradient.each(|y, dy| dy * (T::one() - y * y));
    }

    fn spec(&self) -> Spec {
        Spec::new(kernels!("tanh"), Reads::Top, 4)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check};

    #[test]
    fn cases() {
        let layer = r#"layer { name: "t" type: "TanH" bottom: "x" top: "y" }"#;
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/tanh_0"),
                Case::new(layer).bottom_of([4, 5], Fill::Normal(0.0, 2.0)),
                Case::new(layer).bottom_of([4], Fill::Given(vec![-1e4, -20.0, 0.0, 1e4])),
            ],
        );
    }
}
