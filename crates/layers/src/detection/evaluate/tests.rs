use crate::tests::registry;
use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Case, Fill, Harness, check, config_error};

fn layer(param: &str) -> String {
    format!(
        "layer {{ name: 'e' type: 'DetectionEvaluate' bottom: 'd' bottom: 't' top: 'y'
                  detection_evaluate_param {{ num_classes: 3 {param} }} }}"
    )
}

/// Squares at the left of the image: two of class 1 in image 0, the second difficult, and one of class 2 in image 1.
const TRUTHS: [[f64; 8]; 4] = [
    [0.0, 1.0, 0.0, 0.0, 0.0, 0.4, 0.4, 0.0],
    [0.0, 1.0, 1.0, 0.5, 0.5, 0.9, 0.9, 1.0],
    [1.0, 2.0, 0.0, 0.1, 0.1, 0.5, 0.5, 0.0],
    [-1.0; 8],
];
const DETECTIONS: [[f64; 7]; 7] = [
    [1.0, 2.0, 0.3, 0.1, 0.1, 0.5, 0.5],
    [-1.0; 7],
    [0.0, 1.0, 0.5, 0.0, 0.0, 0.4, 0.4],
    [0.0, 1.0, 0.9, 0.0, 0.0, 0.4, 0.45],
    [0.0, 1.0, 0.7, 0.5, 0.5, 0.9, 0.8],
    [0.0, 1.0, 0.8, 0.1, 0.6, 0.3, 0.8],
    [1.0, 1.0, 0.6, 0.1, 0.1, 0.5, 0.5],
];

fn shapes() -> [Shape; 2] {
    [[1, 1, 7, 7].into(), [1, 1, 4, 8].into()]
}

fn rows(param: &str) -> Vec<Vec<f64>> {
    let harness = Harness::new(&registry(), &layer(param), Phase::Test, DType::F64, &shapes()).unwrap();
    let inputs = harness.forward_inputs(&[&DETECTIONS.concat(), &TRUTHS.concat()]).unwrap();
    harness.run(&inputs).unwrap().tops[0].chunks(5).map(<[f64]>::to_vec).collect()
}

#[test]
fn cases() {
    let case = |param: &str| {
        Case::new(layer(param))
            .bottom_of([1, 1, 7, 7], Fill::Given(DETECTIONS.concat()))
            .bottom_of([1, 1, 4, 8], Fill::Given(TRUTHS.concat()))
    };
    check(&registry(), &[case(""), case("overlap_threshold: 0.9 evaluate_difficult_gt: false")]);
}

#[test]
fn the_first_that_finds_a_ground_truth_is_right() {
    let all = [
        vec![-1.0, 1.0, 2.0, -1.0, -1.0],
        vec![-1.0, 2.0, 1.0, -1.0, -1.0],
        vec![0.0, 1.0, 0.9, 1.0, 0.0],
        vec![0.0, 1.0, 0.8, 0.0, 1.0],
        vec![0.0, 1.0, 0.7, 1.0, 0.0],
        vec![0.0, 1.0, 0.5, 0.0, 1.0],
        vec![1.0, 1.0, 0.6, 0.0, 1.0],
        vec![1.0, 2.0, 0.3, 1.0, 0.0],
        vec![-1.0; 5],
    ];
    assert_eq!(rows(""), all);
    let mut easy = all.clone();
    easy[0][2] = 1.0;
    easy[4][3] = 0.0;
    assert_eq!(rows("evaluate_difficult_gt: false"), easy);
    let mut strict = all.clone();
    // The better detection is not near enough, so the other is the first.
    (strict[2], strict[5]) = (vec![0.0, 1.0, 0.9, 0.0, 1.0], vec![0.0, 1.0, 0.5, 1.0, 0.0]);
    strict[4] = vec![0.0, 1.0, 0.7, 0.0, 1.0];
    assert_eq!(rows("overlap_threshold: 0.95"), strict);
}

