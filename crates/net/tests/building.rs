//! Which layers a net has, how blobs become values, and what counts towards the loss.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use lgm_core::Phase;
use lgm_net::{Keep, Options};
use lgm_testkit::says;

fn with_rules(rules: &[(&str, &str)]) -> String {
    let layer = |(name, rule): &(&str, &str)| {
        format!("layer {{ name: '{name}' type: 'Input' top: '{name}' {rule} input_param {{ shape {{ dim: 1 }} }} }}\n")
    };
    rules.iter().map(layer).collect()
}

#[test]
fn rules_choose_layers_by_phase_level_and_stage() {
    let text = with_rules(&[
        ("always", ""),
        ("train", "include { phase: TRAIN }"),
        ("not_test", "exclude { phase: TEST }"),
        ("test", "include { phase: TEST }"),
        ("either", "include { phase: TEST stage: 'a' } include { min_level: 2 }"),
        ("low", "include { max_level: 1 }"),
        ("middle", "include { min_level: 1 max_level: 3 }"),
        ("a", "include { stage: 'a' }"),
        ("a_without_b", "include { stage: 'a' not_stage: 'b' }"),
        ("neither", "exclude { stage: 'a' } exclude { stage: 'b' }"),
    ]);
    let common = ["always", "train", "not_test"];
    let with = |more: &[&str]| common.iter().chain(more).map(|s| s.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&text, Phase::Train, 0, &[]), with(&["low", "neither"]));
    assert_eq!(names(&text, Phase::Train, 2, &["a"]), with(&["either", "middle", "a", "a_without_b"]));
    assert_eq!(names(&text, Phase::Train, 1, &["b", "a"]), with(&["low", "middle", "a"]));
    assert_eq!(names(&text, Phase::Test, 4, &[]), ["always", "test", "either", "neither"]);
    assert_eq!(names(&text, Phase::Test, 0, &["a"]), ["always", "test", "either", "low", "a", "a_without_b"]);
}

/// A layer's own `phase` rules what it does, not whether it is there.
#[test]
fn a_layers_phase_rules_what_it_does() {
    let dropout = |phase: &str| {
        let text = format!("{}layer {{ name: 'd' type: 'Dropout' bottom: 'x' top: 'y' {phase} }}", input("x", &[64]));
        let mut net = net(&text);
        net.set_blob("x", &[1.0; 64]).unwrap();
        net.forward(&step(0)).unwrap();
        data(&net, "y")
    };
    assert_eq!(dropout("phase: TEST"), [1.0; 64]);
    assert!(dropout("").contains(&0.0) && dropout("phase: TRAIN").contains(&0.0));
}

#[test]
fn inputs_may_be_fields_of_the_net() {
    let tail = "layer { name: 'sum' type: 'Eltwise' bottom: 'a' bottom: 'b' top: 'c' }";
    for head in [
        "input: 'a' input: 'b' input_dim: [1, 2, 1, 1, 1, 2, 1, 1]",
        "input: 'a' input: 'b' input_shape { dim: [1, 2, 1, 1] } input_shape { dim: [1, 2, 1, 1] }",
    ] {
        let mut net = net(&format!("{head} {tail}"));
        net.set_blob("a", &[1.0, 2.0]).unwrap();
        net.set_blob("b", &[10.0, 20.0]).unwrap();
        net.forward(&step(0)).unwrap();
        let (shape, values) = net.blob("c").unwrap();
        assert_eq!((shape.to_vec(), values), (vec![1, 2, 1, 1], vec![11.0, 22.0]), "{head}");
    }
    let mut net = net(&input("data", &[2]));
    says(&net.set_blob("dta", &[0.0]).unwrap_err().to_string(), &["no blob 'dta'", "did you mean 'data'?"]);
    assert!(net.set_blob("data", &[0.0]).is_err(), "a wrong count is refused");
}

