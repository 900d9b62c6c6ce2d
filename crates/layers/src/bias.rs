//! Bias: y = x + b, with b repeated along the axes it lacks.
//!
//! Shapes: bottom x; b, of the bottom's extents from `axis` on, is a second bottom or else a learned parameter of
//! `num_axes` axes (−1: all the rest; 0: one number), filled by `filler` (zeros if absent); top like x, in its memory if
//! the net wants. Gradient: dx = dy; db = Σ of dy over the axes that b lacks.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{BuildCx, Node, Result};
use lgm_proto::LayerParameter;

use crate::common::affine::{self, Affine, Main};

/// The layer; see the module.
pub struct Bias;

impl Bias {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.bias_param.clone().unwrap_or_default();
        let (axis, num_axes) = (param.axis(), param.num_axes());
        affine::node(Affine { axis, num_axes, main: Main::Bias, filler: param.filler, bounds: None, bias: None })
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(bottoms: &str, param: &str) -> String {
        format!("layer {{ name: 'b' type: 'Bias' {bottoms} top: 'y' bias_param {{ {param} }} }}")
    }

    const ONE: &str = "bottom: 'x'";
    const TWO: &str = "bottom: 'x' bottom: 'b'";

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/bias_0"),
                Case::golden("layers/bias_two_bottoms"),
                Case::new(layer(ONE, "num_axes: 0")).bottom([2, 3]),
                Case::new(layer(ONE, "axis: 0 num_axes: -1")).bottom([2, 3]),
                Case::new(layer(ONE, "axis: -2 num_axes: 1")).bottom([2, 3, 11]),
                Case::new(layer(ONE, "axis: -1")).bottom([3, 70]),
                Case::new(layer(TWO, "axis: 0")).bottom([3, 2]).bottom([3]),
                Case::new(layer(TWO, "")).bottom([3, 2]).bottom(Shape::scalar()),
            ],
        );
    }

    #[test]
    fn fillers() {
        let filled = |param: &str| {
            Harness::new(&registry(), &layer(ONE, param), Phase::Train, DType::F32, &[[2, 3].into()])
                .unwrap()
                .filled()
                .unwrap()
        };
        assert_eq!(filled(""), [[0.0; 3]]);
        assert_eq!(filled("filler { value: 2 }"), [[2.0; 3]]);
    }

    #[test]
    fn mistakes_are_named() {
        let x = Shape::from([2, 3, 4]);
        config_error(&registry(), &layer(ONE, "axis: 3"), std::slice::from_ref(&x), &["axis 3", "out of range"]);
        config_error(
            &registry(),
            &layer(ONE, "axis: 2 num_axes: 2"),
            std::slice::from_ref(&x),
            &["num_axes 2", "past", "(2, 3, 4)"],
        );
        config_error(&registry(), &layer(ONE, "num_axes: -2"), std::slice::from_ref(&x), &["num_axes is -2"]);
        let b = Shape::from([4, 3]);
        config_error(&registry(), &layer(TWO, ""), &[x.clone(), b], &["bottom 1", "(2, 3, 4)", "(3, 4)", "(4, 3)"]);
        config_error(&registry(), &layer(TWO, "axis: 2"), &[x, [4, 1].into()], &["bottom 1", "(4, 1)"]);
    }
}