#[test]
fn sizes_are_those_of_the_images_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sizes.txt");
    std::fs::write(&path, "a 2 2\n\nb 1000 1000\nc 1 1\n").unwrap();
    let sizes = format!("name_size_file: '{}'", path.display());
    let right = |param: &str, carried: f64| {
        let param = format!("{sizes} {param}");
        let harness = Harness::new(&registry(), &layer(&param), Phase::Test, DType::F64, &shapes()).unwrap();
        let mut inputs = harness.forward_inputs(&[&DETECTIONS.concat(), &TRUTHS.concat()]).unwrap();
        inputs.params[0] = vec![carried];
        let out = harness.run(&inputs).unwrap();
        let right: Vec<f64> = out.tops[0].chunks(5).skip(2).map(|row| row[3]).collect();
        (right, out.params[0][0])
    };
    // An image behind the last that has anything counts where a row says that it is there.
    let counted = |row: [f64; 7]| {
        let harness = Harness::new(&registry(), &layer(&sizes), Phase::Test, DType::F64, &shapes()).unwrap();
        let mut detections = DETECTIONS;
        detections[1] = row;
        let mut inputs = harness.forward_inputs(&[&detections.concat(), &TRUTHS.concat()]).unwrap();
        inputs.params[0] = vec![0.0];
        harness.run(&inputs).unwrap().params[0][0]
    };
    assert_eq!((counted([-1.0; 7]), counted([3.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0])), (2.0, 1.0));
    // In an image of two pixels most boxes are nearly the same.
    let strict = "overlap_threshold: 0.8";
    assert_eq!(right(strict, 0.0), (vec![1.0, 0.0, 1.0, 0.0, 0.0, 1.0, -1.0], 2.0));
    assert_eq!(right(strict, 1.0), (vec![1.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0], 0.0));
    let resized = |mode: &str| format!("{strict} resize_param {{ height: 300 width: 300 resize_mode: {mode} }}");
    assert_eq!(right(&resized("WARP"), 1.0), right(strict, 1.0));
    assert_eq!(right(&resized("FIT_LARGE_SIZE_AND_PAD"), 1.0), right(strict, 1.0));
    assert_eq!(right(&resized("FIT_SMALL_SIZE height_scale: 300 width_scale: 300"), 1.0), right(strict, 1.0));
    for (text, needles) in [
        ("a 2 2\nb 2\n", &["sizes.txt", "line 2", "'b 2'"][..]),
        ("a 2 0\n", &["line 1", "'a 2 0'"]),
        ("\n", &["no image"]),
    ] {
        std::fs::write(&path, text).unwrap();
        config_error(&registry(), &layer(&sizes), &shapes(), needles);
    }
    std::fs::remove_file(&path).unwrap();
    config_error(&registry(), &layer(&sizes), &shapes(), &["sizes.txt", "cannot read"]);
}

#[test]
fn mistakes_are_named() {
    let without = layer("").replace("num_classes: 3", "");
    config_error(&registry(), &without, &shapes(), &["num_classes"]);
    config_error(&registry(), &layer("overlap_threshold: 0"), &shapes(), &["overlap_threshold", "found 0"]);
    config_error(&registry(), &layer("resize_param { height: 3 }"), &shapes(), &["resize_param", "3 and 0"]);
    let [d, t] = shapes();
    config_error(&registry(), &layer(""), &[[7, 8].into(), t.clone()], &["bottom 0", "rows of 7", "(7, 8)"]);
    config_error(&registry(), &layer(""), &[d, [4, 7].into()], &["bottom 1", "rows of 8", "(4, 7)"]);
    let harness = Harness::new(&registry(), &layer(""), Phase::Test, DType::F32, &shapes()).unwrap();
    for class in [3.0, 0.0] {
        let mut detections = DETECTIONS.concat();
        detections[1] = class;
        let inputs = harness.forward_inputs(&[&detections, &TRUTHS.concat()]).unwrap();
        let text = harness.run(&inputs).unwrap_err().to_string();
        lgm_testkit::says(&text, &["row 0 of the detections", &format!("class {class}"), "0 is the background"]);
    }
}
