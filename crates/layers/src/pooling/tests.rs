use crate::tests::registry;
use lgm_core::{DType, Phase, Shape, Step};
use lgm_testkit::{Case, Draw, Inputs, Rig, check, config_error};

fn layer(param: &str) -> String {
    format!("layer {{ name: 'p' type: 'Pooling' bottom: 'x' top: 'y' pooling_param {{ {param} }} }}")
}

#[test]
fn cases() {
    let golden = |i: usize| Case::golden(&format!("layers/pool_{i}"));
    let positive = || Draw::Uniform(0.1, 2.0);
    let stochastic = |param: &str| Case::new(layer(&format!("pool: STOCHASTIC {param}")));
    let two_tops =
        "layer { name: 'p' type: 'Pooling' bottom: 'x' top: 'y' top: 'm' pooling_param { kernel_size: 2 pad: 1 } }";
    check(
        &registry(),
        &[
            golden(0),
            golden(1),
            golden(2),
            golden(3),
            golden(4),
            golden(5),
            Case::golden("layers/pool_mask").without_gradients(),
            Case::new(two_tops).flat_top(1).bottom([2, 2, 3, 3]),
            Case::new(layer("kernel_size: 3 stride: 2")).bottom([2, 1, 2, 4]),
            Case::new(layer("pool: AVE kernel_size: 3 stride: 2")).bottom([2, 1, 2, 6]),
            Case::new(layer("pool: AVE kernel_h: 2 kernel_w: 3 pad_h: 1 pad_w: 2 round_mode: FLOOR"))
                .bottom([1, 2, 4, 3]),
            Case::new(layer("global_pooling: true")).bottom([2, 3, 3, 2]),
            // Which elements are drawn depends on the values, so only the forward and the plan are checked here.
            stochastic("kernel_size: 2 stride: 2").without_gradients().bottom_of([2, 2, 5, 4], positive()),
            stochastic("kernel_size: 3 stride: 2").test_phase().bottom_of([2, 2, 5, 6], positive()),
        ],
    );
}

fn top_shape(param: &str, bottom: [usize; 4]) -> Shape {
    let rig = Rig::new(&registry(), &layer(param), Phase::Train, DType::F32, &[bottom.into()]).unwrap();
    rig.plan.tops[0].shape.clone()
}

#[test]
fn numbers_of_windows() {
    for (param, bottom, want) in [
        ("kernel_size: 2 stride: 2", [1, 1, 7, 8], [4, 4]),
        ("kernel_size: 2 stride: 2 round_mode: FLOOR", [1, 1, 7, 8], [3, 4]),
        ("kernel_size: 3 stride: 2 pad: 1", [1, 1, 8, 7], [5, 4]),
        ("kernel_size: 2 stride: 2 pad: 1", [1, 1, 3, 4], [2, 3]),
        ("kernel_size: 3 stride: 2", [1, 1, 2, 4], [1, 2]),
        ("global_pooling: true", [1, 1, 5, 6], [1, 1]),
    ] {
        assert_eq!(top_shape(param, bottom)[2..], want, "{param} of {bottom:?}");
    }
}

#[test]
fn draws_follow_the_values_and_the_pass() {
    let shape = Shape::from([50, 20, 1, 4]);
    let text = layer("pool: STOCHASTIC kernel_h: 1 kernel_w: 4");
    let rig = Rig::new(&registry(), &text, Phase::Train, DType::F32, &[shape]).unwrap();
    let x: Vec<f64> = [1.0, 0.0, 3.0, 4.0].repeat(1000);
    let inputs = rig.forward_inputs(&[&x]).unwrap();
    let first = rig.run(&inputs).unwrap();
    for (value, share) in [(0.0, 0.0), (1.0, 0.125), (3.0, 0.375), (4.0, 0.5)] {
        let found = first.tops[0].iter().filter(|&&y| y == value).count() as f64 / 1000.0;
        assert!((found - share).abs() < 0.04, "{value} was drawn in {found}, expected {share}");
    }
    let later = rig.run(&Inputs { step: Step { batch: 1, ..inputs.step }, ..inputs.clone() }).unwrap();
    assert_ne!(first.tops, later.tops);

    let dy: Vec<f64> = (1..=1000).map(|v| v as f64).collect();
    let out = rig.run(&Inputs { top_diffs: vec![dy.clone()], ..inputs }).unwrap();
    for (i, dx) in out.bottom_diffs[0].as_ref().unwrap().chunks(4).enumerate() {
        let drawn: Vec<usize> = (0..4).filter(|&k| dx[k] != 0.0).collect();
        assert_eq!((drawn.len(), dx[drawn[0]], x[4 * i + drawn[0]]), (1, dy[i], first.tops[0][i]));
    }
}

#[test]
fn windows_of_zeros_give_zeros() {
    for phase in [Phase::Train, Phase::Test] {
        let text = layer("pool: STOCHASTIC kernel_size: 2");
        let rig = Rig::new(&registry(), &text, phase, DType::F32, &[[1, 1, 2, 2].into()]).unwrap();
        assert_eq!(rig.run(&rig.forward_inputs(&[&[0.0; 4]]).unwrap()).unwrap().tops[0], [0.0]);
    }
}

#[test]
fn mistakes_are_named() {
    let x = [Shape::from([1, 1, 4, 4])];
    for (param, needles) in [
        ("", &["kernel_size is missing"][..]),
        ("kernel_size: 0", &["positive"]),
        ("kernel_size: 2 stride: 0", &["positive"]),
        ("kernel_h: 2", &["kernel_h and kernel_w go together"]),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 2", &["both kernel_size and kernel_h"]),
        ("kernel_size: 2 stride_h: 2", &["stride_h and stride_w go together"]),
        ("kernel_size: 2 pad: 1 pad_h: 1 pad_w: 1", &["both pad and pad_h"]),
        ("kernel_size: 2 pad: 2", &["padding (2)", "kernel (2)"]),
        ("kernel_size: 5", &["kernel (5)", "(4)"]),
        ("kernel_size: 6 stride: 2", &["kernel (6)", "(4)"]),
        ("kernel_size: 1 stride: 2", &["outside the bottom's extent 4", "FLOOR"]),
        ("kernel_size: 2 global_pooling: true", &["global_pooling", "kernel"]),
        ("global_pooling: true stride: 2", &["global_pooling", "stride 1"]),
        ("pool: STOCHASTIC kernel_size: 2 pad: 1", &["STOCHASTIC", "padding"]),
    ] {
        config_error(&registry(), &layer(param), &x, needles);
    }
    config_error(&registry(), &layer("kernel_size: 2"), &[[4, 4].into()], &["4 axes", "(4, 4)"]);
    config_error(&registry(), &layer("kernel_size: 2"), &[[1, 1, 5000, 5000].into()], &["5000 × 5000"]);
}
