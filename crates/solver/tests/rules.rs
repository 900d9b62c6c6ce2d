//! The six solver types on a linear regression, against the same arithmetic done plainly here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Folder;
use lgm_core::{Phase, Step};
use lgm_net::{Keep, Net, Options};
use lgm_testkit::says;
use std::path::Path;

const ITERATIONS: usize = 6;
const ROWS: usize = 4;
const INPUTS: usize = 3;

/// y = W x + b against t, both random and new in every pass.
const NET: &str = "
    layer { name: 'x' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 4 dim: 3 } data_filler { type: 'gaussian' } } }
    layer { name: 't' type: 'DummyData' top: 't' dummy_data_param { shape { dim: 4 dim: 1 } data_filler { type: 'gaussian' } } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y' param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
            inner_product_param { num_output: 1 weight_filler { type: 'gaussian' std: 2 } bias_filler { value: 0.5 } } }
    layer { name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 't' top: 'loss' }";

#[derive(Clone, Copy, Debug)]
struct Settings {
    rule: &'static str,
    l1: bool,
    clip: Option<f64>,
    iter_size: usize,
}

impl Settings {
    fn momentum(&self) -> f64 {
        if ["AdaGrad", "RMSProp"].contains(&self.rule) { 0.0 } else { 0.9 }
    }

    fn text(&self) -> String {
        let clip = self.clip.map(|c| format!("clip_gradients: {c}")).unwrap_or_default();
        format!(
            "net_param {{ {NET} }} type: '{}' regularization_type: '{}' iter_size: {} {clip} momentum: {} \
             weight_decay: 0.1 base_lr: 0.05 lr_policy: 'step' stepsize: 2 gamma: 0.5 delta: 1e-3 momentum2: 0.99 \
             rms_decay: 0.8 random_seed: 5 max_iter: {ITERATIONS} snapshot_after_train: false",
            self.rule,
            if self.l1 { "L1" } else { "L2" },
            self.iter_size,
            self.momentum(),
        )
    }
}

/// The batches that the solver's net sees: (x, t) of each pass.
fn batches(passes: usize) -> Vec<(Vec<f64>, Vec<f64>)> {
    let net = lgm_proto::parse_net(NET.as_bytes(), Path::new("net.prototxt")).unwrap();
    let options = Options { keep: Keep::All, ..Options::new(Phase::Train, 5) };
    let mut net = Net::new(&net.message, &net.positions, &common::registry(), &options).unwrap();
    let each = |pass: usize| {
        net.forward(&Step { seed: 5, iter: 0, batch: pass as u64 }).unwrap();
        (net.blob("x").unwrap().1, net.blob("t").unwrap().1)
    };
    (0..passes).map(each).collect()
}

/// A parameter's factor on the learning rate, from its norm, its gradient's and the rate.
type Local<'a> = &'a dyn Fn(f64, f64, f64) -> f64;

/// Weights and bias after training, from the start values `w`, with rates of their own if `local`.
fn reference(s: Settings, local: Option<Local<'_>>, mut w: Vec<f64>) -> Vec<f64> {
    let (delta, b2, rho, m) = (1e-3, 0.99, 0.8, s.momentum());
    let n = w.len();
    let (mut h1, mut h2) = (vec![0.0; n], vec![0.0; n]);
    let batches = batches(ITERATIONS * s.iter_size);
    for iter in 0..ITERATIONS {
        let mut g = vec![0.0; n];
        for (x, t) in &batches[iter * s.iter_size..(iter + 1) * s.iter_size] {
            for (x, t) in x.chunks(INPUTS).zip(t) {
                let y: f64 = x.iter().zip(&w).map(|(x, w)| x * w).sum::<f64>() + w[INPUTS];
                let e = (y - t) / ROWS as f64;
                x.iter().chain(&[1.0]).zip(&mut g).for_each(|(x, g)| *g += e * x);
            }
        }
        let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
        let clip = s.clip.map_or(1.0, |c| if norm > c { c / norm } else { 1.0 });
        let base = 0.05 * 0.5f64.powi(iter as i32 / 2);
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let scale = clip / s.iter_size as f64;
        let factor = |of: std::ops::Range<usize>, lr_mult: f64| {
            local.map_or(lr_mult, |local| local(norm(&w[of.clone()]), scale * norm(&g[of]), base))
        };
        let (weights, bias) = (base * factor(0..INPUTS, 1.0), base * factor(INPUTS..n, 2.0));
        for i in 0..n {
            let (rate, decay) = if i < INPUTS { (weights, 0.1) } else { (bias, 0.0) };
            let g = g[i] * clip / s.iter_size as f64 + decay * if s.l1 { w[i].signum() } else { w[i] };
            w[i] -= match s.rule {
                "SGD" => {
                    h1[i] = m * h1[i] + rate * g;
                    h1[i]
                }
                "Nesterov" => {
                    let old = h1[i];
                    h1[i] = m * h1[i] + rate * g;
                    (1.0 + m) * h1[i] - m * old
                }
                "AdaGrad" => {
                    h1[i] += g * g;
                    rate * g / (h1[i].sqrt() + delta)
                }
                "RMSProp" => {
                    h1[i] = rho * h1[i] + (1.0 - rho) * g * g;
                    rate * g / (h1[i].sqrt() + delta)
                }
                "AdaDelta" => {
                    h1[i] = m * h1[i] + (1.0 - m) * g * g;
                    let step = g * ((h2[i] + delta) / (h1[i] + delta)).sqrt();
                    h2[i] = m * h2[i] + (1.0 - m) * step * step;
                    rate * step
                }
                "Adam" => {
                    h1[i] = m * h1[i] + (1.0 - m) * g;
                    h2[i] = b2 * h2[i] + (1.0 - b2) * g * g;
                    let t = iter as i32 + 1;
                    rate * (1.0 - b2.powi(t)).sqrt() / (1.0 - m.powi(t)) * h1[i] / (h2[i].sqrt() + delta)
                }
                other => panic!("{other}"),
            };
        }
    }
    w
}

