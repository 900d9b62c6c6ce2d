//! Scale: y = x · s, plus a learned b with `bias_term`; s and b are repeated along the axes they lack.
//!
//! Shapes: bottom x; s, of the bottom's extents from `axis` on, is a second bottom or else a learned parameter of
//! `num_axes` axes (−1: all the rest; 0: one number), filled by `filler` (ones if absent); b, the last parameter, has
//! the shape of s and is filled by `bias_filler` (zeros if absent); top like x.
//! Gradient: dx = dy · s; ds = Σ of dy · x, db = Σ of dy, over the axes that they lack.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{BuildCx, Node, Result};
use lgm_proto::LayerParameter;

use crate::common::affine::{self, Affine, Main};

/// The layer; see the module.
pub struct Scale;

impl Scale {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.scale_param.clone().unwrap_or_default();
        let (axis, num_axes) = (param.axis(), param.num_axes());
        let bias = param.bias_term().then_some(param.bias_filler);
        affine::node(Affine { axis, num_axes, main: Main::Scale, filler: param.filler, bias })
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(bottoms: &str, param: &str) -> String {
        format!("layer {{ name: 's' type: 'Scale' {bottoms} top: 'y' scale_param {{ {param} }} }}")
    }

    const ONE: &str = "bottom: 'x'";
    const TWO: &str = "bottom: 'x' bottom: 's'";

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/scale_0"),
                Case::golden("layers/scale_1"),
                Case::golden("layers/scale_2"),
                Case::golden("layers/scale_two_bottoms"),
                Case::new(layer(ONE, "num_axes: 0 bias_term: true")).bottom([2, 3]),
                Case::new(layer(ONE, "axis: -1")).bottom([3, 70]),
                Case::new(layer(ONE, "axis: 0 num_axes: 2 bias_term: true")).bottom([2, 3, 9]),
                Case::new(layer(TWO, "axis: 0 bias_term: true")).bottom([3, 2]).bottom([3]),
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
        assert_eq!(filled("bias_term: true"), [[1.0; 3], [0.0; 3]]);
        assert_eq!(filled("filler { value: 2 } bias_term: true bias_filler { value: 3 }"), [[2.0; 3], [3.0; 3]]);
    }

    #[test]
    fn mistakes_are_named() {
        let x = Shape::from([2, 3, 4]);
        config_error(&registry(), &layer(ONE, "axis: -4"), std::slice::from_ref(&x), &["axis -4", "out of range"]);
        config_error(
            &registry(),
            &layer(ONE, "num_axes: 3"),
            std::slice::from_ref(&x),
            &["num_axes 3", "past", "(2, 3, 4)"],
        );
        config_error(&registry(), &layer(TWO, ""), &[x, [4].into()], &["bottom 1", "(2, 3, 4)", "(3)", "(4)"]);
    }
}