#[test]
fn a_blob_read_twice_is_split_and_its_gradients_add_up() {
    let text = format!(
        "force_backward: true {} \
         layer {{ name: 'twice' type: 'Power' bottom: 'x' top: 'a' power_param {{ scale: 2 }} loss_weight: 1 }} \
         layer {{ name: 'square' type: 'Power' bottom: 'x' top: 'b' power_param {{ power: 2 }} loss_weight: 1 }} \
         layer {{ name: 'out' type: 'Power' bottom: 'x' top: 'c' }}",
        input("x", &[3])
    );
    let mut net = net(&text);
    let names: Vec<_> = net.layers().map(|(name, kind)| format!("{name} {kind}")).collect();
    assert_eq!(names, ["x_in Input", "x_x_in_0_split Split", "twice Power", "square Power", "out Power"]);
    assert_eq!(net.outputs(), ["a", "b", "c"]);
    net.set_blob("x", &[1.0, -2.0, 5.0]).unwrap();
    let loss = pass(&mut net, 0);
    assert_eq!(loss, (2.0 + 1.0) + (-4.0 + 4.0) + (10.0 + 25.0));
    assert_eq!(diff(&net, "x"), [4.0, -2.0, 12.0], "2 + 2x");
}

/// Layers of one name have the same weights and random draws, so a net in place and one not must agree to the bit.
#[test]
fn in_place_chains_compute_what_separate_blobs_do() {
    let chain = |in_place: bool| {
        let mut text = gaussian("x", &[4, 6]) + &gaussian("t", &[4, 3]) + &product("ip1", "x", "h", 8, "");
        let mut last = "h".to_string();
        for (name, kind) in [("relu", "ReLU"), ("drop", "Dropout"), ("power", "Power"), ("tanh", "TanH")] {
            let top = if in_place { last.clone() } else { name.to_string() };
            text += &format!("layer {{ name: '{name}' type: '{kind}' bottom: '{last}' top: '{top}' ");
            text += if kind == "Power" { "power_param { scale: 0.7 shift: 0.1 } }\n" } else { "}\n" };
            last = top;
        }
        text += &product("ip2", &last, "y", 3, "");
        text + "layer { name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 't' top: 'loss' }"
    };
    for keep in [Keep::All, Keep::Outputs] {
        let results = [true, false].map(|in_place| {
            let mut net = try_net(&chain(in_place), &Options { keep: keep.clone(), ..options() }).unwrap();
            let passes = (0..3).map(|batch| (pass(&mut net, batch).to_bits(), gradients(&mut net)));
            passes.collect::<Vec<_>>()
        });
        assert!(results[0].iter().all(|(_, g)| g.iter().any(|g| *g != 0.0)));
        assert_eq!(results[0], results[1], "{keep:?}");
    }
}

/// Layers that may overwrite their bottom must not where somebody else reads it still.
#[test]
fn layers_that_could_run_in_place_leave_their_siblings_alone() {
    let power = |name: &str, bottom: &str, top: &str, scale: f32| {
        format!(
            "layer {{ name: '{name}' type: 'Power' bottom: '{bottom}' top: '{top}' power_param {{ scale: {scale} }} }}\n"
        )
    };
    let text = "force_backward: true ".to_string()
        + &input("x", &[2])
        + &power("first", "x", "x", 3.0)
        + &power("left", "x", "l", 5.0)
        + &power("left2", "l", "l", 7.0)
        + "layer { name: 'flat' type: 'Flatten' bottom: 'x' top: 'f' flatten_param { axis: 0 } }\n"
        + &power("right", "f", "f", 11.0)
        + &power("last", "x", "k", 13.0)
        + "layer { name: 'sum' type: 'Eltwise' bottom: 'l' bottom: 'f' bottom: 'k' top: 's' loss_weight: 1 }";
    for keep in [Keep::All, Keep::Outputs] {
        let mut net = try_net(&text, &Options { keep: keep.clone(), ..options() }).unwrap();
        net.set_blob("x", &[1.0, 2.0]).unwrap();
        net.forward(&step(0)).unwrap();
        assert_eq!(data(&net, "s"), [177.0, 354.0], "3 · (5 · 7 + 11 + 13), {keep:?}");
        if keep == Keep::All {
            net.backward(&step(0)).unwrap();
            for (blob, want) in [("l", [105.0, 210.0]), ("f", [33.0, 66.0]), ("k", [39.0, 78.0]), ("x", [3.0, 6.0])] {
                assert_eq!(data(&net, blob), want, "{blob}");
            }
            assert_eq!(diff(&net, "x"), [59.0, 59.0], "of the last version: 5 · 7 + 11 + 13");
        }
    }
}

