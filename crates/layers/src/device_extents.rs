//! Device halves at the extents that break kernels: around a warp, a block and the parts a sum is taken in, one, and none;
//! what they report; and the fused layers.

use lgm_core::{BuildCx, Error, Node, Phase, Registry, Result, Shape};
use lgm_cuda::sim::Order;
use lgm_proto::LayerParameter;
use lgm_testkit::{Case, DeviceHarness, Fill, Harness, check};

use crate::batch_norm::{FusedBatchNorm, of_kind};

fn layer(kind: &str, fields: &str) -> Case {
    Case::new(format!("layer {{ name: 'l' type: '{kind}' bottom: 'x' top: 'y' {fields} }}")).without_gradients()
}

fn two(kind: &str, fields: &str) -> Case {
    Case::new(format!("layer {{ name: 'l' type: '{kind}' bottom: 'x' bottom: 'z' top: 'y' {fields} }}"))
        .without_gradients()
}

fn checked(cases: Vec<Case>) {
    check(&crate::tests::registry(), &cases);
}

#[test]
fn element_by_element() {
    for n in [1, 31, 32, 33, 257, 1027] {
        // Positive numbers, of which all are defined.
        let each = |kind| layer(kind, "").bottom_of([n], Fill::Uniform(0.1, 2.0));
        checked(crate::tests::registry().elementwise().into_iter().map(each).collect());
        checked(vec![
            layer("ReLU", "relu_param { negative_slope: 0.1 }").bottom([n]),
            layer("Power", "power_param { power: 2 shift: 3 }").bottom([n]),
            layer("Dropout", "").bottom([n]),
            layer("Clip", "clip_param { min: -0.5 max: 1 }").bottom([n]),
            two("Eltwise", "eltwise_param { operation: MAX }").bottom([n]).bottom([n]),
            two("Eltwise", "eltwise_param { coeff: 2 coeff: -1 }").bottom([n]).bottom([n]),
            two("EuclideanLoss", "").bottom([n]).bottom([n]),
            two("L1Loss", "").bottom([n]).bottom([n]),
            layer("Reduction", "reduction_param { operation: MAX }").bottom([n]),
            layer("Reduction", "reduction_param { operation: ASUM axis: 1 }").bottom([3, n]),
        ]);
    }
    checked(vec![
        two("Concat", "").bottom([3, 31, 9]).bottom([3, 2, 9]),
        layer("Reduction", "reduction_param { axis: 1 operation: MIN }").bottom([2, 1000]),
        layer("Reduction", "reduction_param { operation: SUMSQ }").bottom([13_000]),
        two("EuclideanLoss", "").bottom([2, 6000]).bottom([2, 6000]),
    ]);
}

#[test]
fn rows_and_arrangements() {
    for n in [1, 31, 32, 33, 257, 1027] {
        checked(vec![
            layer("MVN", "").bottom([2, 3, n]),
            layer("Normalize", "norm_param {}").bottom([2, 3, n]),
            layer("Normalize", "").bottom([3, n, 2]),
            layer("BN", "").bottom([3, n, 2]),
            layer("L1Loss", "l1_loss_param { l2_per_location: true }").bottom([2, n, 3]),
            layer(
                "InnerProduct",
                &format!(
                    "inner_product_param {{ normalize: true weight_filler {{ type: 'gaussian' }} num_output: {n} }}"
                ),
            )
            .bottom([2, n]),
            // One channel alone has a gradient of nothing but rounding.
            layer("Normalize", "norm_param { across_spatial: false }").bottom([2, n + 1, 3]),
            layer("ArgMax", "argmax_param { top_k: 1 out_max_val: true }").bottom_of([3, n], Fill::Labels(5)),
            layer("ArgMax", "argmax_param { axis: 1 }").bottom_of([2, n, 3], Fill::Labels(5)),
            layer("Permute", "permute_param { order: 1 }").bottom([3, n]),
            layer("Permute", "permute_param { order: 2 order: 1 }").bottom([2, 3, n]),
            layer("Tile", "tile_param { tiles: 3 }").bottom([2, n]),
            two("Crop", "crop_param { axis: 1 offset: 1 }").bottom([3, n + 1]).bottom([1, n]),
            two("BatchReindex", "").bottom([3, n]).bottom_of([5], Fill::Labels(3)),
            layer("Interp", &format!("interp_param {{ height: 3 width: {n} }}")).bottom([1, 2, 4, 7]),
            two("CtcLoss", &format!("ctc_loss_param {{ alphabet_size: {n} time_step: 4 }}"))
                .bottom([4, 2, n])
                .bottom_of([2, 2], Fill::Labels(n)),
            two("LabelsequenceAccuracy", "").bottom([2, n, 3]).bottom_of([2, 3], Fill::Labels(3)),
        ]);
    }
}

