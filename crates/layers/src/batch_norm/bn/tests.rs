use crate::tests::registry;
use lgm_core::{DType, Phase};
use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

fn layer(param: &str) -> String {
    format!("layer {{ name: 'bn' type: 'BN' bottom: 'x' top: 'y' bn_param {{ {param} }} }}")
}

fn learned(param: &str) -> Case {
    Case::new(layer(param)).param(0, Fill::Uniform(-1.5, 1.5)).param(1, Fill::Normal(0.0, 0.5))
}

fn averaged(param: &str) -> Case {
    learned(param).param(2, Fill::Normal(0.0, 1.0)).param(3, Fill::Uniform(0.5, 2.0))
}

#[test]
fn cases() {
    let three = layer("bn_mode: LEARN").replace("top: 'y'", "top: 'y' top: 'mean' top: 'variance'");
    let two = layer("bn_mode: LEARN").replace("top: 'y'", "top: 'y' top: 'mean'");
    check(
        &registry(),
        &[
            averaged("momentum: 0.8 eps: 0.01").bottom([3, 2, 2, 2]),
            averaged("").bottom([5, 3]),
            averaged("eps: 0.1").test_phase().bottom([3, 2, 3]),
            averaged("frozen: true").bottom([2, 3, 2, 2]),
            averaged("frozen: true eps: 0").test_phase().bottom([2, 40, 3, 3]).without_gradients(),
            learned("bn_mode: LEARN").bottom([3, 2, 2, 3]),
            learned("scale_filler { value: 1 }").test_phase().bottom([4, 2, 3]),
            learned("bn_mode: INFERENCE").bottom([2, 3, 2, 2]),
            learned("bn_mode: INFERENCE").test_phase().bottom([2, 3]),
            learned("shift_filler { value: 1 }").bottom([2, 33, 5, 4]).without_gradients(),
            Case::new(three).param(0, Fill::Uniform(0.5, 1.5)).bottom([3, 2, 2]).flat_top(1).flat_top(2),
            Case::new(two).param(0, Fill::Uniform(0.5, 1.5)).bottom([3, 8, 2]).flat_top(1),
        ],
    );
}

fn harness(param: &str, phase: Phase) -> Harness {
    Harness::new(&registry(), &layer(param), phase, DType::F64, &[[2, 1, 2].into()]).unwrap()
}

/// A batch of mean 4 and biased variance 5.
const BATCH: [f64; 4] = [1.0, 3.0, 5.0, 7.0];

#[test]
fn averages_follow_the_batches_and_are_used_in_test() {
    let param = "slope_filler { value: 2 } bias_filler { value: 1 } momentum: 0.75";
    let train = harness(param, Phase::Train);
    let mut inputs = train.forward_inputs(&[&BATCH]).unwrap();
    assert_eq!(inputs.params, [[2.0], [1.0], [0.0], [0.0]]);
    for (mean, variance) in [(1.0, 1.25), (1.75, 2.1875)] {
        inputs.params = train.run(&inputs).unwrap().params;
        assert_close("averages", &inputs.params.concat(), &[2.0, 1.0, mean, variance], 1e-12);
    }
    let out = harness(param, Phase::Test).run(&inputs).unwrap();
    let want = BATCH.map(|x| 2.0 * (x - 1.75) / (2.1875f64 + 1e-5).sqrt() + 1.0);
    assert_close("test", &out.tops[0], &want, 1e-6);
    assert_eq!(out.params, inputs.params);
}

#[test]
fn frozen_statistics_and_factors_stay() {
    let frozen = harness("frozen: true slope_filler { value: 3 }", Phase::Train);
    assert!(frozen.plan.params[..2].iter().all(|p| p.fixed && !p.state));
    assert_eq!(frozen.filled().unwrap().concat(), [3.0, 0.0, 0.0, 1.0]);
    let inputs = frozen.forward_inputs(&[&BATCH]).unwrap();
    let out = frozen.run(&inputs).unwrap();
    assert_close("y", &out.tops[0], &BATCH.map(|x| 3.0 * x / (1.0f64 + 1e-5).sqrt()), 1e-6);
    assert_eq!(out.params, inputs.params);
}

#[test]
fn segnets_takes_the_batch_in_both_phases_or_none() {
    let fillers = "scale_filler { value: 2 } shift_filler { value: 1 }";
    let want = BATCH.map(|x| 2.0 * (x - 4.0) / 5f64.sqrt() + 1.0);
    for phase in [Phase::Train, Phase::Test] {
        let run = |param: &str| {
            let harness = harness(param, phase);
            harness.run(&harness.forward_inputs(&[&BATCH]).unwrap()).unwrap().tops.remove(0)
        };
        assert_close("learn", &run(fillers), &want, 1e-6);
        assert_eq!(run(&format!("{fillers} bn_mode: INFERENCE")), BATCH.map(|x| 2.0 * x + 1.0));
    }
    let three = layer(fillers).replace("top: 'y'", "top: 'y' top: 'm' top: 'v'");
    let three = Harness::new(&registry(), &three, Phase::Train, DType::F64, &[[2, 1, 2].into()]).unwrap();
    let out = three.run(&three.forward_inputs(&[&BATCH]).unwrap()).unwrap();
    assert_close("statistics", &out.tops[1..].concat(), &[4.0, 5.0], 1e-12);
}

#[test]
fn mistakes_are_named() {
    let refused = |param: &str, needles: &[&str]| config_error(&registry(), &layer(param), &[[2, 2].into()], needles);
    refused("momentum: 2", &["momentum must lie between 0 and 1, found 2"]);
    refused("eps: -1", &["eps must be a number of at least 0, found -1"]);
    refused("var_eps: 0.1 decay: 0.9", &["var_eps, decay", "not carried out", "BatchNorm and Scale"]);
    refused("bn_mode: LEARN frozen: true", &["two forks", "bn_mode of SegNet's", "frozen"]);
    config_error(&registry(), &layer(""), &[[2].into()], &["second axis", "(2)"]);
}