#[test]
fn losses_weigh_one_unless_told_and_other_tops_nothing() {
    let tail = |more: &str| {
        "force_backward: true ".to_string()
            + &input("x", &[1, 2])
            + &input("t", &[1, 2])
            + &format!("layer {{ name: 'l' type: 'EuclideanLoss' bottom: 'x' bottom: 't' top: 'l' {more} }}\n")
    };
    let run = |text: &str| {
        let mut net = net(text);
        net.set_blob("x", &[3.0, 1.0]).unwrap();
        net.set_blob("t", &[1.0, 1.0]).unwrap();
        let loss = pass(&mut net, 0);
        (loss, net.blob_diff("x").unwrap(), net.loss_weight("l"))
    };
    // The loss is ½(2² + 0²) = 2, its gradient (2, 0).
    assert_eq!(run(&tail("")), (2.0, Some(vec![2.0, 0.0]), 1.0));
    assert_eq!(run(&tail("loss_weight: 0.5")), (1.0, Some(vec![1.0, 0.0]), 0.5));
    assert_eq!(run(&tail("loss_weight: -2")), (-4.0, Some(vec![-4.0, 0.0]), -2.0));
    assert_eq!(run(&tail("loss_weight: 0")).0, 0.0);
    let power = "layer { name: 'p' type: 'Power' bottom: 'l' top: 'p' power_param { scale: 10 } ";
    // A layer that reads it says its gradient: none, where that layer runs backward by force alone.
    assert_eq!(run(&(tail("") + power + "}")), (2.0, Some(vec![0.0, 0.0]), 1.0));
    // Both count, 2 + 3 · 20, but in the gradient, (1 + 30) · (2, 0), a weight of its own only where it is given, as in Caffe.
    for (given, gradient) in [("", 60.0), ("loss_weight: 1", 62.0)] {
        let (loss, diff, _) = run(&(tail(given) + power + "loss_weight: 3 }"));
        assert_eq!((loss, diff), (62.0, Some(vec![gradient, 0.0])), "{given}");
    }
    // Only the second counts.
    let (loss, diff, _) = run(&(tail("loss_weight: 0") + power + "loss_weight: 3 }"));
    assert_eq!((loss, diff), (60.0, Some(vec![60.0, 0.0])));
}

#[test]
fn every_element_of_a_weighted_top_counts() {
    let text = "force_backward: true ".to_string()
        + &input("x", &[4])
        + "layer { name: 's' type: 'Slice' bottom: 'x' top: 'a' top: 'b' slice_param { axis: 0 slice_point: 1 } \
           loss_weight: 2 loss_weight: 0 }\n\
           layer { name: 'p' type: 'Power' bottom: 'b' top: 'p' power_param { power: 2 } loss_weight: 0.5 }";
    let mut net = net(&text);
    net.set_blob("x", &[7.0, 1.0, 2.0, 3.0]).unwrap();
    assert_eq!(pass(&mut net, 0), 14.0 + 0.5 * 14.0);
    assert_eq!(diff(&net, "x"), [2.0, 1.0, 2.0, 3.0]);
}