fn weights(solver: &lgm_solver::Solver) -> Vec<f64> {
    solver.net().layer_params("ip").unwrap().into_iter().flat_map(|(_, values)| values).collect()
}

#[test]
fn every_type_does_its_arithmetic() {
    arithmetic("");
}

#[test]
fn every_type_does_its_arithmetic_on_a_device() {
    common::on_a_device(|| arithmetic(""));
}

/// Iterations told blob by blob, all of them or in turn with those that are recorded, update as any others.
#[test]
fn every_type_does_its_arithmetic_on_a_device_that_tells_of_every_blob() {
    common::on_a_device(|| arithmetic(" debug_info: true display: 1"));
    common::on_a_device(|| arithmetic(" debug_info: true display: 2"));
}

fn arithmetic(more: &str) {
    let folder = Folder::new();
    for rule in lgm_solver::Rule::ALL.map(lgm_solver::Rule::name) {
        for l1 in [false, true] {
            for clip in [None, Some(0.5), Some(1e6)] {
                for iter_size in [1, 3] {
                    let settings = Settings { rule, l1, clip, iter_size };
                    let mut solver = folder.solver(&(settings.text() + more)).unwrap();
                    let start = weights(&solver);
                    let want = reference(settings, None, start.clone());
                    solver.solve(&mut ()).unwrap();
                    for (i, (got, want)) in weights(&solver).iter().zip(&want).enumerate() {
                        assert!(
                            (got - want).abs() < 2e-5 * (1.0 + want.abs()),
                            "{settings:?}{more} {i}: {got}, not {want}"
                        );
                    }
                    let moved = want.iter().zip(&start).map(|(w, s)| (w - s).abs()).fold(0.0, f64::max);
                    assert!(moved > 2e-3, "{settings:?}: nothing was learned");
                }
            }
        }
    }
}

#[test]
fn layerwise_rates_follow_their_formulas() {
    layerwise_rates();
    common::on_a_device(layerwise_rates);
}

fn layerwise_rates() {
    let folder = Folder::new();
    let quotient = |w: f64, g: f64| if w > 0.0 && g > 0.0 { w / g } else { 1.0 };
    let cases: [(&str, Local<'_>); 3] = [
        ("larc: true larc_eta: 0.5", &|w, g, _| 0.1 * 0.5 * quotient(w, g)),
        ("larc: true larc_eta: 0.05 larc_policy: 'clip'", &|w, g, rate| (0.1 * 0.05 * quotient(w, g) / rate).min(1.0)),
        ("local_lr_auto: true local_gw_ratio: 0.3", &|w, g, _| 0.3 * w / (g + 0.1 * w)),
    ];
    for (text, local) in cases {
        for (clip, iter_size) in [(None, 1), (Some(0.5), 3)] {
            let settings = Settings { rule: "SGD", l1: false, clip, iter_size };
            let mut solver = folder.solver(&format!("{} {text}", settings.text())).unwrap();
            let start = weights(&solver);
            let want = reference(settings, Some(local), start.clone());
            let plain = reference(settings, None, start);
            solver.solve(&mut ()).unwrap();
            for (i, (got, want)) in weights(&solver).iter().zip(&want).enumerate() {
                assert!((got - want).abs() < 5e-5 * (1.0 + want.abs()), "{settings:?} {text} {i}: {got}, not {want}");
            }
            assert!(want.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-3), "{text} changes nothing");
        }
    }
    let zero = "lr_mult: 2 decay_mult: 0";
    let text = Settings { rule: "SGD", l1: false, clip: None, iter_size: 1 }.text();
    let (solver, _) = folder.train(&(text.replace(zero, "lr_mult: 0") + " larc: true"));
    assert_eq!(weights(&solver)[INPUTS], 0.5);
}

