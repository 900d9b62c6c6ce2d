use lgm_core::{Element, Format, Layout, Window};

use super::descriptors::extents;
use super::*;
use crate::SearchPath;

fn conv() -> DeviceConvolution {
    DeviceConvolution {
        batch: 2,
        channels: 6,
        outputs: 4,
        windows: [Window::new(9, 3, 2, 1, 2).unwrap(), Window::new(11, 2, 1, 0, 2).unwrap()],
        groups: 2,
        format: Format::PLAIN,
    }
}

#[test]
fn extents_go_where_cudnn_wants_them() {
    assert_eq!(extents(&conv()).unwrap(), [[2, 6, 9, 11], [4, 3, 3, 2], [2, 4, 4, 9]]);
    for batch in [1 << 26, usize::MAX] {
        let error = extents(&DeviceConvolution { batch, ..conv() }).unwrap_err().to_string();
        assert!(error.contains("too large for cuDNN"), "{error}");
    }
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
    let point = DeviceConvolution { windows: [Window::UNIT; 2], format: last, ..conv() };
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
            Descriptors::new(&api, &DeviceConvolution { format, ..conv }, precision).unwrap();
        }
    }
    let of_rows = |rows: Window| {
        let bad = DeviceConvolution { windows: [rows, conv().windows[1]], ..conv() };
        Descriptors::new(&api, &bad, Precision::Fp32).map(drop).unwrap_err().to_string()
    };
    let rows = conv().windows[0];
    let text = of_rows(Window { stride: 0, ..rows });
    assert!(text.contains("cudnnSetConvolution2dDescriptor failed: CUDNN_STATUS_BAD_PARAM"), "{text}");
    let text = of_rows(Window { output: 5, ..rows });
    assert!(text.contains("cuDNN gives the output the extents [2, 4, 4, 9]"), "{text}");
}
