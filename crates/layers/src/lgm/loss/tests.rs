use lgm_core::{DType, Phase, Shape, State};
use lgm_cuda::sim::Order;
use lgm_testkit::{Case, DeviceHarness, Fill, Harness, Inputs, Recorded, assert_close, check, config_error};

use crate::tests::registry;

const ITEMS: usize = 5;
const CLASSES: usize = 3;
const WIDTH: usize = 4;
/// Features that are zero.
const ZEROS: [usize; 4] = [0, 6, 7, 19];

pub(super) fn text(fields: &str, tops: usize) -> String {
    let more = [r#"top: "z""#, r#"top: "likelihood""#][..tops - 1].join(" ");
    format!(
        r#"layer {{ name: "l" type: "LGMLoss" bottom: "x" bottom: "y" top: "l" {more} lgm_loss_param {{ {fields} }} }}"#
    )
}

fn harness(fields: &str, tops: usize, phase: Phase, dtype: DType) -> (Harness, Inputs) {
    let shapes: [Shape; 2] = [[ITEMS, WIDTH].into(), [ITEMS].into()];
    let fields = format!("num_output: {CLASSES} {fields}");
    let harness = Harness::new(&registry(), &text(&fields, tops), phase, dtype, &shapes).unwrap();
    let mut random = lgm_core::rng::Philox::new(11, 2).from(0);
    let mut draw = |n: usize, lo: f64, hi: f64| (0..n).map(|_| random.uniform(lo, hi)).collect::<Vec<f64>>();
    let mut x = draw(ITEMS * WIDTH, -1.0, 1.0);
    ZEROS.iter().for_each(|&i| x[i] = 0.0);
    let mut inputs = harness.forward_inputs(&[&x, &[2.0, 0.0, 1.0, 2.0, 2.0]]).unwrap();
    inputs.params = vec![draw(CLASSES * WIDTH, -1.0, 1.0), draw(harness.params[1].shape.count(), 0.4, 1.6)];
    inputs.top_diffs = harness.plan.tops.iter().map(|t| draw(t.shape.count(), 0.3, 1.0)).collect();
    (harness, inputs)
}

/// How the formula is read: margins, λ, and what `ignore_zero` and `block_mul_grad` make of it.
#[derive(Clone, Default)]
struct Formula {
    mul: f64,
    add: f64,
    lambda: f64,
    all_classes: bool,
    skip_zero: bool,
    /// For each item, a margin that is no function of anything.
    constant_margin: Option<Vec<f64>>,
}

impl Formula {
    /// The loss, the logits without margin, the likelihood term; and each item's own d.
    fn tops(&self, inputs: &Inputs) -> (Vec<Vec<f64>>, Vec<f64>) {
        let (x, y, w, s) = (&inputs.bottoms[0], &inputs.bottoms[1], &inputs.params[0], &inputs.params[1]);
        let (mut logits, mut entropy, mut likelihood, mut own) = (vec![], 0.0, 0.0, vec![]);
        for i in 0..ITEMS {
            let label = y[i] as usize;
            let mut with_margin = vec![];
            for j in 0..CLASSES {
                let (mut d, mut h) = (0.0, 0.0);
                for k in 0..WIDTH {
                    let (x, w) = (x[i * WIDTH + k], w[j * WIDTH + k]);
                    let s = if s.len() == CLASSES { s[j] } else { s[j * WIDTH + k] };
                    if !(self.skip_zero && x == 0.0) {
                        d += 0.5 * (x - w) * (x - w) / s;
                        h += 0.5 * s.ln();
                    }
                }
                logits.push(-d - h);
                let margin = self.constant_margin.as_ref().map_or(self.mul * d, |m| m[i]) + self.add;
                with_margin.push(if j == label { -d - h - margin } else { -d - h });
                let share = if self.all_classes { 1.0 / CLASSES as f64 } else { f64::from(u8::from(j == label)) };
                likelihood += share * (d + h) / ITEMS as f64;
                if j == label {
                    own.push(d);
                }
            }
            let sum: f64 = with_margin.iter().map(|l| l.exp()).sum();
            entropy += (sum.ln() - with_margin[label]) / ITEMS as f64;
        }
        (vec![vec![entropy + self.lambda * likelihood], logits, vec![likelihood]], own)
    }

    fn objective(&self, inputs: &Inputs) -> f64 {
        let tops = self.tops(inputs).0;
        let dot = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        tops.iter().zip(&inputs.top_diffs).map(dot).sum()
    }
}

fn slope(f: &dyn Fn(&Inputs) -> f64, inputs: &Inputs, pick: &dyn Fn(&mut Inputs) -> &mut f64) -> f64 {
    let h = 1e-4;
    let at = |d: f64| {
        let mut moved = inputs.clone();
        *pick(&mut moved) += d;
        f(&moved)
    };
    (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h)
}

#[test]
fn every_branch_is_the_formula_and_has_its_gradient() {
    let mut branches = 0;
    for bits in 0..128 {
        let [isotropic, train, ignore_zero, update_sigma, block, margin, all_classes] =
            [0, 1, 2, 3, 4, 5, 6].map(|b| bits >> b & 1 == 1);
        for tops in 1..=3 {
            let (mul, add) = if margin { (0.5, 0.25) } else { (0.0, 0.0) };
            let likelihood = if all_classes { "ALL_CLASSES" } else { "LABEL" };
            let fields = format!(
                "isotropic: {isotropic} ignore_zero: {ignore_zero} update_sigma: {update_sigma} block_mul_grad: {block}
                 likelihood: {likelihood}
                 margin_mul {{ value: {mul} }} margin_add {{ value: {add} }} center_coef: 0.5"
            );
            let (harness, inputs) = harness(&fields, tops, if train { Phase::Train } else { Phase::Test }, DType::F64);
            let name = format!("{fields}, train {train}, {tops} tops");
            let (mul, add) = if train { (mul, add) } else { (0.0, 0.0) };
            let mut formula =
                Formula { mul, add, lambda: 0.5, all_classes, skip_zero: ignore_zero && train, ..Formula::default() };
            let (want, own) = formula.tops(&inputs);
            let out = harness.run(&inputs).unwrap();
            for (t, values) in out.tops.iter().enumerate() {
                assert_close(&format!("{name}: top {t}"), values, &want[t], 1e-12);
            }
            if block {
                // The margin then is a number that happens to be there.
                formula.constant_margin = Some(own.iter().map(|d| mul * d).collect());
            }
            let f = |inputs: &Inputs| formula.objective(inputs);
            let close = |what: &str, i: usize, found: f64, want: f64| {
                let near = (found - want).abs() < 1e-8 * want.abs().max(1.0);
                assert!(near, "{name}: gradient of {what} {i} is {found}, expected {want}");
            };
            for (i, &found) in out.bottom_diffs[0].as_ref().unwrap().iter().enumerate() {
                let left_out = formula.skip_zero && ZEROS.contains(&i);
                let want = if left_out { 0.0 } else { slope(&f, &inputs, &|m| &mut m.bottoms[0][i]) };
                close("features", i, found, want);
            }
            for (p, what) in ["centers", "variances"].into_iter().enumerate() {
                let still = p == 1 && !update_sigma;
                assert_eq!(out.param_diffs[p].is_none(), still, "{name}: gradient of {what}");
                for (i, &found) in out.param_diffs[p].iter().flatten().enumerate() {
                    close(what, i, found, slope(&f, &inputs, &|m| &mut m.params[p][i]));
                }
            }
            branches += 1;
        }
    }
    assert_eq!(branches, 384);
}

#[test]
fn recorded_values() {
    for name in ["diag_sigma", "iso", "iso_sigma", "plain"] {
        let c = Recorded::golden(&format!("lgm/lgm_{name}"));
        let array = |n: &str| c.array(n).unwrap();
        let (number, flag) = (|n: &str| array(n).1[0], |n: &str| array(n).1[0] != 0.0);
        let fields = format!(
            "num_output: {} isotropic: {} update_sigma: {} center_coef: {} margin_mul {{ value: {} }}",
            array("centers").0[0],
            flag("isotropic"),
            flag("update_sigma"),
            number("center_coef"),
            number("margin_mul")
        );
        let shapes = [array("x").0.clone(), array("label").0.clone()];
        for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F64, 2e-8)] {
            let harness = Harness::new(&registry(), &text(&fields, 3), Phase::Train, dtype, &shapes).unwrap();
            let mut inputs = harness.forward_inputs(&[array("x").1, array("label").1]).unwrap();
            inputs.params = vec![array("centers").1.to_vec(), array("sigma").1.to_vec()];
            inputs.top_diffs = vec![vec![1.0], vec![0.0; array("logits").1.len()], vec![0.0]];
            let out = harness.run(&inputs).unwrap();
            let close =
                |what: &str, found: &[f64]| assert_close(&format!("{name} {what}"), found, array(what).1, tolerance);
            close("loss", &out.tops[0]);
            close("logits", &out.tops[1]);
            close("likelihood_loss", &out.tops[2]);
            close("dx", out.bottom_diffs[0].as_ref().unwrap());
            close("dcenters", out.param_diffs[0].as_ref().unwrap());
            match &out.param_diffs[1] {
                Some(found) => close("dsigma", found),
                None => assert!(!flag("update_sigma") && array("dsigma").1.iter().all(|&d| d == 0.0)),
            }
        }
    }
}

