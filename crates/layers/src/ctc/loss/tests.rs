use crate::tests::registry;
use lgm_core::{DType, Phase, Shape};
use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error, says};

fn padded(param: &str) -> String {
    format!("layer {{ name: 'c' type: 'CtcLoss' bottom: 'x' bottom: 'y' top: 'l' ctc_loss_param {{ {param} }} }}")
}

fn by_step(param: &str) -> String {
    let bottoms = "bottom: 'x' bottom: 'i' bottom: 'y'";
    format!("layer {{ name: 'c' type: 'CTCLoss' {bottoms} top: 'l' ctc_loss_param {{ {param} }} }}")
}

fn given(values: &[f64]) -> Fill {
    Fill::Given(values.to_vec())
}

/// Of three sequences of up to six steps: two labels in six steps, one in three, and none.
const INDICATORS: [f64; 18] = [0., 0., 0., 1., 1., 0., 1., 1., 0., 1., 0., 0., 1., 0., 0., 1., 0., 0.];
const LABELS: [f64; 12] = [1., 3., -1., 1., 2., -1., 0., -1., -1., -1., -1., -1.];

#[test]
fn cases() {
    let steps = |param: &str| {
        Case::new(by_step(param))
            .bottom([6, 3, 5])
            .bottom_of([6, 3], given(&INDICATORS))
            .bottom_of([4, 3], given(&LABELS))
    };
    let labels = [1., 1., 0., 2., 3., 2., 1., 0., 0., 0., 3., 0.];
    check(
        &registry(),
        &[
            // Labels with an equal neighbour, of as many as there are steps for, few, and steps beyond the last.
            Case::new(padded("alphabet_size: 4 time_step: 5")).bottom([6, 3, 4]).bottom_of([3, 4], given(&labels)),
            Case::new(padded("alphabet_size: 6 time_step: 30 blank_label: 5"))
                .bottom_of([30, 2, 6], Fill::Normal(0.0, 3.0))
                .bottom_of([2, 1, 12], Fill::Labels(6)),
            // More places than a block has threads.
            Case::new(padded("alphabet_size: 40 time_step: 170"))
                .without_gradients()
                .bottom([170, 1, 40])
                .bottom_of([1, 150], Fill::Labels(40)),
            Case::new(padded("alphabet_size: 1 time_step: 2")).bottom([2, 1, 1]).bottom_of([1, 1], given(&[0.])),
            Case::new(padded("alphabet_size: 3 time_step: 1")).bottom([1, 2, 3]).bottom_of([2, 1], given(&[0., 2.])),
            steps(""),
            steps("preprocess_collapse_repeated: true"),
            steps("ctc_merge_repeated: false"),
            steps("output_delay: 1 blank_index: 4"),
        ],
    );
}

/// The probabilities of all paths that read as `labels`, added up.
fn probability(p: &[[f64; 3]], labels: &[usize], merged: bool) -> f64 {
    let steps = p.len();
    let paths = 3usize.pow(steps as u32);
    let path = |i: usize| -> Vec<usize> { (0..steps).map(|t| i / 3usize.pow(t as u32) % 3).collect() };
    let reads = |path: &[usize]| -> Vec<usize> {
        let apart = |t: &usize| !merged || *t == 0 || path[*t] != path[t - 1];
        (0..steps).filter(apart).map(|t| path[t]).filter(|&class| class != 2).collect()
    };
    (0..paths)
        .map(path)
        .filter(|path| reads(path) == labels)
        .map(|path| (0..steps).map(|t| p[t][path[t]]).product::<f64>())
        .sum()
}