/// Faster R-CNN's first half, as py-faster-rcnn writes it: Python layers are built as those in their place, and gradients end at them
/// though what they read is learned.
#[test]
fn faster_rcnns_python_layers_are_built_and_gradients_end_there() {
    let python = |name: &str, bottoms: &str, tops: &str, module: &str, class: &str, settings: &str| {
        let names = |field: &str, names: &str| names.split(' ').map(|n| format!("{field}: '{n}' ")).collect::<String>();
        format!(
            "layer {{ name: '{name}' type: 'Python' {} {} python_param {{ module: 'rpn.{module}' layer: '{class}' \
             param_str: \"{settings}\" }} }}\n",
            names("bottom", bottoms),
            names("top", tops)
        )
    };
    let text = [
        input("data", &[1, 2, 6, 6]),
        input("gt_boxes", &[1, 5]),
        input("im_info", &[1, 3]),
        "layer { name: 'score' type: 'Convolution' bottom: 'data' top: 'score' \
         convolution_param { num_output: 2 kernel_size: 1 weight_filler { type: 'gaussian' std: 0.1 } } }\n\
         layer { name: 'pred' type: 'Convolution' bottom: 'data' top: 'pred' \
         convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: 'gaussian' std: 0.1 } } }\n"
            .into(),
        python(
            "rpn-data",
            "score gt_boxes im_info data",
            "labels targets inside outside",
            "anchor_target_layer",
            "AnchorTargetLayer",
            "{'feat_stride': 8, 'scales': [1], 'ratios': [1]}",
        ),
        "layer { name: 'loss_bbox' type: 'SmoothL1Loss' bottom: 'pred' bottom: 'targets' bottom: 'inside' bottom: 'outside' \
         top: 'loss_bbox' }\n\
         layer { name: 'reshape' type: 'Reshape' bottom: 'score' top: 'two' reshape_param { shape { dim: [0, 2, -1, 0] } } }\n\
         layer { name: 'prob' type: 'Softmax' bottom: 'two' top: 'prob' }\n\
         layer { name: 'loss_cls' type: 'SoftmaxWithLoss' bottom: 'two' bottom: 'labels' top: 'loss_cls' \
         loss_param { ignore_label: -1 normalize: true } }\n"
            .into(),
        python(
            "proposal",
            "prob pred im_info",
            "rpn_rois",
            "proposal_layer",
            "ProposalLayer",
            "{'feat_stride': 8, 'scales': [1], 'ratios': [1]}",
        ),
        python(
            "roi-data",
            "rpn_rois gt_boxes",
            "rois roi_labels roi_targets roi_inside roi_outside",
            "proposal_target_layer",
            "ProposalTargetLayer",
            "'num_classes': 3",
        ),
        "layer { name: 'pool' type: 'ROIPooling' bottom: 'data' bottom: 'rois' top: 'pool' \
         roi_pooling_param { pooled_w: 1 pooled_h: 1 spatial_scale: 0.125 } }\n\
         layer { name: 'cls' type: 'InnerProduct' bottom: 'pool' top: 'cls' inner_product_param { num_output: 3 } }\n\
         layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'cls' bottom: 'roi_labels' top: 'loss' }\n"
            .into(),
    ]
    .concat();
    let mut net = net(&text);
    let kinds: Vec<_> = net.layers().filter(|(name, _)| name.contains('-')).map(|(_, kind)| kind.to_string()).collect();
    assert_eq!(kinds, ["AnchorTarget", "ProposalTarget"]);
    net.set_blob("data", &(0..72).map(|i| f64::from(i % 7) / 7.0).collect::<Vec<_>>()).unwrap();
    net.set_blob("gt_boxes", &[8.0, 8.0, 23.0, 23.0, 2.0]).unwrap();
    net.set_blob("im_info", &[48.0, 48.0, 1.0]).unwrap();
    let loss = pass(&mut net, 0);
    assert!(loss.is_finite() && loss > 1.0, "{loss}");
    assert_eq!(data(&net, "labels").iter().filter(|l| **l == 1.0).count(), 1);
    assert!(data(&net, "roi_labels").contains(&2.0));
}

/// NVIDIA's and PSPNet's forks set the rate of statistics to 0 whatever the prototxt gives; Caffe's BatchNorm takes no other.
#[test]
fn batch_norms_of_forks_take_a_rate_for_their_statistics() {
    let text = |kind: &str, fields: &str, params: usize| {
        let params = "param { lr_mult: 2 decay_mult: 1 } ".repeat(params);
        gaussian("x", &[2, 3, 2, 2])
            + &format!("layer {{ name: 'n' type: '{kind}' bottom: 'x' top: 'y' {params} {fields} }}")
    };
    let rates = |text: &str| -> Vec<_> { net(text).learnables().map(|info| (info.lr_mult, info.decay_mult)).collect() };
    let (still, learned) = ((0.0, 0.0), (2.0, 1.0));
    assert_eq!(
        rates(&text("BatchNorm", "batch_norm_param { scale_bias: true }", 5)),
        [still, still, still, learned, learned]
    );
    assert_eq!(rates(&text("BN", "bn_param { momentum: 0.9 }", 4)), [learned, learned, still, still]);
    assert_eq!(rates(&text("BN", "bn_param { frozen: true }", 4)), [still; 4]);
    says(&error(&text("BatchNorm", "", 1)), &["layer 'n' (BatchNorm)", "param entry 0 has lr_mult 2", "lr_mult: 0"]);
}
