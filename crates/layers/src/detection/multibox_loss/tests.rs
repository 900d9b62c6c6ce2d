use crate::tests::registry;
use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

fn layer(param: &str, more: &str) -> String {
    format!(
        "layer {{ name: 'm' type: 'MultiBoxLoss' bottom: 'loc' bottom: 'conf' bottom: 'prior' bottom: 'truth' top: 'l' {more}
                  multibox_loss_param {{ {param} }} }}"
    )
}

/// Boxes of a fifth of the image, a tenth apart, the first of which reach out of it, with variances.
fn priors(n: usize) -> Vec<f64> {
    let corners = (0..n).flat_map(|i| {
        let (x, y) = (0.1 * (i % 4) as f64 - 0.05, 0.1 * (i / 4) as f64);
        [x, y, x + 0.2, y + 0.2]
    });
    corners.chain((0..n).flat_map(|_| [0.1, 0.1, 0.2, 0.2])).collect()
}

/// Three boxes of the first image, one of the third, which is difficult; rows of nothing between.
fn truths() -> Vec<f64> {
    [
        [0.0, 1.0, 0.0, 0.02, 0.03, 0.21, 0.2, 0.0],
        [-1.0; 8],
        [2.0, 2.0, 0.0, 0.1, 0.1, 0.35, 0.3, 1.0],
        [0.0, 2.0, 0.0, 0.2, 0.02, 0.4, 0.24, 0.0],
        [0.0, 1.0, 1.0, 0.15, 0.12, 0.31, 0.33, 0.0],
        [-1.0; 8],
    ]
    .concat()
}

const CLASSES: usize = 3;

fn case(param: &str, more: &str, locations: usize) -> Case {
    Case::new(layer(&format!("num_classes: {CLASSES} {param}"), more))
        .bottom_of([3, 8 * 4 * locations], Fill::Normal(0.0, 1.0))
        .bottom_of([3, 8 * CLASSES], Fill::Normal(0.0, 2.0))
        .bottom_of([1, 2, 32], Fill::Given(priors(8)))
        .bottom_of([1, 1, 6, 8], Fill::Given(truths()))
        .precision(1e-5, 1e-6)
}

#[test]
fn cases() {
    let decoded = "use_prior_for_matching: false code_type: CENTER_SIZE overlap_threshold: 0.3";
    let apart = "nms_param { nms_threshold: 0.2 top_k: 6 }";
    check(
        &registry(),
        &[
            case("code_type: CENTER_SIZE", "", 1),
            case("overlap_threshold: 0.3 use_difficult_gt: false neg_pos_ratio: 1", "loss_weight: 0.5", 1),
            case("match_type: BIPARTITE mining_type: NONE code_type: CORNER_SIZE loc_loss_type: L2", "", 1),
            case("ignore_cross_boundary_bbox: true bp_inside: true loc_weight: 2.5 neg_overlap: 0.2", "", 1),
            case("mining_type: HARD_EXAMPLE sample_size: 3 overlap_threshold: 0.2", "", 1),
            case(&format!("mining_type: HARD_EXAMPLE sample_size: 3 use_prior_for_nms: true {apart}"), "", 1),
            case(&format!("overlap_threshold: 0.2 neg_pos_ratio: 5 code_type: CENTER_SIZE {apart}"), "", 1),
            case("conf_loss_type: LOGISTIC", "loss_param { normalization: FULL }", 1),
            case("conf_loss_type: LOGISTIC mining_type: NONE", "loss_param { normalization: BATCH_SIZE }", 1),
            case(
                "conf_loss_type: LOGISTIC background_label_id: 9 mining_type: NONE",
                "loss_param { normalize: false }",
                1,
            ),
            case("share_location: false mining_type: NONE", "loss_param { normalization: NONE }", 3),
            case(&format!("share_location: false mining_type: NONE conf_loss_type: LOGISTIC {decoded}"), "", 3),
            case(&format!("share_location: false mining_type: NONE {decoded} bp_inside: true"), "", 3),
            case(decoded, "", 1),
            case("", "propagate_down: false propagate_down: true propagate_down: false propagate_down: false", 1),
            case("", "propagate_down: true propagate_down: false", 1),
        ],
    );
    let variances = case("encode_variance_in_target: true code_type: CENTER_SIZE overlap_threshold: 0.3", "", 1);
    check(&registry(), &[variances.without_gradients()]);
}