/// Layers of so many bottoms and tops.
fn many(kind: &str, bottoms: usize, tops: usize, fields: &str) -> Case {
    let blobs = |what: &str, n: usize| (0..n).map(|i| format!("{what}: '{what}{i}' ")).collect::<String>();
    let (bottoms, tops) = (blobs("bottom", bottoms), blobs("top", tops));
    Case::new(format!("layer {{ name: 'l' type: '{kind}' {bottoms}{tops}{fields} }}")).without_gradients()
}

/// So many boxes of a fifth of an image, which neighbours overlap.
fn boxes(n: usize) -> impl Iterator<Item = [f64; 4]> {
    (0..n).map(|i| [(i % 17) as f64 * 0.05, (i / 17 % 19) as f64 * 0.05]).map(|[x, y]| [x, y, x + 0.2, y + 0.21])
}

#[test]
fn boxes_of_images() {
    for n in [1, 31, 33, 257, 1027] {
        let priors: Vec<f64> = boxes(n).chain((0..n).map(|_| [0.1, 0.1, 0.2, 0.2])).flatten().collect();
        let objects = [[0.12, 0.11, 0.31, 0.33], [0.4, 0.3, 0.62, 0.5], [0.41, 0.31, 0.6, 0.52]];
        let truths: Vec<f64> = (0..5)
            .flat_map(|i| [&[(i % 2) as f64, 1.0 + (i % 2) as f64, 0.0][..], &objects[i % 3], &[0.0]].concat())
            .collect();
        let detections: Vec<f64> = boxes(n)
            .enumerate()
            .flat_map(|(i, corners)| {
                [&[(i % 2) as f64, 1.0 + (i / 2 % 2) as f64, (i * 37 % 101) as f64 / 101.0][..], &corners].concat()
            })
            .collect();
        let regions: Vec<f64> =
            boxes(n).flat_map(|corners| [&[0.0][..], &corners.map(|v| (100.0 * v).round())].concat()).collect();
        let pixels = vec![12.0, 11.0, 31.0, 33.0, 1.0, 40.0, 30.0, 62.0, 50.0, 2.0];
        let image = Fill::Given(vec![100.0, 100.0, 1.0]);
        let ssd = |kind: &str, bottoms: usize, fields: &str| {
            many(kind, bottoms, 1, fields)
                .bottom_of([2, 4 * n], Fill::Normal(0.0, 1.0))
                .bottom_of([2, 3 * n], Fill::Uniform(0.0, 1.0))
                .bottom_of([1, 2, 4 * n], Fill::Given(priors.clone()))
        };
        let nms = "nms_param { nms_threshold: 0.4 top_k: 200 }";
        let loss = |fields: &str| {
            let fields = format!("multibox_loss_param {{ num_classes: 3 {fields} }}");
            ssd("MultiBoxLoss", 4, &fields).bottom_of([1, 1, 5, 8], Fill::Given(truths.clone()))
        };
        checked(vec![
            two("Filter", "").bottom([n, 3]).bottom_of([n], Fill::Labels(2)),
            ssd("DetectionOutput", 3, &format!("detection_output_param {{ num_classes: 3 {nms} keep_top_k: 50 }}")),
            loss("code_type: CENTER_SIZE"),
            loss(&format!("mining_type: HARD_EXAMPLE sample_size: 64 use_prior_for_nms: true {nms}")),
            many("DetectionEvaluate", 2, 1, "detection_evaluate_param { num_classes: 3 overlap_threshold: 0.3 }")
                .bottom_of([1, 1, n, 7], Fill::Given(detections))
                .bottom_of([1, 1, 5, 8], Fill::Given(truths.clone())),
            layer(
                "YoloDetectionOutput",
                "yolo_detection_output_param { num_classes: 3 num_box: 1 biases: 2 biases: 1 }",
            )
            .bottom([2, 8, 1, n]),
            two(
                "RegionLoss",
                "region_loss_param { num: 2 num_class: 40 biases: 0.5 biases: 0.6 biases: 1.5 biases: 1.2 }",
            )
            .bottom([2, 90, 1, n])
            .bottom_of([2, 5], Fill::Given(vec![1.0, 0.3, 0.4, 0.2, 0.3, 39.0, 0.9, 0.1, 0.5, 0.4])),
            many("Proposal", 3, 2, "proposal_param { feat_stride: 3 scale: 1 ratio: 1 post_nms_topn: 40 min_size: 2 }")
                .bottom_of([1, 2, 1, n], Fill::Uniform(0.0, 1.0))
                .bottom_of([1, 4, 1, n], Fill::Normal(0.0, 0.3))
                .bottom_of([1, 3], image.clone()),
            many("AnchorTarget", 3, 4, "anchor_target_param { feat_stride: 3 scale: 1 ratio: 1 batch_size: 20 }")
                .bottom([1, 2, 1, n])
                .bottom_of([2, 5], Fill::Given(pixels.clone()))
                .bottom_of([1, 3], image),
            many("ProposalTarget", 2, 5, "proposal_target_param { cls_num: 3 batch_size: 40 bg_thr_lw: 0 }")
                .bottom_of([n, 5], Fill::Given(regions))
                .bottom_of([2, 5], Fill::Given(pixels)),
            two("SegAccuracy", "").bottom([2, 5, 1, n]).bottom_of([2, 1, n], Fill::Labels(5)),
        ]);
    }
}

