use crate::tests::registry;
use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Case, Fill, Harness, check, config_error};

fn layer(param: &str) -> String {
    format!(
        "layer {{ name: 'd' type: 'DetectionOutput' bottom: 'loc' bottom: 'conf' bottom: 'prior' top: 'y'
                  detection_output_param {{ {param} }} }}"
    )
}

/// Squares of a tenth of the image, a twentieth apart, with variances of one.
fn priors(n: usize) -> Vec<f64> {
    let corners = (0..n).flat_map(|i| [0.05 * i as f64, 0.0, 0.05 * i as f64 + 0.1, 0.1]);
    corners.chain(vec![1.0; 4 * n]).collect()
}

/// The rows found in images without offsets, of three priors, with the given scores: image, class, score.
fn rows(param: &str, images: usize, scores: &[f64]) -> Vec<[f64; 3]> {
    let classes = scores.len() / images / 3;
    let text = layer(&format!("num_classes: {classes} code_type: CENTER_SIZE {param}"));
    let shapes: [Shape; 3] = [[images, 12].into(), [images, 3 * classes].into(), [1, 2, 12].into()];
    let harness = Harness::new(&registry(), &text, Phase::Test, DType::F64, &shapes).unwrap();
    let inputs = harness.forward_inputs(&[&vec![0.0; 12 * images], scores, &priors(3)]).unwrap();
    let out = harness.run(&inputs).unwrap();
    out.tops[0].chunks(7).map(|row| [row[0], row[1], row[2]]).collect()
}

const NONE: [f64; 3] = [-1.0; 3];
/// The first row that is not used, of one image and of two.
const LAST: [f64; 3] = [0.0, -1.0, -1.0];
const LAST_OF_TWO: [f64; 3] = [1.0, -1.0, -1.0];

#[test]
fn cases() {
    let bottoms = |case: Case, locations: usize| {
        case.bottom_of([2, 8 * 4 * locations], Fill::Normal(0.0, 0.3))
            .bottom_of([2, 8 * 3], Fill::Uniform(0.0, 1.0))
            .bottom_of([1, 2, 32], Fill::Given(priors(8)))
    };
    let four =
        layer("num_classes: 3 code_type: CENTER_SIZE visualize: true").replace("'prior'", "'prior' bottom: 'image'");
    let all = "num_classes: 3 confidence_threshold: 0.1 nms_param { nms_threshold: 0.3 top_k: 6 }";
    check(
        &registry(),
        &[
            bottoms(Case::new(layer("num_classes: 3")), 1),
            bottoms(Case::new(four), 1).bottom([2, 3, 4, 4]),
            bottoms(Case::new(layer(&format!("{all} code_type: CENTER_SIZE keep_top_k: 4"))), 1),
            bottoms(Case::new(layer(&format!("{all} code_type: CORNER_SIZE share_location: false"))), 3),
            bottoms(Case::new(layer(&format!("{all} variance_encoded_in_target: true background_label_id: -1"))), 1),
        ],
    );
}

#[test]
fn the_best_of_each_class_are_kept() {
    // Of three priors, by class: background, a, b. Neighbours overlap by a third, the outer two not at all.
    let scores = [0.9, 0.1, 0.8, 0.0, 0.6, 0.7, 0.2, 0.5, 0.01];
    let some = "confidence_threshold: 0.05";
    assert_eq!(
        rows(&format!("{some} nms_param {{ nms_threshold: 0.3 }}"), 1, &scores)[..3],
        [[0.0, 1.0, 0.6], [0.0, 2.0, 0.8], LAST]
    );
    let found = rows(&format!("{some} nms_param {{ nms_threshold: 0.4 }}"), 1, &scores);
    let all = [[1.0, 0.6], [1.0, 0.5], [1.0, 0.1], [2.0, 0.8], [2.0, 0.7]];
    assert_eq!(found[..5], all.map(|[class, score]| [0.0, class, score]));
    assert_eq!(found[5..], [LAST]);
    let found = rows(&format!("{some} nms_param {{ nms_threshold: 0.4 }} keep_top_k: 3"), 1, &scores);
    assert_eq!(found, [[0.0, 1.0, 0.6], [0.0, 2.0, 0.8], [0.0, 2.0, 0.7]]);
    let found = rows(&format!("{some} nms_param {{ nms_threshold: 0.4 top_k: 1 }}"), 1, &scores);
    assert_eq!(found, [[0.0, 1.0, 0.6], [0.0, 2.0, 0.8]]);
}

#[test]
fn images_follow_one_another() {
    let scores = [0.0, 0.2, 0.0, 0.1, 0.0, 0.1, 0.0, 0.7, 0.0, 0.1, 0.0, 0.1];
    let found = rows("confidence_threshold: 0.15 keep_top_k: 2", 2, &scores);
    assert_eq!(found, [[0.0, 1.0, 0.2], [1.0, 1.0, 0.7], LAST_OF_TWO, NONE]);
    assert_eq!(rows("confidence_threshold: 0.8 keep_top_k: 1", 2, &scores), [LAST_OF_TWO, NONE]);
}

#[test]
fn mistakes_are_named() {
    let shapes: [Shape; 3] = [[2, 12].into(), [2, 6].into(), [1, 2, 12].into()];
    for (param, needles) in [
        ("", &["needs a num_classes"][..]),
        ("num_classes: 2 nms_param { nms_threshold: -1 }", &["nms_threshold", "-1"]),
        ("num_classes: 2 nms_param { eta: 0 }", &["eta must be above 0"]),
        ("num_classes: 2 confidence_threshold: nan", &["confidence_threshold", "NaN"]),
        ("num_classes: 3", &["bottom 1, the scores for 3 priors", "(2, 9)", "(2, 6)"]),
        ("num_classes: 2 share_location: false", &["bottom 0, the predictions", "(2, 24)", "(2, 12)"]),
    ] {
        config_error(&registry(), &layer(param), &shapes, needles);
    }
    let flat: [Shape; 3] = [[2, 12].into(), [2, 6].into(), [1, 24].into()];
    config_error(&registry(), &layer("num_classes: 2"), &flat, &["bottom 2, the priors", "(1, 24)"]);
}