#[test]
fn the_loss_is_that_of_all_paths() {
    let p: [[f64; 3]; 5] = [[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.25, 0.25, 0.5], [0.1, 0.7, 0.2], [0.4, 0.4, 0.2]];
    let x: Vec<f64> = p.iter().flatten().map(|p| p.ln()).collect();
    let indicators = [0., 1., 1., 1., 1.];
    for (labels, merged) in [
        (&[0usize, 1][..], true),
        (&[0, 0], true),
        (&[0, 0], false),
        (&[1, 0, 1], true),
        (&[1, 1, 1], true),
        (&[0], false),
    ] {
        let shapes: [Shape; 3] = [[5, 1, 3].into(), [5, 1].into(), [4, 1].into()];
        let text = by_step(&format!("ctc_merge_repeated: {merged}"));
        let harness = Harness::new(&registry(), &text, Phase::Train, DType::F64, &shapes).unwrap();
        let mut given: Vec<f64> = labels.iter().map(|&label| label as f64).collect();
        given.resize(4, -1.0);
        let out = harness.run(&harness.forward_inputs(&[&x, &indicators, &given]).unwrap()).unwrap();
        assert_close(&format!("{labels:?}"), &out.tops[0], &[-probability(&p, labels, merged).ln()], 1e-10);
    }
}

#[test]
fn mistakes_are_named() {
    let two: [Shape; 2] = [[5, 2, 4].into(), [2, 3].into()];
    for (param, needles) in [
        ("time_step: 5", &["alphabet_size"][..]),
        ("alphabet_size: 4", &["time_step"]),
        ("alphabet_size: 5 time_step: 5", &["alphabet_size 5", "4 classes"]),
        ("alphabet_size: 4 time_step: 6", &["time_step 6", "5 steps", "(5, 2, 4)"]),
        ("alphabet_size: 4 time_step: 5 blank_label: 4", &["blank_label 4", "0 to 3"]),
        ("alphabet_size: 4 time_step: 5 blank_label: -1", &["blank_label -1", "0 to 3"]),
    ] {
        config_error(&registry(), &padded(param), &two, needles);
    }
    let good = padded("alphabet_size: 4 time_step: 5");
    config_error(&registry(), &good, &[[5, 4].into(), [2, 3].into()], &["3 axes", "(5, 4)"]);
    config_error(&registry(), &good, &[[5, 2, 0].into(), [2, 3].into()], &["empty"]);
    config_error(
        &registry(),
        &good,
        &[[5, 2, 4].into(), [3, 2].into()],
        &["labels, bottom 1", "2 sequences", "(3, 2)"],
    );
    let shapes: [Shape; 3] = [[5, 2, 4].into(), [5, 2].into(), [3, 2].into()];
    config_error(&registry(), &by_step("output_delay: -1"), &shapes, &["output_delay", "found -1"]);
    let wrong = [[5, 2, 4].into(), [5, 3].into(), [3, 2].into()];
    config_error(&registry(), &by_step(""), &wrong, &["indicators, bottom 1", "(5, 2)", "(5, 3)"]);
    let wrong = [[5, 2, 4].into(), [5, 2].into(), [3, 3].into()];
    config_error(&registry(), &by_step(""), &wrong, &["labels, bottom 2", "(3, 3)"]);
    for (label, needles) in [
        ([1., 2., 4., 0., 0., 0.], &["label 4, number 2 of sequence 0", "4 classes, 0 to 3"][..]),
        ([0., 0., 0., 1., -1., 0.], &["label -1, number 1 of sequence 1"]),
    ] {
        let harness = Harness::new(&registry(), &good, Phase::Train, DType::F32, &two).unwrap();
        let inputs = harness.forward_inputs(&[&[0.0; 40], &label]).unwrap();
        says(&harness.run(&inputs).unwrap_err().to_string(), needles);
    }
    let harness =
        Harness::new(&registry(), &good, Phase::Train, DType::F32, &[[5, 1, 4].into(), [1, 4].into()]).unwrap();
    let inputs = harness.forward_inputs(&[&[0.0; 20], &[1., 1., 1., 2.]]).unwrap();
    says(&harness.run(&inputs).unwrap_err().to_string(), &["sequence 0", "take 6 steps", "fewer labels"]);
}