/// Few and many channels, with nothing after them, little and much.
fn channel_shapes() -> Vec<Shape> {
    let mut shapes: Vec<Shape> =
        [1, 31, 32, 33, 257].into_iter().flat_map(|c| [[3, c, 1], [2, c, 7]]).map(Shape::from).collect();
    shapes.extend([[2, 2, 2100].into(), [130, 33, 1].into(), [1, 1, 1].into(), [1, 2, 257].into()]);
    // 16-byte vectors along channels or positions, several chunks, more vectors than a block has threads.
    shapes.extend([[300, 96, 1], [2, 16, 8], [3, 8, 1024], [2, 2056, 1]].map(Shape::from));
    shapes
}

#[test]
fn channel_by_channel() {
    for shape in channel_shapes() {
        let varied = || Fill::Normal(3.0, 2.0);
        checked(vec![
            layer("Scale", "scale_param { bias_term: true }").bottom(shape.clone()),
            layer("Bias", "").bottom(shape.clone()),
            two("Scale", "scale_param { axis: 0 }").bottom(shape.clone()).bottom([shape[0], shape[1]].as_slice()),
            layer("PReLU", "").bottom(shape.clone()),
            layer("PReLU", "prelu_param { channel_shared: true }").bottom(shape.clone()),
            layer("BatchNorm", "").bottom_of(shape.clone(), varied()),
            layer("BatchNorm", "").test_phase().bottom_of(shape.clone(), varied()),
        ]);
    }
}

#[test]
fn a_mean_far_from_zero_leaves_the_variance() {
    checked(vec![layer("BatchNorm", "").bottom_of([4, 3, 1500], Fill::Normal(100.0, 1.0))]);
    // A channel that is constant but for its first value.
    let mut values = vec![1.0; 3 * 8192];
    values[0] = 4000.0;
    checked(vec![layer("BatchNorm", "").bottom_of([3, 1, 8192], Fill::Given(values))]);
}