#[test]
fn plans_are_honest() {
    let case = |fields: &str, tops: usize| {
        let fields = format!(r#"num_output: 4 weight_filler {{ type: "gaussian" std: 1 }} {fields}"#);
        Case::new(text(&fields, tops))
            .bottom([6, 3, 2])
            .bottom_of([6, 1, 1], Fill::Labels(4))
            .param(1, Fill::Uniform(0.5, 1.5))
    };
    check(
        &registry(),
        &[
            case("update_sigma: true margin_mul { value: 0.3 } center_coef: 0.1", 1),
            case("update_sigma: true isotropic: false margin_add { value: 0.3 }", 2),
            case("update_sigma: true isotropic: false ignore_zero: true center_coef: 0.1", 3),
            case("update_sigma: true margin_mul { value: 1 } center_coef: 0.1", 3).test_phase(),
            case("update_sigma: true center_coef: 0.5 center_coef_ramp { value: 0.4 }", 1),
            case("update_sigma: true isotropic: false center_coef: 0.5 center_coef_ramp { value: 3 }", 2),
            case("update_sigma: true center_coef: 0.5 center_coef_ramp { value: 0.4 }", 3).test_phase(),
            case("update_sigma: true center_coef: 0.5 likelihood: ALL_CLASSES margin_mul { value: 0.3 }", 3),
            case("update_sigma: true isotropic: false ignore_zero: true center_coef: 0.5 likelihood: ALL_CLASSES", 3),
            case("block_mul_grad: true margin_mul { value: 1 }", 3).without_gradients(),
        ],
    );
}

#[test]
fn whole_and_broken_tiles_and_sums_in_parts() {
    let filler = r#"weight_filler { type: "gaussian" std: 1 } margin_mul { value: 0.3 } margin_add { value: 0.1 }"#;
    for (items, classes, width) in [(1, 1, 1), (5, 33, 31), (31, 2, 257), (130, 65, 33), (3, 257, 1)] {
        for fields in [
            "center_coef: 0.1",
            "ignore_zero: true block_mul_grad: true",
            "center_coef: 0.1 likelihood: ALL_CLASSES",
            "isotropic: false center_coef: 0.1",
            "isotropic: false ignore_zero: true center_coef: 0.1",
        ] {
            let fields = format!("num_output: {classes} update_sigma: true sigma_floor: 0.1 {filler} {fields}");
            let mut random = lgm_core::rng::Philox::new(5, 3).from(0);
            let mut feature = |i: usize| if i.is_multiple_of(5) { 0.0 } else { random.uniform(-1.5, 1.5) };
            let features = Fill::Given((0..items * width).map(&mut feature).collect());
            let case = Case::new(text(&fields, 3)).without_gradients().bottom_of([items, width], features);
            // Variances below the floor, damped and free ones.
            let case = case.bottom_of([items], Fill::Labels(classes)).param(1, Fill::Uniform(-0.2, 2.0));
            check(&registry(), &[case]);
        }
    }
}

#[test]
fn the_device_finds_labels_outside_the_classes() {
    for order in [Order::Forward, Order::Reversed] {
        let shapes: [Shape; 2] = [[300, 2].into(), [300].into()];
        let harness = DeviceHarness::new(&registry(), &text("num_output: 3", 1), Phase::Train, &shapes, order).unwrap();
        let Some(harness) = harness else { return };
        let mut labels = vec![1.0; 300];
        (labels[270], labels[17]) = (3.0, -1.0);
        let mut inputs = harness.harness.forward_inputs(&[&[0.5; 600], &labels]).unwrap();
        inputs.params[1] = vec![1.0; 3];
        let err = harness.run(&inputs).unwrap_err().to_string();
        assert!(err.contains("label -1 of item 17") && err.contains("3 classes"), "{err}");
    }
}

#[test]
fn threads_change_nothing() {
    // Enough work to be shared out: 96 items of 80 features, 60 classes.
    let fields = r#"num_output: 60 update_sigma: true isotropic: false weight_filler { type: "gaussian" std: 1 }"#;
    let case = Case::new(text(fields, 3)).bottom([96, 80]).bottom_of([96], Fill::Labels(60));
    check(&registry(), &[case.param(1, Fill::Uniform(0.5, 1.5)).without_gradients()]);
}

#[test]
fn variances_start_at_one() {
    let filled = |fields: &str| harness(fields, 1, Phase::Train, DType::F32).0.filled().unwrap().remove(1);
    assert_eq!(filled(""), [1.0; CLASSES]);
    assert_eq!(filled("isotropic: false"), [1.0; CLASSES * WIDTH]);
    assert_eq!(filled("bias_filler { value: 0.5 }"), [0.5; CLASSES]);
}

#[test]
fn lost_variances_count_as_the_floor() {
    for isotropic in [true, false] {
        let fields = format!("isotropic: {isotropic} update_sigma: true sigma_floor: 0.25 center_coef: 0.1");
        let (harness, mut inputs) = harness(&fields, 3, Phase::Train, DType::F32);
        let n = inputs.params[1].len();
        let mut run = |s: f64| {
            inputs.params[1] = vec![s; n];
            harness.run(&inputs).unwrap()
        };
        let floor = run(0.25);
        for lost in [0.0, -1.0, -1e30, f64::NEG_INFINITY, f64::NAN] {
            let out = run(lost);
            assert_eq!((&out.tops, &out.bottom_diffs[0]), (&floor.tops, &floor.bottom_diffs[0]), "variance {lost}");
            assert_eq!(out.param_diffs[0], floor.param_diffs[0]);
        }
        for lost in [0.0, -1.0, -1e30] {
            let pull = run(lost).param_diffs[1].clone().unwrap();
            assert!(pull.iter().all(|g| *g < 0.0 && g.is_finite()), "variance {lost} is not called back: {pull:?}");
        }
    }
}

#[test]
fn margins_follow_their_schedules_and_are_saved() {
    let fields = "margin_mul { policy: ADDUP gamma: 0.25 step: 2 max: 0.5 }";
    let loss = |harness: &Harness, inputs: &Inputs| harness.run(inputs).unwrap().tops[0][0];
    let fixed = |mul: f64| {
        let (harness, inputs) = harness(&format!("margin_mul {{ value: {mul} }}"), 1, Phase::Train, DType::F64);
        loss(&harness, &inputs)
    };
    let (mut first, inputs) = harness(fields, 1, Phase::Train, DType::F64);
    for (iter, mul) in [(1, 0.0), (2, 0.25), (3, 0.25), (4, 0.5), (7, 0.5)] {
        let log = first.layer.begin_iteration(iter);
        assert_eq!(log.len(), usize::from(iter == 2 || iter == 4), "{log:?}");
        assert_eq!(loss(&first, &inputs), fixed(mul), "iteration {iter}");
    }
    let (mut second, _) = harness(fields, 1, Phase::Train, DType::F64);
    second.layer.restore(&first.layer.state()).unwrap();
    assert_eq!(loss(&second, &inputs), fixed(0.5));
    // A test net has no margin, whatever the schedule says.
    let (mut test, inputs) = harness(fields, 1, Phase::Test, DType::F64);
    test.layer.begin_iteration(4);
    assert_eq!((loss(&test, &inputs), test.layer.state()), (fixed(0.0), State::new()));
}

#[test]
fn the_likelihood_grows_in_by_its_ramp() {
    let fields = "center_coef: 0.5 center_coef_ramp { policy: ADDUP gamma: 0.25 step: 2 }";
    let loss = |harness: &Harness, inputs: &Inputs| harness.run(inputs).unwrap().tops[0][0];
    let fixed = |lambda: f64, phase: Phase| {
        let (harness, inputs) = harness(&format!("center_coef: {lambda}"), 1, phase, DType::F64);
        loss(&harness, &inputs)
    };
    let (mut first, inputs) = harness(fields, 1, Phase::Train, DType::F64);
    for (iter, lambda) in [(0, 0.0), (2, 0.125), (3, 0.125), (4, 0.25), (8, 0.5), (20, 0.5)] {
        first.layer.begin_iteration(iter);
        assert_eq!(loss(&first, &inputs), fixed(lambda, Phase::Train), "iteration {iter}");
    }
    let (mut second, _) = harness(fields, 1, Phase::Train, DType::F64);
    second.layer.begin_iteration(4);
    first.layer.restore(&second.layer.state()).unwrap();
    assert_eq!(loss(&first, &inputs), fixed(0.25, Phase::Train));
    // A snapshot from before the ramp was there says nothing of it; a test net has all of the likelihood.
    let (without, _) = harness("center_coef: 0.5", 1, Phase::Train, DType::F64);
    let err = first.layer.restore(&without.layer.state()).unwrap_err().to_string();
    assert!(err.contains("was center_coef_ramp added since?"), "{err}");
    let (mut test, inputs) = harness(fields, 1, Phase::Test, DType::F64);
    test.layer.begin_iteration(2);
    assert_eq!((loss(&test, &inputs), test.layer.state()), (fixed(0.5, Phase::Test), State::new()));
}

#[test]
fn mistakes_are_named() {
    let fails = |fields: &str, shapes: [Shape; 2], needles: &[&str]| {
        config_error(&registry(), &text(fields, 1), &shapes, needles);
    };
    let good = || [Shape::from([4, 5]), Shape::from([4])];
    fails("", good(), &["num_output", "positive"]);
    fails("num_output: 3", [[4, 5].into(), [5].into()], &["expected 4", "found 5"]);
    fails("num_output: 3", [[4, 0].into(), [4].into()], &["empty", "(4, 0)"]);
    fails("num_output: 3 metric: IP", good(), &["L2", "IP"]);
    fails("num_output: 3 sigma_floor: 0", good(), &["sigma_floor", "found 0"]);
    fails("num_output: 3 sigma_floor: nan", good(), &["sigma_floor"]);
    fails("num_output: 3 margin_mul { policy: ADDUP step: -1 }", good(), &["margin_mul: step"]);
    fails("num_output: 3 center_coef_ramp { value: inf }", good(), &["center_coef_ramp: value"]);
    for bad in [3.0, -1.0, f64::NAN] {
        let (harness, mut inputs) = harness("", 1, Phase::Train, DType::F32);
        inputs.bottoms[1][4] = bad;
        let err = harness.run(&inputs).unwrap_err().to_string();
        assert!(err.contains(&format!("label {bad} of item 4")) && err.contains("3 classes"), "{err}");
    }
}