/// The loss, and its gradients by predictions and scores.
fn run(param: &str, bottoms: [&[f64]; 4], locations: usize) -> (f64, Vec<f64>, Vec<f64>) {
    let boxes = bottoms[2].len() / 8;
    let images = bottoms[0].len() / 4 / boxes / locations;
    let shapes: [Shape; 4] = [
        [images, 4 * boxes * locations].into(),
        [images, bottoms[1].len() / images].into(),
        [1, 2, 4 * boxes].into(),
        [1, 1, bottoms[3].len() / 8, 8].into(),
    ];
    let harness = Harness::new(&registry(), &layer(param, ""), Phase::Train, DType::F64, &shapes).unwrap();
    let mut inputs = harness.forward_inputs(&bottoms).unwrap();
    inputs.top_diffs = vec![vec![1.0]];
    let out = harness.run(&inputs).unwrap();
    (out.tops[0][0], out.bottom_diffs[0].clone().unwrap(), out.bottom_diffs[1].clone().unwrap())
}

/// Two boxes side by side, each half the image, with variances of 1 over 2.
fn halves() -> Vec<f64> {
    [[0.0, 0.0, 0.5, 1.0, 0.5, 0.0, 1.0, 1.0], [0.5; 8]].concat()
}

#[test]
fn the_loss_is_that_of_the_paper() {
    let object = [0.0, 1.0, 0.0, 0.1, 0.0, 0.5, 1.0, 0.0];
    let scores = [0.0, f64::ln(3.0), 0.0, 0.0];
    let param = "num_classes: 2 code_type: CORNER";
    let (loss, dp, ds) = run(param, [&[0.0; 8], &scores, &halves(), &object], 1);
    // The first box is to move its left side by 0.1, that is 0.2 variances, and is an object by 3/4; the other has no overlap
    // and so is background, by 1/2.
    let want = 0.5 * 0.2 * 0.2 - 0.75f64.ln() - 0.5f64.ln();
    assert_close("loss", &[loss], &[want], 1e-9);
    assert_close("dp", &dp, &[-0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1e-9);
    assert_close("ds", &ds, &[0.25, -0.25, -0.5, 0.5], 1e-9);
    let logistic = format!("{param} conf_loss_type: LOGISTIC");
    let (loss, _, ds) = run(&logistic, [&[0.0; 8], &scores, &halves(), &object], 1);
    let want = 0.5 * 0.2 * 0.2 + 0.5f64.ln().abs() - 0.75f64.ln() + 2.0 * 0.5f64.ln().abs();
    assert_close("loss", &[loss], &[want], 1e-9);
    assert_close("ds", &ds, &[0.5, -0.25, -0.5, 0.5], 1e-9);
}

#[test]
fn a_gradient_by_predictions_in_variances() {
    let object = [0.0, 1.0, 0.0, 0.1, 0.0, 0.5, 1.0, 0.0];
    let scores = [0.0; 4];
    let param = "num_classes: 2 code_type: CORNER encode_variance_in_target: true";
    let (loss, dp, _) = run(param, [&[0.0; 8], &scores, &halves(), &object], 1);
    assert_close("loss", &[loss], &[0.5 * 0.2 * 0.2 - 2.0 * 0.5f64.ln()], 1e-9);
    assert_close("dp", &dp, &[-0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1e-9);
}

#[test]
fn an_image_without_objects_is_learned_from_without_mining_alone() {
    let none = [-1.0; 8];
    let (loss, _, ds) = run("num_classes: 2", [&[0.0; 8], &[0.0; 4], &halves(), &none], 1);
    assert_eq!((loss, ds), (0.0, vec![0.0; 4]));
    let (loss, _, ds) = run("num_classes: 2 mining_type: NONE", [&[0.0; 8], &[0.0; 4], &halves(), &none], 1);
    assert_close("loss", &[loss], &[2.0 * 2f64.ln()], 1e-9);
    assert_close("ds", &ds, &[-0.5, 0.5, -0.5, 0.5], 1e-9);
}

#[test]
fn objects_of_any_class_are_one_where_classes_do_not_count() {
    let object = [0.0, 7.0, 0.0, 0.0, 0.0, 0.5, 1.0, 0.0];
    let param = "num_classes: 2 map_object_to_agnostic: true";
    let (loss, ..) = run(param, [&[0.0; 8], &[0.0, f64::ln(3.0), 0.0, 0.0], &halves(), &object], 1);
    assert_close("loss", &[loss], &[-0.75f64.ln() - 0.5f64.ln()], 1e-9);
}

#[test]
fn a_probability_is_never_zero() {
    let object = [0.0, 1.0, 0.0, 0.0, 0.0, 0.5, 1.0, 0.0];
    let (loss, ..) = run("num_classes: 2 neg_pos_ratio: 0", [&[0.0; 8], &[1e4, 0.0, 0.0, 0.0], &halves(), &object], 1);
    assert_close("loss", &[loss], &[-f64::from(f32::MIN_POSITIVE).ln()], 1e-9);
}

#[test]
fn mistakes_are_named() {
    let shapes = [Shape::from([1, 8]), [1, 4].into(), [1, 2, 8].into(), [1, 1, 1, 8].into()];
    for (param, needles) in [
        ("", &["num_classes"][..]),
        ("num_classes: 2 background_label_id: 2", &["background_label_id", "2 classes", "found 2"]),
        ("num_classes: 2 overlap_threshold: -1", &["overlap_threshold", "-1"]),
        ("num_classes: 2 loc_weight: inf", &["loc_weight", "inf"]),
        ("num_classes: 2 mining_type: HARD_EXAMPLE sample_size: 0", &["sample_size", "0"]),
        ("num_classes: 2 do_neg_mining: false", &["do_neg_mining: false", "MAX_NEGATIVE"]),
        ("num_classes: 2 share_location: false", &["share_location", "mining_type: NONE"]),
        ("num_classes: 4 map_object_to_agnostic: true", &["map_object_to_agnostic", "found 4 and 0"]),
    ] {
        config_error(&registry(), &layer(param, ""), &shapes, needles);
    }
    for (i, shape, needles) in [
        (0, [1, 12].into(), &["bottom 0", "2 priors", "(1, 8)", "(1, 12)"][..]),
        (1, [1, 6].into(), &["bottom 1", "(1, 4)", "(1, 6)"]),
        (2, [1, 8].into(), &["bottom 2", "(1, 8)"]),
        (3, [1, 1, 1, 5].into(), &["bottom 3", "rows of 8", "(1, 1, 1, 5)"]),
    ] {
        let mut shapes = shapes.clone();
        shapes[i] = shape;
        config_error(&registry(), &layer("num_classes: 2", ""), &shapes, needles);
    }
}

#[test]
fn wrong_ground_truth_is_named() {
    let harness = |shapes: &[Shape; 4]| {
        Harness::new(&registry(), &layer("num_classes: 2", ""), Phase::Train, DType::F32, shapes).unwrap()
    };
    let shapes = [Shape::from([1, 8]), [1, 4].into(), [1, 2, 8].into(), [1, 1, 2, 8].into()];
    let harness = harness(&shapes);
    let fails = |priors: &[f64], second: [f64; 8], needles: &[&str]| {
        let truths = [[-1.0; 8], second].concat();
        let inputs = harness.forward_inputs(&[&[0.0; 8], &[0.0; 4], priors, &truths]).unwrap();
        let text = harness.run(&inputs).unwrap_err().to_string();
        lgm_testkit::says(&text, needles);
    };
    let object = |image: f64, class: f64| [image, class, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0];
    fails(&halves(), object(0.0, 2.0), &["row 1", "class 2", "2 classes"]);
    fails(&halves(), object(0.0, 0.0), &["row 1", "class 0", "0 is the background"]);
    fails(&halves(), object(0.0, f64::NAN), &["row 1", "class NaN"]);
    fails(&halves(), object(1.0, 1.0), &["row 1", "image 1", "the batch has 1"]);
    fails(&halves(), object(-2.0, 1.0), &["row 1", "image -2", "-1 for no box"]);
    let flat = [halves()[..8].to_vec(), vec![0.0; 8]].concat();
    fails(&flat, object(0.0, 1.0), &["variances", "positive", "found 0"]);
}
