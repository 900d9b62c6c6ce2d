use lgm_core::{DType, Phase, Shape, State};
use lgm_cuda::sim::Order;
use lgm_testkit::{Case, DeviceHarness, Fill, Harness, Inputs, Outputs, Recorded, assert_close, check, config_error};

use crate::tests::registry;

fn text(fields: &str, labels: bool) -> String {
    let second = if labels { r#"bottom: "y""# } else { "" };
    format!(
        r#"layer {{ name: "d" type: "ClassDistance" bottom: "x" {second} top: "z"
           class_distance_param {{ {fields} }} }}"#
    )
}

const ITEMS: usize = 4;
const CLASSES: usize = 3;
const WIDTH: usize = 5;

/// A harness of 4 items, 3 classes and 5 features, some of them zero, with random numbers for everything.
fn harness(fields: &str, labels: bool, phase: Phase, dtype: DType) -> (Harness, Inputs) {
    let mut shapes: Vec<Shape> = vec![[ITEMS, WIDTH].into()];
    if labels {
        shapes.push([ITEMS].into());
    }
    let fields = format!("num_output: {CLASSES} {fields}");
    let harness = Harness::new(&registry(), &text(&fields, labels), phase, dtype, &shapes).unwrap();
    let mut random = lgm_core::rng::Philox::new(7, 1).from(0);
    let mut draw = |n: usize, lo: f64, hi: f64| (0..n).map(|_| random.uniform(lo, hi)).collect::<Vec<f64>>();
    let mut x = draw(ITEMS * WIDTH, -1.5, 1.5);
    [0, 7, 8, 19].iter().for_each(|&i| x[i] = 0.0);
    let y = [2.0, 0.0, 1.0, 2.0];
    let bottoms: Vec<&[f64]> = [&x[..], &y[..]][..shapes.len()].to_vec();
    let mut inputs = harness.forward_inputs(&bottoms).unwrap();
    inputs.params = harness.params.iter().map(|p| draw(p.shape.count(), -1.5, 1.5)).collect();
    inputs.params[1] = draw(harness.params[1].shape.count(), 0.4, 1.6);
    inputs.top_diffs = vec![draw(ITEMS * CLASSES, -1.0, 1.0)];
    (harness, inputs)
}

/// Σ top · top diff, and the center term that no top shows.
fn objective(harness: &Harness, inputs: &Inputs, center_coef: f64, (skip_zero, l1): (bool, bool)) -> f64 {
    let out = harness.run(&Inputs { top_diffs: vec![], ..inputs.clone() }).unwrap();
    let tops: f64 = out.tops[0].iter().zip(&inputs.top_diffs[0]).map(|(a, b)| a * b).sum();
    if center_coef == 0.0 {
        return tops;
    }
    let (x, y, w) = (&inputs.bottoms[0], &inputs.bottoms[1], &inputs.params[0]);
    let apart = |i: usize| {
        let e = x[i] - w[y[i / WIDTH] as usize * WIDTH + i % WIDTH];
        if skip_zero && x[i] == 0.0 {
            0.0
        } else if l1 {
            e.abs()
        } else {
            0.5 * e * e
        }
    };
    tops + center_coef / ITEMS as f64 * (0..x.len()).map(apart).sum::<f64>()
}

fn slope(inputs: &Inputs, f: &dyn Fn(&Inputs) -> f64, pick: &dyn Fn(&mut Inputs) -> &mut f64) -> f64 {
    let h = 1e-4;
    let at = |d: f64| {
        let mut moved = inputs.clone();
        *pick(&mut moved) += d;
        f(&moved)
    };
    (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h)
}