#[test]
fn class_by_class() {
    for classes in [1, 2, 31, 32, 33, 257, 1001] {
        let wide = || Fill::Normal(0.0, 20.0);
        checked(vec![
            layer("Softmax", "").bottom_of([3, classes], wide()),
            layer("Softmax", "").bottom_of([2, classes, 3], wide()),
            two("SoftmaxWithLoss", "").bottom([5, classes]).bottom_of([5], Fill::Labels(classes)),
            two("SoftmaxWithLoss", "").bottom([2, classes, 3]).bottom_of([2, 3], Fill::Labels(classes)),
            two("HingeLoss", "").bottom([5, classes]).bottom_of([5], Fill::Labels(classes)),
            two("MarginContrastiveLoss", "").bottom([5, classes]).bottom_of([5], Fill::Labels(classes)),
            two("CenterLoss", &format!("center_loss_param {{ num_output: {classes} }}"))
                .bottom([9, 5])
                .bottom_of([9], Fill::Labels(classes)),
            two("Accuracy", "").bottom([5, classes]).bottom_of([5], Fill::Labels(classes)),
            layer("InnerProduct", &format!("inner_product_param {{ num_output: {classes} }}")).bottom([33, 5]),
        ]);
    }
    checked(vec![
        two("SoftmaxWithLoss", "").bottom([600, 3]).bottom_of([600], Fill::Labels(3)),
        two("Accuracy", "").bottom([600, 3]).bottom_of([600], Fill::Labels(3)),
        layer("InnerProduct", "inner_product_param { num_output: 3 }").bottom([1, 257]),
    ]);
}

/// Groups of several channels and of one, with one output or more for each, in 16-byte vectors and not, in more positions than a
/// chunk has, and for two bottoms.
#[test]
fn group_by_group() {
    let conv = |fields: &str| layer("Convolution", &format!("convolution_param {{ {fields} }}"));
    let pair = |fields: &str| {
        let bottoms = "bottom: 'x' bottom: 'z' top: 'y' top: 'v'";
        Case::new(format!("layer {{ name: 'l' type: 'Convolution' {bottoms} convolution_param {{ {fields} }} }}"))
            .without_gradients()
    };
    checked(vec![
        conv("num_output: 16 kernel_size: 3 pad: 1 stride: 2 group: 2").bottom([2, 8, 7, 6]),
        conv("num_output: 32 kernel_size: 3 pad: 1 stride: 2 group: 4 bias_term: false").bottom([2, 16, 5, 9]),
        conv("num_output: 12 kernel_size: 1 group: 4").bottom([3, 16, 5, 7]),
        conv("num_output: 8 kernel_size: 3 pad: 1 group: 8").bottom([2, 8, 9, 7]),
        conv("num_output: 16 kernel_size: 3 pad: 1 stride: 2 group: 8").bottom([2, 8, 9, 10]),
        conv("num_output: 16 kernel_size: 3 pad: 2 dilation: 2 group: 16 bias_term: false").bottom([3, 16, 11, 13]),
        conv("num_output: 33 kernel_size: 3 pad: 1 group: 33").bottom([2, 33, 6, 5]),
        conv("num_output: 320 kernel_size: 5 pad: 2 stride: 3 group: 320").bottom([1, 320, 7, 8]),
        conv("num_output: 24 kernel_size: 1 group: 24").bottom([2, 24, 5, 5]),
        conv("num_output: 16 kernel_size: 3 pad: 1 group: 16").bottom([40, 16, 16, 17]),
        conv("num_output: 1 kernel_size: 3 pad: 1 group: 1").bottom([2, 1, 6, 5]),
        pair("num_output: 16 kernel_size: 3 pad: 1 group: 16").bottom([2, 16, 5, 6]).bottom([2, 16, 5, 6]),
        pair("num_output: 16 kernel_size: 3 pad: 1 group: 4").bottom([2, 8, 5, 6]).bottom([2, 8, 5, 6]),
    ]);
}

