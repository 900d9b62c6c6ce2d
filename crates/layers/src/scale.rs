//! Scale: y = x · s, plus a learned b with `bias_term`; s and b are repeated along the axes they lack.
//!
//! Shapes: bottom x; s, of the bottom's extents from `axis` on, is a second bottom or else a learned parameter of
//! `num_axes` axes (−1: all the rest; 0: one number), filled by `filler` (ones if absent); b, the last parameter, has
//! the shape of s and is filled by `bias_filler` (zeros if absent); top like x.
//! Gradient: dx = dy · s; ds = Σ of dy · x, db = Σ of dy, over the axes that they lack.
//!
//! With `min_value` or `max_value` (of forks) s is brought between them before it is used: in TRAIN a learned s itself, so that the
//! solver goes on from there, else a copy. Its gradient is as without them.
//!
//! Source: Caffe's layer of this name, and happynear's for the bounds, where s itself is changed in TEST too.

use lgm_core::{BuildCx, Node, Phase, Result, ensure};
use lgm_proto::LayerParameter;

use crate::common::affine::{self, Affine, Bounds, Main};

/// The layer; see the module.
pub struct Scale;

impl Scale {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let param = param.scale_param.clone().unwrap_or_default();
        let (axis, num_axes) = (param.axis(), param.num_axes());
        let bias = param.bias_term().then_some(param.bias_filler);
        let (least, most) = (param.min_value.unwrap_or(f32::NEG_INFINITY), param.max_value.unwrap_or(f32::INFINITY));
        ensure!(least <= most, "min_value must not be above max_value, found {least} and {most}");
        let bounded = param.min_value.is_some() || param.max_value.is_some();
        let bounds = bounded.then_some(Bounds { least, most, train: cx.phase == Phase::Train });
        affine::node(Affine { axis, num_axes, main: Main::Scale, filler: param.filler, bounds, bias })
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
                // Bounds that nothing reaches, and some that much does, beyond which the gradient is not the formula's.
                Case::new(layer(ONE, "min_value: -9 max_value: 9 bias_term: true")).bottom([2, 3, 4]),
                Case::new(layer(TWO, "max_value: 9 axis: 0")).bottom([3, 2]).bottom([3]),
                Case::new(layer(ONE, "min_value: 0.9 max_value: 1.1")).without_gradients().bottom([2, 40, 3]),
                Case::new(layer(ONE, "min_value: 0.9 max_value: 1.1"))
                    .test_phase()
                    .without_gradients()
                    .bottom([2, 40, 3]),
                Case::new(layer(TWO, "min_value: 0 axis: 0 bias_term: true"))
                    .without_gradients()
                    .bottom([3, 2])
                    .bottom([3]),
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
    fn bounds_move_a_learned_scale_in_train_alone() {
        for (phase, after) in [(Phase::Train, [0.5, 1.0, 2.0]), (Phase::Test, [0.1, 1.0, 3.0])] {
            let text = layer(ONE, "min_value: 0.5 max_value: 2");
            let harness = Harness::new(&registry(), &text, phase, DType::F64, &[[1, 3].into()]).unwrap();
            let mut inputs = harness.forward_inputs(&[&[1.0; 3]]).unwrap();
            inputs.params = vec![vec![0.1, 1.0, 3.0]];
            inputs.top_diffs = vec![vec![2.0; 3]];
            let out = harness.run(&inputs).unwrap();
            assert_eq!((&out.tops[0][..], &out.params[0][..]), (&[0.5, 1.0, 2.0][..], &after[..]));
            assert_eq!(out.bottom_diffs[0].as_deref(), Some(&[1.0, 2.0, 4.0][..]));
        }
    }

    #[test]
    fn mistakes_are_named() {
        config_error(
            &registry(),
            &layer(ONE, "min_value: 2 max_value: 1"),
            &[[2, 3].into()],
            &["min_value", "2 and 1"],
        );
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