/// Holds every gradient against finite differences; the variances' is zero unless they are updated.
fn check_gradients(
    name: &str,
    harness: &Harness,
    inputs: &Inputs,
    out: &Outputs,
    f: &dyn Fn(&Inputs) -> f64,
    updated: bool,
) {
    let close = |what: &str, i: usize, found: f64, want: f64| {
        assert!((found - want).abs() < 1e-7 * want.abs().max(1.0), "{name}: {what} {i}: {found}, expected {want}");
    };
    let dx = out.bottom_diffs[0].as_ref().unwrap();
    for i in (0..dx.len()).filter(|&i| inputs.bottoms[0][i] != 0.0) {
        close("features", i, dx[i], slope(inputs, f, &|m| &mut m.bottoms[0][i]));
    }
    for p in 0..harness.params.len() {
        for (i, &found) in out.param_diffs[p].as_ref().unwrap().iter().enumerate() {
            let want = if p == 1 && !updated { 0.0 } else { slope(inputs, f, &|m| &mut m.params[p][i]) };
            close(["centers", "variances"][p], i, found, want);
        }
    }
}

#[test]
fn every_branch_has_the_gradient_of_its_forward() {
    let flags = [false, true];
    let mut branches = 0;
    for metric in ["L2", "IP", "L1"] {
        for (isotropic, labels, train) in itertools(flags) {
            for (ignore_zero, update_sigma, coef) in itertools(flags) {
                let coef = if coef && labels { 0.7 } else { 0.0 };
                let fields = format!(
                    "metric: {metric} isotropic: {isotropic} ignore_zero: {ignore_zero} update_sigma: {update_sigma} \
                     center_coef: {coef} margin_mul {{ value: 0.4 }} margin_add {{ value: 0.9 }}"
                );
                let phase = if train { Phase::Train } else { Phase::Test };
                let (harness, inputs) = harness(&fields, labels, phase, DType::F64);
                let out = harness.run(&inputs).unwrap();
                let skip_zero = ignore_zero && train && metric != "IP";
                let coef = f64::from(coef as f32);
                let f = |inputs: &Inputs| objective(&harness, inputs, coef, (skip_zero, metric == "L1"));
                let name = format!("{fields}, labels {labels}, {phase:?}");
                check_gradients(&name, &harness, &inputs, &out, &f, update_sigma && metric == "L2");
                if skip_zero {
                    let dx = out.bottom_diffs[0].as_ref().unwrap();
                    assert_eq!([0, 7, 8, 19].map(|i| dx[i]), [0.0; 4], "{name}: gradient of features left out");
                }
                branches += 1;
            }
        }
    }
    assert_eq!(branches, 3 * 64);
}

fn itertools(flags: [bool; 2]) -> impl Iterator<Item = (bool, bool, bool)> {
    flags.into_iter().flat_map(move |a| flags.into_iter().flat_map(move |b| flags.into_iter().map(move |c| (a, b, c))))
}

#[test]
fn forward_is_the_formula() {
    for metric in ["L2", "IP", "L1"] {
        for (isotropic, train, ignore_zero) in itertools([false, true]) {
            let fields = format!(
                "metric: {metric} isotropic: {isotropic} ignore_zero: {ignore_zero} margin_mul {{ value: 0.5 }} \
                 margin_add {{ value: 0.25 }}"
            );
            let phase = if train { Phase::Train } else { Phase::Test };
            let (harness, inputs) = harness(&fields, true, phase, DType::F64);
            let (x, y, w, s) = (&inputs.bottoms[0], &inputs.bottoms[1], &inputs.params[0], &inputs.params[1]);
            let mut want = vec![];
            for (i, j) in (0..ITEMS).flat_map(|i| (0..CLASSES).map(move |j| (i, j))) {
                let mut z = 0.0;
                for k in 0..WIDTH {
                    let (x, w) = (x[i * WIDTH + k], w[j * WIDTH + k]);
                    let e = if ignore_zero && train && x == 0.0 { 0.0 } else { w - x };
                    z += match metric {
                        "L2" if isotropic => -0.5 * e * e / (s[j] + 1e-4),
                        "L2" => -0.5 * e * e / s[j * WIDTH + k],
                        "IP" => w * x,
                        _ => -e.abs(),
                    };
                }
                want.push(if train && y[i] == j as f64 { z * 1.5 - 0.25 } else { z });
            }
            assert_close(&fields, &harness.run(&inputs).unwrap().tops[0], &want, 1e-12);
        }
    }
}