#[test]
fn window_by_window() {
    let conv = |fields: &str| layer("Convolution", &format!("convolution_param {{ {fields} }}"));
    let deconv = |fields: &str| layer("Deconvolution", &format!("convolution_param {{ {fields} }}"));
    let pool = |fields: &str| layer("Pooling", &format!("pooling_param {{ {fields} }}"));
    checked(vec![
        conv("num_output: 33 kernel_size: 3 pad: 1").bottom([2, 31, 5, 7]),
        conv("num_output: 32 kernel_size: 1").bottom([3, 33, 4, 5]),
        conv("num_output: 6 kernel_size: 1 stride: 2 group: 2").bottom([2, 4, 5, 5]),
        conv("num_output: 20 kernel_size: 5").bottom([2, 1, 12, 12]),
        conv("num_output: 8 kernel_size: 3 stride: 2 pad: 2 dilation: 2 group: 2").bottom([2, 6, 9, 8]),
        conv("num_output: 66 kernel_size: 3 pad: 1 group: 33 stride: 2").bottom([2, 33, 7, 6]),
        conv("num_output: 33 kernel_h: 1 kernel_w: 7 pad_h: 0 pad_w: 3 group: 33").bottom([2, 33, 5, 40]),
        conv("num_output: 4 kernel_size: 7 pad: 3 stride: 4").bottom([1, 3, 20, 21]),
        conv("num_output: 3 kernel_size: 3 pad: 3 stride: 1 dilation: 3").bottom([1, 2, 33, 35]),
        conv("num_output: 5 kernel_size: 3 pad: 1 stride: 2").bottom([2, 3, 4, 5, 33]),
        conv("num_output: 4 kernel_size: 2 kernel_size: 1 kernel_size: 3 group: 2 dilation: 1 dilation: 1 dilation: 2")
            .bottom([2, 6, 3, 31, 7]),
        conv("num_output: 3 kernel_size: 5 pad: 2").bottom([2, 2, 257]),
        deconv("num_output: 33 kernel_size: 4 stride: 2 pad: 1").bottom([2, 31, 5, 7]),
        deconv("num_output: 33 kernel_size: 6 stride: 3 pad: 1 group: 33 bias_term: false").bottom([2, 33, 5, 6]),
        deconv("num_output: 16 kernel_size: 16 stride: 8 group: 16").bottom([3, 16, 3, 2]),
        deconv("num_output: 12 kernel_size: 3 stride: 2 group: 3").bottom([2, 24, 4, 5]),
        deconv("num_output: 5 kernel_size: 3 pad: 1 stride: 2").bottom([2, 3, 2, 3, 17]),
        pool("kernel_size: 3 stride: 2").bottom([2, 33, 17, 19]),
        pool("kernel_size: 2 stride: 3 pad: 1").bottom([1, 257, 5, 4]),
        pool("pool: AVE kernel_size: 3 stride: 2 pad: 1").bottom([2, 31, 16, 17]),
        pool("pool: AVE global_pooling: true").bottom([2, 33, 7, 7]),
        pool("pool: AVE global_pooling: true").bottom([3, 520, 9, 9]),
        pool("kernel_size: 2 stride: 2").bottom([2, 64, 16, 24]),
        pool("kernel_size: 3 stride: 2 pad: 1").bottom([2, 64, 17, 19]),
        pool("pool: AVE kernel_size: 3 stride: 2").bottom([2, 72, 17, 19]),
        pool("pool: AVE kernel_size: 2 stride: 2").bottom([3, 5, 34, 16]),
        pool("pool: STOCHASTIC kernel_size: 3 stride: 2").bottom_of([2, 5, 17, 16], Fill::Uniform(0.1, 2.0)),
        pool("pool: STOCHASTIC kernel_size: 3 stride: 2").test_phase().bottom_of([2, 5, 9, 9], Fill::Uniform(0.1, 2.0)),
        layer("LRN", "lrn_param { local_size: 5 alpha: 0.5 }").bottom([2, 33, 5, 7]),
        layer("LRN", "lrn_param { local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL }").bottom([2, 3, 33, 9]),
    ]);
}

