use lgm_core::{Element, Format, Layout};

use super::descriptors::Geometry;
use super::*;
use crate::SearchPath;

fn conv() -> DeviceConvolution {
    DeviceConvolution {
        batch: 2,
        channels: 6,
        outputs: 4,
        input: [9, 11],
        output: [4, 9],
        kernel: [3, 2],
        stride: [2, 1],
        pad: [1, 0],
        dilation: [2, 2],
        groups: 2,
        format: Format::PLAIN,
    }
}

#[test]
fn extents_go_where_cudnn_wants_them() {
    let expected = Geometry {
        x: [2, 6, 9, 11],
        w: [4, 3, 3, 2],
        y: [2, 4, 4, 9],
        pad: [1, 0],
        stride: [2, 1],
        dilation: [2, 2],
        groups: 2,
    };
    assert_eq!(Geometry::of(&conv()), Some(expected));
    let long = DeviceConvolution { batch: 1 << 20, input: [64, 64], ..conv() };
    assert_eq!(Geometry::of(&long), None, "more elements than an int counts");
    assert_eq!(Geometry::of(&DeviceConvolution { batch: usize::MAX, ..conv() }), None);
    assert_eq!(Geometry::of(&DeviceConvolution { groups: 0, ..conv() }), None);
}

#[test]
fn operands_and_factors_are_those_of_each_pass() {
    assert_eq!(in_order(ConvolutionPass::Forward, ["x", "w"]), ["x", "w"]);
    assert_eq!(in_order(ConvolutionPass::Data, ["dy", "w"]), ["w", "dy"]);
    assert_eq!(in_order(ConvolutionPass::Filter, ["x", "dy"]), ["x", "dy"]);
    let passes = [ConvolutionPass::Forward, ConvolutionPass::Data, ConvolutionPass::Filter];
    assert_eq!(passes.map(|pass| kept(&conv(), pass)), [0.0, 0.0, 1.0]);
    let last = Format { element: Element::Bf16, layout: Layout::ChannelsLast };
    assert_eq!(passes.map(|pass| kept(&DeviceConvolution { format: last, ..conv() }, pass)), [0.0; 3]);
    // Filters of one tap lie the same in both orders, so that their gradient is the parameter's own.
    let last = Format { element: Element::F32, ..last };
    let point = DeviceConvolution { kernel: [1, 1], format: last, ..conv() };
    assert_eq!(passes.map(|pass| kept(&point, pass)), [0.0, 0.0, 1.0]);
    assert_eq!(passes.map(|pass| kept(&DeviceConvolution { format: last, ..conv() }, pass)), [0.0; 3]);
}

/// cuDNN makes descriptors without a GPU.
#[test]
fn cudnn_takes_the_descriptors_and_finds_the_same_output() {
    let api = match CudnnApi::load(&SearchPath::from_env()) {
        Ok(api) => Arc::new(api),
        Err(error) => return println!("skipped: {}", error.to_string().lines().next().unwrap_or_default()),
    };
    let last = Format { element: Element::Bf16, layout: Layout::ChannelsLast };
    for (precision, format) in [
        (Precision::Fp32, Format::PLAIN),
        (Precision::Tf32, Format::PLAIN),
        (Precision::Tf32, Format { element: Element::F32, ..last }),
        (Precision::Bf16, last.channels_first()),
        (Precision::Bf16, last),
    ] {
        for conv in [conv(), DeviceConvolution { outputs: 12, groups: 6, ..conv() }] {
            let geometry = Geometry::of(&conv).unwrap();
            let descriptors = Descriptors::new(&api, &geometry, format, precision).unwrap();
            assert_eq!(descriptors.output().unwrap(), geometry.y);
        }
    }
    let bad = Geometry { stride: [0, 1], ..Geometry::of(&conv()).unwrap() };
    let text = Descriptors::new(&api, &bad, Format::PLAIN, Precision::Fp32).map(drop).unwrap_err().to_string();
    assert!(text.contains("cudnnSetConvolution2dDescriptor failed: CUDNN_STATUS_BAD_PARAM"), "{text}");
}
