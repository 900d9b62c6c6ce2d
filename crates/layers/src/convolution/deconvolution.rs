//! Deconvolution, the transposed convolution: every element of the bottom spreads the kernel, times itself, over the top.
//!
//! `y[n, o, p · stride + q · dilation − pad] += W[c, o, q] · x[n, c, p]` over the channels c of o's group, positions p and
//! kernel positions q, from y = b; it is the backward-data pass of a [`Convolution`], and its gradient by its bottoms is that
//! convolution's forward pass.
//!
//! Shapes: bottoms `[N…, C, spatial…]`, the channels at `axis`, all of one shape; a top for each,
//! `[N…, O, stride · (spatial − 1) + dilation · (kernel − 1) + 1 − 2 · pad …]` with O = `num_output`. Parameters, shared by all
//! bottoms: W `[C, O / group, kernel…]` and, unless `bias_term` is false, b `[O]`.
//! Gradient: dx is the convolution of dy and W; `dW[c, o, q] = Σ x[n, c, p] · dy[n, o, p · stride + …]`; `db[o] = Σ dy[n, o, p]`.
//!
//! Fields as [`Convolution`] has them. Upsampling by f, each channel for itself, is `kernel_size: 2·f − f % 2`, `stride: f`,
//! `pad: ⌈(f − 1) / 2⌉`, `group` and `num_output` the channels, no bias, `weight_filler { type: "bilinear" }` and a `lr_mult`
//! of 0.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{BuildCx, Node, Result};
use lgm_proto::LayerParameter;

use super::Convolution;

/// The layer; see the module.
pub struct Deconvolution;

impl Deconvolution {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Convolution::node(param, true)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'd' type: 'Deconvolution' bottom: 'x' top: 'y' convolution_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let two =
            |param: &str| layer(param).replace("bottom: 'x' top: 'y'", "bottom: 'x' bottom: 'z' top: 'y' top: 'v'");
        check(
            &registry(),
            &[
                Case::golden("layers/deconv_0"),
                Case::golden("layers/deconv_1"),
                Case::golden("layers/deconv_more_0"),
                Case::golden("layers/deconv_more_1"),
                Case::golden("layers/deconv_more_2"),
                Case::golden("layers/deconv_more_3"),
                Case::new(layer("num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: 4 bias_term: false"))
                    .bottom([2, 4, 3, 4]),
                Case::new(layer("num_output: 4 kernel_size: 3 pad: 1 group: 4")).bottom([2, 4, 3, 4]),
                Case::new(layer("num_output: 8 kernel_size: 3 stride: 2 pad: 1 group: 2")).bottom([2, 4, 4, 3]),
                Case::new(layer("num_output: 2 kernel_size: 2 stride: 3 dilation: 2 pad: 1")).bottom([1, 3, 3, 2]),
                Case::new(layer("num_output: 4 kernel_size: 5 stride: 4 pad: 2 group: 2")).bottom([1, 8, 2, 3]),
                Case::new(layer("num_output: 8 kernel_size: 1 group: 4")).bottom([2, 8, 3, 3]),
                Case::new(layer("num_output: 1 kernel_size: 3 stride: 2")).bottom([2, 8, 2, 2]),
                Case::new(two("num_output: 4 kernel_h: 2 kernel_w: 3 group: 2 stride_h: 2 stride_w: 1"))
                    .bottom([1, 6, 3, 2])
                    .bottom([1, 6, 3, 2]),
                Case::new(layer("num_output: 3 kernel_size: 3 stride: 2 axis: 2")).bottom([2, 2, 3, 2, 2]),
                Case::new(layer("num_output: 2 kernel_size: 3 stride: 2 pad: 1")).bottom([2, 3, 4]),
                Case::new(layer("num_output: 2 bias_term: false")).bottom([3, 4]),
                Case::new(two("num_output: 4 kernel_size: 2 stride: 2 pad: 1 group: 2"))
                    .bottom([2, 4, 2, 3, 2])
                    .bottom([2, 4, 2, 3, 2]),
                Case::new(layer("num_output: 2 kernel_size: 2")).bottom([2, 1, 2, 1, 2, 2]),
            ],
        );
    }

    #[test]
    fn upsampling_by_two_interpolates() {
        let text = layer(
            "num_output: 2 group: 2 kernel_size: 4 stride: 2 pad: 1 bias_term: false weight_filler { type: 'bilinear' }",
        );
        let harness = Harness::new(&registry(), &text, Phase::Test, DType::F32, &[[1, 2, 3, 5].into()]).unwrap();
        assert_eq!(harness.plan.tops[0].shape, Shape::from([1, 2, 6, 10]));
        assert_eq!(harness.params[0].shape, Shape::from([2, 1, 4, 4]));
        assert_eq!(harness.filled().unwrap()[0][4..8], [0.1875, 0.5625, 0.5625, 0.1875]);
        assert_eq!(harness.plan.flops, 2 * (2 * 3 * 5) * 16);
    }

    #[test]
    fn plan() {
        let text = layer("num_output: 6 group: 2 kernel_h: 3 kernel_w: 5 pad_w: 2 stride_h: 2 stride_w: 3");
        let harness = Harness::new(&registry(), &text, Phase::Train, DType::F32, &[[2, 4, 9, 8].into()]).unwrap();
        assert_eq!(harness.plan.tops[0].shape, Shape::from([2, 6, 19, 22]));
        assert_eq!(harness.params[0].shape, Shape::from([4, 3, 3, 5]));
        assert_eq!(harness.params[1].shape, Shape::from([6]));
    }

    #[test]
    fn mistakes_are_named() {
        let x = [Shape::from([1, 4, 6, 6])];
        for (param, needles) in [
            ("kernel_size: 3", &["num_output"][..]),
            ("num_output: 2 kernel_size: 0", &["kernel size", "positive"]),
            ("num_output: 2 kernel_size: 3 stride: 0", &["stride", "positive"]),
            ("num_output: 3 kernel_size: 1 group: 2", &["group (2)", "input channels (4)", "outputs (3)"]),
            ("num_output: 3 kernel_size: 1 group: 3", &["group (3)", "input channels (4)"]),
            ("num_output: 3 kernel_size: 2 pad: 4", &["6 positions spread over 7", "padding 4", "none"]),
        ] {
            config_error(&registry(), &layer(param), &x, needles);
        }
    }
}