/// A BatchNorm and a Scale in one, with the sum if there are two bottoms and with the ReLU if the name says so.
fn fused(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    let as_type = |kind: &str| of_kind(param, kind);
    let joins = (param.bottom.len() == 2).then_some("Eltwise");
    let relu = (param.name() == "rectified").then_some("ReLU");
    let run: Vec<_> = ["BatchNorm", "Scale"].into_iter().chain(joins).chain(relu).map(as_type).collect();
    let made = FusedBatchNorm::of(&run.iter().collect::<Vec<_>>(), cx)?
        .ok_or_else(|| Error::internal("the layers do not fuse"))?;
    Ok(made.0)
}

#[test]
fn fused_layers() {
    let mut registry = Registry::default();
    registry.add("Fused", fused);
    let mut cases = Vec::new();
    for shape in channel_shapes().into_iter().filter(|s| s[0] * s[2] > 1) {
        for (name, fields) in [
            ("rectified", "scale_param { bias_term: true }"),
            ("plain", ""),
            ("rectified", "batch_norm_param { use_global_stats: true } scale_param { bias_term: true }"),
        ] {
            let text = format!("layer {{ name: '{name}' type: 'Fused' bottom: 'x' top: 'y' {fields} }}");
            let case = |text: &str| {
                let case = Case::new(text).without_gradients().param(3, Fill::Uniform(0.5, 2.0));
                let statistics = case.param(0, Fill::Normal(0.0, 1.0)).param(1, Fill::Uniform(0.5, 2.0));
                let weighted = statistics.param(2, Fill::Given(vec![1.7])).param(4, Fill::Uniform(-0.5, 0.5));
                weighted.bottom_of(shape.clone(), Fill::Normal(1.0, 2.0))
            };
            cases.push(case(&text));
            cases.push(case(&text.replace("bottom: 'x'", "bottom: 'x' bottom: 'r'")).bottom(shape.clone()));
        }
    }
    check(&registry, &cases);
}

#[test]
fn a_label_outside_the_classes_is_reported_as_on_the_host() {
    for (name, fields) in [
        ("SoftmaxWithLoss", ""),
        ("Accuracy", ""),
        ("HingeLoss", ""),
        ("InfogainLoss", "bottom: 'h'"),
        ("MultinomialLogisticLoss", ""),
        ("MarginContrastiveLoss", ""),
        ("CenterLoss", "center_loss_param { num_output: 3 }"),
        ("LabelSpecificAdd", "phase: TRAIN"),
        ("MarginSoftmaxLoss", "margin_softmax_loss_param { num_output: 3 }"),
    ] {
        let text = &format!("layer {{ name: 'l' type: '{name}' bottom: 'x' bottom: 'z' top: 'y' {fields} }}");
        let bottoms = if fields.contains("bottom") { 3 } else { 2 };
        let shapes: &[Shape] = &[[600, 3].into(), [600].into(), [3, 3].into()][..bottoms];
        for (labels, item, label) in [(vec![(599, 3.0)], 599, "3"), (vec![(300, -1.0), (17, 7.0)], 17, "7")] {
            let mut given = vec![1.0; 600];
            labels.iter().for_each(|&(i, v)| given[i] = v);
            for order in [Order::Forward, Order::Reversed] {
                let harness = DeviceHarness::new(&crate::tests::registry(), text, Phase::Test, shapes, order).unwrap();
                let Some(harness) = harness else { return };
                let inputs = harness.harness.forward_inputs(&[&[0.0; 1800][..], &given, &[1.0; 9]][..bottoms]).unwrap();
                let host =
                    Harness::new(&crate::tests::registry(), text, Phase::Test, lgm_core::DType::F32, shapes).unwrap();
                let device = harness.run(&inputs).unwrap_err().to_string();
                assert!(device.contains(&format!("label {label} of item {item} ")), "{name}: {device}");
                let lowest = labels.iter().map(|l| l.0).min() == Some(item);
                assert!(lowest && device == host.run(&inputs).unwrap_err().to_string(), "{name}: {device}");
            }
        }
    }
}