#[test]
fn recorded_values() {
    for name in ["block", "diag", "diag_sigma", "ip", "iso", "iso_sigma", "l1", "margin_add", "nolabel", "test_phase"] {
        let c = Recorded::golden(&format!("lgm/cd_{name}"));
        let (number, flag) = (|n: &str| c.array(n).unwrap().1[0], |n: &str| c.array(n).unwrap().1[0] != 0.0);
        let array = |n: &str| c.array(n).unwrap();
        let fields = format!(
            "num_output: {} metric: {} isotropic: {} update_sigma: {} block_mul_grad: {} center_coef: {}
             margin_mul {{ value: {} }} margin_add {{ value: {} }}",
            array("centers").0[0],
            c.text("metric").unwrap(),
            flag("isotropic"),
            flag("update_sigma"),
            flag("block_mul_grad"),
            number("center_coef"),
            number("margin_mul"),
            number("margin_add")
        );
        let labels = flag("use_label");
        let phase = if c.text("phase") == Some("TEST") { Phase::Test } else { Phase::Train };
        let shapes = [array("x").0.clone(), array("label").0.clone()];
        let shapes = &shapes[..1 + usize::from(labels)];
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 2e-8)] {
            let harness = Harness::new(&registry(), &text(&fields, labels), phase, dtype, shapes).unwrap();
            let bottoms = [array("x").1, array("label").1];
            let mut inputs = harness.forward_inputs(&bottoms[..shapes.len()]).unwrap();
            inputs.params = vec![array("centers").1.to_vec(), array("sigma").1.to_vec()];
            inputs.top_diffs = vec![array("top_diff").1.to_vec()];
            let out = harness.run(&inputs).unwrap();
            let close =
                |what: &str, found: &[f64]| assert_close(&format!("{name} {what}"), found, array(what).1, tolerance);
            close("logits", &out.tops[0]);
            close("dx", out.bottom_diffs[0].as_ref().unwrap());
            close("dcenters", out.param_diffs[0].as_ref().unwrap());
            close("dsigma", out.param_diffs[1].as_ref().unwrap());
        }
    }
}

#[test]
fn plans_are_honest() {
    let case = |fields: &str, labels: bool| {
        let case = Case::new(text(&format!("num_output: 4 {fields}"), labels)).bottom([6, 3, 2]);
        let case = if labels { case.bottom_of([6, 1, 1], Fill::Labels(4)) } else { case };
        case.param(1, Fill::Uniform(0.5, 1.5))
    };
    let filler = r#"weight_filler { type: "gaussian" std: 1 }"#;
    check(
        &registry(),
        &[
            case(&format!("{filler} update_sigma: true margin_mul {{ value: 0.3 }} margin_add {{ value: 0.1 }}"), true),
            case(&format!("{filler} update_sigma: true isotropic: false ignore_zero: true"), true),
            case(&format!("{filler} update_sigma: true isotropic: false"), false),
            case(&format!("{filler} center_coef: 0.1 isotropic: false"), true).without_gradients(),
            case(&format!("{filler} center_coef: 0.1"), true).without_gradients(),
            case(&format!("{filler} metric: IP center_coef: 0.1 ignore_zero: true"), true).without_gradients(),
            case(&format!("{filler} metric: L1"), true).precision(1e-4, 1e-5),
            case(&format!("{filler} metric: IP"), false),
        ],
    );
}

/// Features, every fifth of them zero.
fn some_zero(n: usize) -> Fill {
    let mut random = lgm_core::rng::Philox::new(5, 3).from(0);
    Fill::Given((0..n).map(|i| if i % 5 == 0 { 0.0 } else { random.uniform(-1.5, 1.5) }).collect())
}

