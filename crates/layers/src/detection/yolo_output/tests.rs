use crate::tests::registry;
use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Case, Harness, assert_close, check, config_error};

fn third(bottoms: usize, param: &str) -> String {
    let bottoms: String = (0..bottoms).map(|b| format!("bottom: 'b{b}' ")).collect();
    format!(
        "layer {{ name: 'y' type: 'Yolov3DetectionOutput' {bottoms} top: 'd' yolov3_detection_output_param {{ {param} }} }}"
    )
}

fn second(bottoms: usize, param: &str) -> String {
    third(bottoms, param).replace("Yolov3D", "YoloD").replace("yolov3_d", "yolo_d")
}

const THIRD: &str =
    "num_classes: 3 num_box: 2 mask_group_num: 2 mask: 2 mask: 3 mask: 0 mask: 1 anchors_scale: 32 anchors_scale: 16
                     biases: 10 biases: 14 biases: 23 biases: 27 biases: 37 biases: 58 biases: 81 biases: 82";
const SECOND: &str = "num_classes: 3 num_box: 2 biases: 1 biases: 0.5 biases: 2 biases: 3";

#[test]
fn cases() {
    let two = |text: String, channels: usize| Case::new(text).bottom([2, channels, 3, 2]).bottom([2, channels, 6, 4]);
    let of_third = |more: &str, channels: usize| two(third(2, &format!("{THIRD} {more}")), channels);
    check(
        &registry(),
        &[
            of_third("", 16),
            of_third("confidence_threshold: 0.3 nms_threshold: 0.1", 16),
            of_third("gaussian_box: true confidence_threshold: 0.1", 24),
            two(second(2, SECOND), 16),
            Case::new(second(1, &format!("{SECOND} confidence_threshold: 0.2"))).bottom([1, 16, 4, 4]),
        ],
    );
}

/// The first row found in the first of two images, each of one row of two cells, whose channels are these, cell by cell.
fn first(text: &str, channels: &[[f64; 2]]) -> Vec<f64> {
    let shape: Shape = [2, channels.len(), 1, 2].into();
    let harness = Harness::new(&registry(), text, Phase::Test, DType::F64, &[shape]).unwrap();
    let mut second = channels.to_vec();
    let objectness = channels.len() - 3;
    second[objectness] = [-50.0; 2];
    let out = harness.run(&harness.forward_inputs(&[&[channels, &second].concat().concat()]).unwrap()).unwrap();
    assert!(out.tops[0][7] == 1.0 && out.tops[0][8..].iter().all(|v| *v == -1.0), "{:?}", out.tops[0]);
    out.tops[0][..7].to_vec()
}

#[test]
fn boxes_are_where_their_cells_say() {
    // The centre of the first cell; half the image wide and, as the image is one cell high, twice the cell high, doubled.
    let channels =
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [f64::ln(2.0), 0.0], [0.0, -50.0], [0.0, 0.0], [f64::ln(3.0), 0.0]];
    let corners = [0.25 - 0.25, 0.5 - 2.0, 0.25 + 0.25, 0.5 + 2.0];
    let param = "num_classes: 2 num_box: 1 mask_group_num: 1 mask: 0 anchors_scale: 10 biases: 10 biases: 20 confidence_threshold: 0.1";
    let row = |confidence: f64| [&[0.0, 2.0, confidence][..], &corners].concat();
    assert_close("third", &first(&third(1, param), &channels), &row(0.5 * 0.75), 1e-9);
    let param = "num_classes: 2 num_box: 1 biases: 1 biases: 2 confidence_threshold: 0.1";
    assert_close("second", &first(&second(1, param), &channels), &row(0.5 * 0.75), 1e-9);
    let param = param.replace("confidence", "mask_group_num: 1 mask: 0 anchors_scale: 1 gaussian_box: true confidence");
    let sure = [f64::ln(3.0), 0.0];
    let [x, y, w, h, rest @ ..] = channels;
    let channels = [&[x, sure, y, sure, w, [0.0; 2], h, [0.0; 2]], &rest[..]].concat();
    assert_close("gaussian", &first(&third(1, &param), &channels), &row(0.5 * 0.75 * 0.375), 1e-9);
}

#[test]
fn mistakes_are_named() {
    let shapes: [Shape; 2] = [[1, 16, 2, 2].into(), [1, 16, 4, 4].into()];
    for (param, needles) in [
        (THIRD.replace("num_classes: 3", "num_classes: 0"), &["num_classes"][..]),
        (format!("{THIRD} nms_threshold: 2"), &["nms_threshold", "found 2"]),
        (THIRD.replace("mask_group_num: 2", "mask_group_num: 0"), &["mask_group_num"]),
        (THIRD.replace("mask: 3", ""), &["mask must be given 4 times", "found 3"]),
        (THIRD.replace("anchors_scale: 16", ""), &["anchors_scale must be given 2 times", "found 1"]),
        (THIRD.replace("anchors_scale: 16", "anchors_scale: 0"), &["anchors_scale", "found 0"]),
        (THIRD.replace("mask: 3", "mask: 4"), &["mask 4", "4 pairs"]),
        (THIRD.replace("biases: 82", ""), &["pairs", "found 7"]),
        (THIRD.replace("biases: 82", "biases: -1"), &["positive", "found -1"]),
        (THIRD.replace("num_classes: 3", "num_classes: 4"), &["bottom 0", "18", "(1, 16, 2, 2)"]),
    ] {
        config_error(&registry(), &third(2, &param), &shapes, needles);
    }
    for (param, needles) in [
        (format!("{SECOND} coords: 5"), &["coords", "found 5"][..]),
        (SECOND.replace("biases: 2 biases: 3", ""), &["2 boxes", "found 1 pairs"]),
    ] {
        config_error(&registry(), &second(2, &param), &shapes, needles);
    }
}