/// A warm-up changes SGD's momentum with the rate, on a device too.
#[test]
fn a_warm_up_corrects_the_momentum() {
    let folder = Folder::new();
    let text = Settings { rule: "SGD", l1: false, clip: None, iter_size: 1 }.text();
    let trained = |more: &str| weights(&folder.train(&(text.clone() + more)).0);
    let warm = trained(" warmup_iter: 4 warmup_start_lr: 0.01");
    assert_ne!(warm, trained(""));
    common::on_a_device(|| {
        for (warm, on_device) in warm.iter().zip(trained(" warmup_iter: 4 warmup_start_lr: 0.01")) {
            assert!((warm - on_device).abs() < 1e-5, "{warm} and on a device {on_device}");
        }
    });
}

#[test]
fn settings_of_forks_that_cannot_work_are_refused() {
    let folder = Folder::new();
    let text = |rule| Settings { rule, l1: false, clip: None, iter_size: 1 }.text();
    for (rule, more, parts) in [
        ("Adam", "larc: true", ["'larc'", "works with type \"SGD\" only, found \"Adam\""]),
        ("Nesterov", "momentum_policy: 'poly'", ["'momentum_policy'", "works with type \"SGD\" only"]),
        ("SGD", "momentum_policy: 'ploy'", ["unknown value 'ploy'", "did you mean 'poly'?"]),
        ("SGD", "larc: true larc_policy: 'clamp'", ["unknown value 'clamp'", "scale, clip"]),
        ("SGD", "larc: true local_lr_auto: true", ["'larc'", "take one out"]),
        ("SGD", "larc: true larc_eta: -1", ["larc_eta", "must not be negative, found -1"]),
    ] {
        let error = folder.solver(&format!("{} {more}", text(rule))).err().unwrap().to_string();
        says(&error, &parts);
    }
    let stages = text("SGD").replace("'step' stepsize: 2", "'multifixed' stagelr: 0.1");
    says(&folder.solver(&stages).err().unwrap().to_string(), &["'stagelr'", "found 1 stagelr and 0 stageiter"]);
}

/// Clipping looks at the gradients summed over sub-batches and before decay, and says what it does.
#[test]
fn clipping_is_logged() {
    clipping("");
}

/// On a device, of iterations that are displayed.
#[test]
fn clipping_is_logged_on_a_device() {
    common::on_a_device(|| clipping(" display: 2"));
}

fn clipping(more: &str) {
    let folder = Folder::new();
    let settings = Settings { rule: "SGD", l1: false, clip: Some(0.5), iter_size: 3 };
    let (_, log) = folder.train(&(settings.text() + more));
    let line = log.iter().find(|l| l.starts_with("Gradient clipping")).unwrap_or_else(|| panic!("{log:#?}"));
    says(line, &["Gradient clipping: scaling down gradients (L2 norm ", " > 0.5) by scale factor "]);
    let (_, log) = folder.train(&Settings { clip: None, ..settings }.text());
    assert!(!log.iter().any(|l| l.contains("clipping")));
}

#[test]
fn rates_and_decay_of_zero_leave_a_parameter_alone() {
    zeros();
    common::on_a_device(zeros);
}

fn zeros() {
    let folder = Folder::new();
    for rule in lgm_solver::Rule::ALL.map(lgm_solver::Rule::name) {
        let settings = Settings { rule, l1: false, clip: None, iter_size: 1 };
        let text = settings.text().replace("lr_mult: 2 decay_mult: 0", "lr_mult: 0 decay_mult: 1");
        let (solver, _) = folder.train(&text);
        assert_eq!(weights(&solver)[INPUTS], 0.5, "{rule}");
    }
}