#[test]
fn whole_and_broken_tiles_and_sums_in_parts() {
    let filler = r#"weight_filler { type: "gaussian" std: 1 } margin_mul { value: 0.3 } margin_add { value: 0.1 }"#;
    for (items, classes, width) in [(1, 1, 1), (5, 33, 31), (31, 2, 257), (130, 65, 33), (3, 257, 1)] {
        for fields in [
            "update_sigma: true center_coef: 0.1",
            "update_sigma: true ignore_zero: true block_mul_grad: true",
            "update_sigma: true isotropic: false center_coef: 0.1",
            "update_sigma: true isotropic: false ignore_zero: true center_coef: 0.1",
            "metric: L1 ignore_zero: true center_coef: 0.1",
            "metric: IP center_coef: 0.1",
        ] {
            let case = Case::new(text(&format!("num_output: {classes} {filler} {fields}"), true)).without_gradients();
            let case = case.bottom_of([items, width], some_zero(items * width));
            check(&registry(), &[case.bottom_of([items], Fill::Labels(classes)).param(1, Fill::Uniform(0.5, 1.5))]);
        }
    }
}

#[test]
fn the_device_finds_labels_outside_the_classes() {
    for phase in [Phase::Train, Phase::Test] {
        for order in [Order::Forward, Order::Reversed] {
            let shapes: [Shape; 2] = [[300, 2].into(), [300].into()];
            let harness = DeviceHarness::new(&registry(), &text("num_output: 3", true), phase, &shapes, order).unwrap();
            let Some(harness) = harness else { return };
            let mut labels = vec![1.0; 300];
            (labels[270], labels[17]) = (3.0, -1.0);
            let mut inputs = harness.harness.forward_inputs(&[&[0.5; 600], &labels]).unwrap();
            inputs.params[1] = vec![1.0; 3];
            // In TEST, forward has no use for labels; backward has.
            assert_eq!(harness.run(&inputs).is_ok(), phase == Phase::Test);
            inputs.top_diffs = vec![vec![1.0; 900]];
            let err = harness.run(&inputs).unwrap_err().to_string();
            assert!(err.contains("label -1 of item 17") && err.contains("3 classes"), "{err}");
        }
    }
}

#[test]
fn block_mul_grad_leaves_the_margin_out() {
    let fields = |block: bool, margin: f32| {
        format!("update_sigma: true block_mul_grad: {block} margin_mul {{ value: {margin} max: 9 }} center_coef: 0.3")
    };
    let run = |fields: &str| {
        let (harness, inputs) = harness(fields, true, Phase::Train, DType::F64);
        harness.run(&inputs).unwrap()
    };
    let (blocked, plain, margin) = (run(&fields(true, 0.5)), run(&fields(false, 0.0)), run(&fields(false, 0.5)));
    assert_eq!(blocked.tops, margin.tops);
    assert_eq!(blocked.bottom_diffs, plain.bottom_diffs);
    assert_eq!(blocked.param_diffs, plain.param_diffs);
    assert_ne!(blocked.bottom_diffs, margin.bottom_diffs);
}

#[test]
fn clipped_variances() {
    for (isotropic, n) in [(true, CLASSES), (false, CLASSES * WIDTH)] {
        let fields = format!("update_sigma: true isotropic: {isotropic}");
        let (harness, mut inputs) = harness(&fields, false, Phase::Train, DType::F32);
        inputs.params[1] = vec![-1.0; n];
        let negative = harness.run(&inputs).unwrap();
        inputs.params[1] = vec![0.0; n];
        let zero = harness.run(&inputs).unwrap();
        assert_eq!(negative.tops, zero.tops);
        assert!(zero.tops[0].iter().all(|z| z.is_finite()));
        assert_eq!(negative.param_diffs[1], Some(vec![0.0; n]));
        assert_eq!(zero.param_diffs[1], Some(vec![0.0; n]));
    }
}

#[test]
fn tiny_distances_keep_their_digits() {
    // |w|² − 2w·x + |x|² would give zero or noise here.
    let shapes = [[1, 2].into()];
    let harness = Harness::new(&registry(), &text("num_output: 1", false), Phase::Train, DType::F32, &shapes).unwrap();
    let mut inputs = harness.forward_inputs(&[&[100.0, 100.0]]).unwrap();
    let near = f64::from(100.0f32 + 1e-3);
    inputs.params = vec![vec![near, 100.0], vec![1.0]];
    let want = -0.5 * (near - 100.0).powi(2) / (1.0 + 1e-4);
    let found = harness.run(&inputs).unwrap().tops[0][0];
    assert!((found / want - 1.0).abs() < 1e-5, "{found}, expected {want}");
    let device = DeviceHarness::new(&registry(), &text("num_output: 1", false), Phase::Train, &shapes, Order::Forward);
    let Some(device) = device.unwrap() else { return };
    let found = device.run(&inputs).unwrap().tops[0][0];
    assert!((found / want - 1.0).abs() < 1e-5, "{found} on the device, expected {want}");
}

#[test]
fn margins_follow_their_schedules_and_are_saved() {
    let fields = "margin_mul { policy: ADDUP gamma: 0.25 step: 2 max: 0.5 } margin_add { policy: STEPUP value: 0.5 gamma: 2 step: 3 }";
    let logit = |harness: &Harness, inputs: &Inputs| {
        let z = harness.run(&Inputs { top_diffs: vec![], ..inputs.clone() }).unwrap().tops[0].clone();
        z[2]
    };
    let (mut first, inputs) = harness(fields, true, Phase::Train, DType::F64);
    let plain = {
        let (harness, inputs) = harness("", true, Phase::Train, DType::F64);
        logit(&harness, &inputs)
    };
    let want = |mul: f64, add: f64| plain * (1.0 + mul) - add;
    let expected = [(0.0, 0.5), (0.0, 0.5), (0.25, 0.5), (0.25, 1.0), (0.5, 1.0)];
    let mut log = vec![];
    for (i, (mul, add)) in expected.into_iter().enumerate() {
        // The harness begins iteration 0 itself.
        if i > 0 {
            log.extend(first.layer.begin_iteration(i as u64));
        }
        assert!((logit(&first, &inputs) - want(mul, add)).abs() < 1e-12, "iteration {i}");
    }
    assert_eq!(log, ["mul_margin changed to 0.25", "add_margin changed to 1", "mul_margin changed to 0.5"]);

    let state = first.layer.state();
    let (mut second, _) = harness(fields, true, Phase::Train, DType::F64);
    second.layer.restore(&state).unwrap();
    assert_eq!(logit(&second, &inputs), logit(&first, &inputs));
    assert_eq!(second.layer.state(), state);
    let mut unknown = state.clone();
    unknown.insert("momentum".into(), 1.0);
    assert!(second.layer.restore(&unknown).unwrap_err().to_string().contains("'momentum'"));
    assert!(second.layer.restore(&State::new()).is_err());

    // Without labels, or in TEST, nothing moves and nothing is kept.
    for (labels, phase) in [(false, Phase::Train), (true, Phase::Test)] {
        let (mut harness, _) = harness(fields, labels, phase, DType::F64);
        assert!((0..9).all(|i| harness.layer.begin_iteration(i).is_empty()));
        assert_eq!(harness.layer.state(), State::new());
        harness.layer.restore(&State::new()).unwrap();
    }
}

#[test]
fn mistakes_are_named() {
    let fails = |fields: &str, shapes: &[Shape], needles: &[&str]| {
        config_error(&registry(), &text(fields, shapes.len() == 2), shapes, needles);
    };
    let features = || Shape::from([4, 5]);
    fails("", &[features()], &["num_output", "positive"]);
    fails("num_output: 0", &[features()], &["num_output"]);
    fails("num_output: 3", &[features(), [3].into()], &["expected 4", "found 3", "(4, 5)"]);
    fails("num_output: 3", &[Shape::scalar()], &["batch axis"]);
    fails("num_output: 3 margin_mul { policy: ADDUP step: 0 }", &[features()], &["margin_mul: step", "found 0"]);
    fails("num_output: 3 margin_add { policy: STEPUP min: 2 }", &[features()], &["margin_add: min"]);
    for bad in [3.0, -1.0, f64::NAN] {
        let (harness, mut inputs) = harness("", true, Phase::Train, DType::F32);
        inputs.bottoms[1][2] = bad;
        let err = harness.run(&inputs).unwrap_err().to_string();
        assert!(err.contains(&format!("label {bad} of item 2")) && err.contains("3 classes"), "{err}");
    }
}
