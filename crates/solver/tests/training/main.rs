//! The loop: tests and what is logged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod snapshots;
mod warnings;

use common::{Folder, params};
use lgm_net::six_digits;
use lgm_testkit::says;

/// Loss and score are functions of the iteration: y = (w + 1)·x, x constant, w learned.
const NET: &str = "
    name: 'tiny'
    layer { name: 'x' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 2 dim: 1 } data_filler { value: 1 } } }
    layer { name: 't' type: 'DummyData' top: 't' dummy_data_param { shape { dim: 2 dim: 1 } data_filler { value: 3 } } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y' inner_product_param { num_output: 1 bias_term: false } }
    layer { name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 't' top: 'loss' loss_weight: 2 }
    layer { name: 'score' type: 'Reduction' bottom: 'y' top: 'score' reduction_param { operation: MEAN } include { phase: TEST } }
    layer { name: 'staged' type: 'Power' bottom: 'x' top: 'staged' include { phase: TEST stage: 'extra' } }";

fn text(more: &str) -> String {
    format!("net_param {{ {NET} }} base_lr: 0.25 lr_policy: 'fixed' random_seed: 1 snapshot_prefix: 'DIR/out' {more}")
}

/// w goes 0, 1.5, 2.25, 2.625 …: the error 3 − w halves in each iteration. The loss is 2 · ½ · (3 − w)².
fn loss(iter: i32) -> f64 {
    9.0 / 4f64.powi(iter)
}

fn lines<'a>(log: &'a [String], start: &str) -> Vec<&'a str> {
    log.iter().map(String::as_str).filter(|l| l.starts_with(start)).collect()
}

#[test]
fn iterations_are_logged_in_caffes_words() {
    let folder = Folder::new();
    let (solver, log) = folder.train(&text("display: 2 max_iter: 4 snapshot_after_train: false"));
    assert_eq!(solver.iter(), 4);
    let told = lines(&log, "Iteration ");
    let loss_of = |i: i32| six_digits(loss(i));
    assert_eq!(told.len(), 5, "{told:?}");
    for (k, i) in [(0, 0), (2, 2)] {
        assert!(told[k].starts_with(&format!("Iteration {i} (")), "{}", told[k]);
        assert!(told[k].ends_with(&format!("s/2 iters), loss = {}", loss_of(i))), "{}", told[k]);
        assert_eq!(told[k + 1], format!("Iteration {i}, lr = 0.25"));
    }
    assert_eq!(told[4], format!("Iteration 4, loss = {}", loss_of(4)));
    let outputs = lines(&log, "    Train net output #");
    assert_eq!(outputs[0], "    Train net output #0: loss = 4.5 (* 2 = 9 loss)");
    assert_eq!(outputs.len(), 2);
    for line in ["Solving tiny", "Learning Rate Policy: fixed", "Optimization Done."] {
        assert!(log.iter().any(|l| l == line), "{line}");
    }
    assert!(folder.files("out").is_empty());
}

#[test]
fn the_loss_told_is_the_mean_of_the_last_ones() {
    let folder = Folder::new();
    let (_, log) = folder.train(&text("display: 1 average_loss: 3 max_iter: 6 snapshot_after_train: false"));
    let told: Vec<f64> = lines(&log, "Iteration ")
        .iter()
        .filter_map(|l| l.split("loss = ").nth(1))
        .map(|v| v.parse().unwrap())
        .collect();
    assert_eq!(told.len(), 7);
    for (i, told) in told.iter().enumerate() {
        let first = i.saturating_sub(2);
        let mean = (first..=i).map(|k| loss(k as i32)).sum::<f64>() / (i - first + 1) as f64;
        assert!((told - mean).abs() < 1e-4 * mean, "iteration {i}: {told}, not {mean}");
    }
}

/// A run resumed from Caffe's files alone, at an iteration that is no multiple of the window.
#[test]
fn the_mean_starts_anew_where_it_is_not_known() {
    let folder = Folder::new();
    let settings = "display: 1 average_loss: 3 max_iter: 9 snapshot: 4";
    folder.train(&text(settings));
    std::fs::remove_file(folder.path("out_iter_4.solverstate.lgm")).unwrap();
    let (_, log) = folder.resume(&text(settings), "out_iter_4.solverstate");
    for (i, line) in (4..).zip(lines(&log, "Iteration ").iter().filter_map(|l| l.split("loss = ").nth(1))) {
        let first = (i - 2).max(4);
        let mean = (first..=i).map(loss).sum::<f64>() / (i - first + 1) as f64;
        let told: f64 = line.parse().unwrap();
        assert!((told - mean).abs() < 1e-3 * mean, "iteration {i}: {told}, not {mean}");
    }
}

#[test]
fn tests_come_at_their_interval_and_at_the_end() {
    let folder = Folder::new();
    let (_, log) = folder.train(&text("test_iter: 3 test_interval: 2 max_iter: 4 snapshot_after_train: false"));
    assert_eq!(
        lines(&log, "Iteration "),
        ["Iteration 0, Testing net (#0)", "Iteration 2, Testing net (#0)", "Iteration 4, Testing net (#0)"]
    );
    let outputs = lines(&log, "    Test net output #");
    let at = |i: i32| {
        let (l, w) = (loss(i) / 2.0, 3.0 - 3.0 / 2f64.powi(i));
        [
            format!("    Test net output #0: loss = {} (* 2 = {} loss)", six_digits(l), six_digits(2.0 * l)),
            format!("    Test net output #1: score = {}", six_digits(w)),
        ]
    };
    assert_eq!(outputs, [at(0), at(2), at(4)].concat());
    let (_, log) = folder.train(&text(
        "test_iter: 3 test_interval: 2 test_initialization: false max_iter: 3 test_compute_loss: true snapshot_after_train: false",
    ));
    assert_eq!(lines(&log, "Iteration "), ["Iteration 2, Testing net (#0)"]);
    assert_eq!(lines(&log, "Test loss: "), [format!("Test loss: {}", six_digits(loss(2)))]);
}

#[test]
fn several_test_nets_have_their_own_states_and_sources() {
    let folder = Folder::new();
    let own = NET.replace("value: 3", "value: 5");
    folder.write("own.prototxt", &own);
    let settings = "test_iter: [1, 2, 1, 1] test_interval: 5 max_iter: 1 snapshot_after_train: false \
        test_net_param { name: 'inline' layer { name: 'k' type: 'DummyData' top: 'k' dummy_data_param { shape { dim: 1 } data_filler { value: 7 } } } } \
        test_net: 'DIR/own.prototxt' \
        test_state { } test_state { } test_state { stage: 'extra' } test_state { level: 1 }";
    let (_, log) = folder.train(&text(settings));
    let said: Vec<_> = log.iter().filter(|l| l.starts_with("Creating test net")).cloned().collect();
    let file = folder.at("own.prototxt");
    assert_eq!(
        said,
        [
            "Creating test net (#0) specified by test_net_param".to_string(),
            format!("Creating test net (#1) specified by test_net file: {file}"),
            "Creating test net (#2) specified by net_param".into(),
            "Creating test net (#3) specified by net_param".into(),
        ]
    );
    let outputs = lines(&log, "    Test net output #");
    let (mine, other) = ("#0: loss = 4.5 (* 2 = 9 loss)", "#0: loss = 12.5 (* 2 = 25 loss)");
    let want = [
        "#0: k = 7",
        other,
        "#1: score = 0",
        mine,
        "#1: score = 0",
        "#2: staged = 1",
        "#3: staged = 1",
        mine,
        "#1: score = 0",
    ];
    assert_eq!(outputs, want.map(|w| format!("    Test net output {w}")));
}

/// A test net computes with the training net's own memory, statistics of BatchNorm included.
#[test]
fn test_nets_share_the_training_nets_parameters() {
    let folder = Folder::new();
    let net = "
        layer { name: 'x' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 8 dim: 2 } data_filler { type: 'gaussian' mean: 5 std: 3 } } }
        layer { name: 'bn' type: 'BatchNorm' bottom: 'x' top: 'y' }
        layer { name: 'ip' type: 'InnerProduct' bottom: 'y' top: 'z' inner_product_param { num_output: 1 weight_filler { type: 'gaussian' } } }
        layer { name: 'bn2' type: 'BatchNorm' bottom: 'z' top: 'z' include { phase: TRAIN } }
        layer { name: 'loss' type: 'Power' bottom: 'z' top: 'loss' power_param { power: 2 } loss_weight: 1 include { phase: TRAIN } }
        layer { name: 'mean' type: 'Reduction' bottom: 'y' top: 'mean' reduction_param { operation: ASUM coeff: 0.0625 } include { phase: TEST } }
        layer { name: 'z' type: 'Silence' bottom: 'z' include { phase: TEST } }";
    let text = format!(
        "net_param {{ {net} }} base_lr: 0.01 lr_policy: 'fixed' random_seed: 1 test_iter: 4 test_interval: 40 max_iter: 40 \
         snapshot_after_train: false"
    );
    let (solver, log) = folder.train(&text);
    let statistics = solver.net().layer_params("bn").unwrap();
    assert!(statistics[2].1[0] > 10.0, "the moving average's weight after 40 iterations");
    let means: Vec<f64> =
        lines(&log, "    Test net output #").iter().map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    // Untrained statistics leave 5 ± 3 as it is or blow it up; trained ones make it 0 ± 1, of mean absolute value 0.8.
    assert!(!(0.5..1.1).contains(&means[0]) && (0.5..1.1).contains(&means[1]), "{means:?}");
}

#[test]
fn the_same_seed_gives_the_same_run_and_none_a_new_one() {
    let folder = Folder::new();
    let net = NET.replace("bias_term: false", "bias_term: false weight_filler { type: 'gaussian' }");
    let run =
        |seed: &str| params(&folder.train(&text("max_iter: 2").replace(NET, &net).replace("random_seed: 1", seed)).0);
    assert_eq!(run("random_seed: 1"), run("random_seed: 1"));
    assert_ne!(run("random_seed: 1"), run("random_seed: 2"));
    assert_ne!(run(""), run(""));
}

#[test]
fn multistep_tells_of_its_steps() {
    let folder = Folder::new();
    let settings = "stepvalue: [1, 3] gamma: 0.5 display: 1 max_iter: 5 snapshot_after_train: false";
    let (_, log) = folder.train(&text(settings).replace("'fixed'", "'multistep'"));
    let status = lines(&log, "MultiStep Status");
    assert_eq!(status, ["MultiStep Status: Iteration 1, step = 1", "MultiStep Status: Iteration 3, step = 2"]);
    let rates: Vec<_> = log.iter().filter_map(|l| l.split("lr = ").nth(1)).collect();
    assert_eq!(rates, ["0.25", "0.125", "0.125", "0.0625", "0.0625"]);
}

#[test]
fn debug_info_tells_of_every_blob() {
    let folder = Folder::new();
    let (_, log) = folder.train(&text("debug_info: true display: 1 max_iter: 1 snapshot_after_train: false"));
    for line in [
        "    [Forward] Layer x, top blob x data: 1",
        "    [Forward] Layer loss, top blob loss data: 4.5",
        "    [Forward] Layer ip, param blob 0 data: 0",
        "    [Backward] Layer loss, bottom blob y diff: 3",
        "    [Backward] Layer ip, param blob 0 diff: 6",
        "    [Backward] All net params (data, diff): L1 norm = (0, 6); L2 norm = (0, 6)",
        "    [Update] Layer ip, param 0 data: 0; diff: 6",
    ] {
        assert!(log.iter().any(|l| l == line), "{line} is not among {log:#?}");
    }
}

/// Test nets too, in every pass; and one of no passes is built and not heard of again.
#[test]
fn debug_info_tells_of_test_nets() {
    let folder = Folder::new();
    let settings = "debug_info: true max_iter: 1 snapshot_after_train: false test_interval: 1 test_iter:";
    let forward = |passes: usize| {
        let (_, log) = folder.train(&text(&format!("{settings} {passes}")));
        assert!(log.iter().any(|l| l == "Iteration 1, Testing net (#0)"), "{log:#?}");
        let outputs = log.iter().filter(|l| l.contains("Test net output")).count();
        assert_eq!(outputs > 0, passes > 0, "{log:#?}");
        log.iter().filter(|l| l.contains("[Forward] Layer x, top blob x")).count()
    };
    // Before the first iteration and after the last.
    assert_eq!((forward(0), forward(2)), (0, 4));
}

/// Layers that are otherwise computed together are told of one by one.
#[test]
fn debug_info_tells_of_layers_that_could_be_fused() {
    let folder = Folder::new();
    let layers = "layer { name: 'bn' type: 'BatchNorm' bottom: 'x' top: 'n' }
        layer { name: 'scale' type: 'Scale' bottom: 'n' top: 's' } layer { name: 'relu' type: 'ReLU' bottom: 's' top: 's' }
        layer { name: 'ip' type: 'InnerProduct' bottom: 's'";
    let net = NET.replace("layer { name: 'ip' type: 'InnerProduct' bottom: 'x'", layers);
    assert_ne!(net, NET);
    let settings = "display: 1 max_iter: 1 snapshot_after_train: false";
    let (_, log) = folder.train(&text(settings).replace(NET, &net));
    assert!(log.iter().any(|l| l.ends_with("is computed together with relu")), "{log:#?}");
    let (_, log) = folder.train(&text(&format!("{settings} debug_info: true")).replace(NET, &net));
    for (layer, blob) in [("bn", "n"), ("scale", "s"), ("relu", "s")] {
        let line = format!("    [Forward] Layer {layer}, top blob {blob} data: ");
        assert!(log.iter().any(|l| l.starts_with(&line)), "{line} is not among {log:#?}");
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let folder = Folder::new();
    let table: &[(&str, &[&str])] = &[
        (
            "type: 'adam'",
            &[
                "solver.prototxt:8:198: ",
                "solver field 'type': unknown value 'adam'",
                "did you mean 'Adam'?",
                "there are SGD",
            ],
        ),
        ("max_iter: -1", &["max_iter must not be negative, found -1"]),
        ("iter_size: 0", &["'iter_size': must be at least 1, found 0"]),
        ("average_loss: 0", &["'average_loss': must be at least 1, found 0"]),
        ("type: 'AdaGrad' momentum: 0.9", &["'momentum': momentum cannot be used with AdaGrad, found 0.9"]),
        ("type: 'RMSProp' rms_decay: 1.5", &["rms_decay must be at least 0 and below 1, found 1.5"]),
        ("regularization_type: 'L3'", &["'regularization_type': unknown value 'L3'", "there are L1, L2"]),
        ("test_iter: 2", &["'test_interval'", "must be positive"]),
        ("test_iter: -1 test_interval: 1", &["'test_iter': must not be negative, found -1"]),
        ("test_iter: 1 test_interval: 1 test_state { } test_state { }", &["'test_state'", "expected 1, found 2"]),
        ("test_interval: 1 test_net: 'none'", &["none: cannot read"]),
        (
            "net: 'DIR/none'",
            &["'net': give the training net with exactly one of net, net_param, train_net, train_net_param"],
        ),
    ];
    for (more, parts) in table {
        says(&folder.error(&text(&format!("{more} snapshot_after_train: false"))), parts);
    }
    let policy = |p: &str| folder.error(&text("snapshot_after_train: false").replace("lr_policy: 'fixed'", p));
    says(&policy(""), &["'lr_policy': is missing; for a constant rate say \"fixed\""]);
    says(&policy("lr_policy: 'stpe'"), &["'lr_policy': unknown value 'stpe'", "did you mean 'step'?"]);
    says(&policy("lr_policy: 'step'"), &["'stepsize'", "needs a positive stepsize, found 0"]);
    says(&policy("lr_policy: 'multistep' stepvalue: [3, 2]"), &["'stepvalue': must ascend, found 3 before 2"]);
    // A net given inside the solver is blamed by its place there.
    let error = folder.error(
        &text("snapshot_after_train: false")
            .replace("'Reduction'", "'Reductoin'")
            .replace("phase: TEST", "phase: TRAIN"),
    );
    says(&error, &["solver.prototxt:7:5: layer 'score' (Reductoin)", "did you mean 'Reduction'?"]);
}

/// Layers that make a blob of rows of numbers, in TEST.
fn rows(name: &str, rows: &[&[f64]]) -> String {
    let scalar = "shape { dim: 1 dim: 1 dim: 1 dim: 1 }";
    let each = |(r, row): (usize, &&[f64])| {
        let list = |of: &str, f: &dyn Fn(usize) -> String| -> String {
            (0..row.len()).map(|i| format!("{of}: {} ", f(i))).collect()
        };
        let number = |i: usize| format!("'{name}{r}_{i}'");
        let (tops, bottoms) = (list("top", &number), list("bottom", &number));
        let fillers = list("data_filler", &|i| format!("{{ value: {} }}", row[i]));
        format!(
            "layer {{ name: '{name}{r}n' type: 'DummyData' {tops} dummy_data_param {{ {scalar} {fillers} }} include {{ phase: TEST }} }}
             layer {{ name: '{name}{r}' type: 'Concat' {bottoms} top: '{name}{r}' concat_param {{ axis: 3 }} include {{ phase: TEST }} }}"
        )
    };
    let bottoms: String = (0..rows.len()).map(|r| format!("bottom: '{name}{r}' ")).collect();
    let layers: String = rows.iter().enumerate().map(each).collect();
    format!(
        "{layers} layer {{ name: '{name}' type: 'Concat' {bottoms} top: '{name}' concat_param {{ axis: 2 }} include {{ phase: TEST }} }}"
    )
}

#[test]
fn detections_are_told_by_their_mean_average_precision() {
    let folder = Folder::new();
    let net = |classes: usize| {
        let found = rows("found", &[&[0.0, 1.0, 0.9, 0.0, 0.0, 0.5, 0.5], &[1.0, 1.0, 0.8, 0.6, 0.0, 1.0, 0.5]]);
        let truth =
            rows("truth", &[&[0.0, 1.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0], &[1.0, 1.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0]]);
        format!(
            "name: 'found' {found} {truth}
             layer {{ name: 'x' type: 'DummyData' top: 'x' dummy_data_param {{ shape {{ dim: 1 dim: 1 }} data_filler {{ value: 1 }} }} }}
             layer {{ name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y' inner_product_param {{ num_output: 1 }} }}
             layer {{ name: 'still' type: 'Silence' bottom: 'y' include {{ phase: TEST }} }}
             layer {{ name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 'x' top: 'loss' include {{ phase: TRAIN }} }}
             layer {{ name: 'e' type: 'DetectionEvaluate' bottom: 'found' bottom: 'truth' top: 'detection_eval'
                      detection_evaluate_param {{ num_classes: {classes} }} include {{ phase: TEST }} }}"
        )
    };
    let text = |net: &str, more: &str| {
        format!(
            "net_param {{ {net} }} base_lr: 0.1 lr_policy: 'fixed' random_seed: 1 max_iter: 0 test_iter: 3 test_interval: 1
             snapshot_after_train: false eval_type: 'detection' {more}"
        )
    };
    // One of two objects is found, with one mistake: a precision of 1 up to a recall of one half.
    let told = |classes: usize, more: &str| {
        let (_, log) = folder.train(&text(&net(classes), more));
        let is_told =
            |l: &&String| ["    Test net output", "class", "'detection_eval'"].iter().any(|start| l.starts_with(start));
        log.iter().filter(is_told).cloned().collect::<Vec<_>>()
    };
    assert_eq!(told(2, ""), ["    Test net output #0: detection_eval = 0.5"]);
    let eleven = ["class1: 0.545455", "    Test net output #0: detection_eval = 0.545455"];
    assert_eq!(told(2, "show_per_class_result: true ap_version: '11point'"), eleven);
    let of_two = ["'detection_eval': nothing was detected of class 2", "    Test net output #0: detection_eval = 0.25"];
    assert_eq!(told(3, "ap_version: 'MaxIntegral'"), of_two);
    says(&folder.error(&text(NET, "snapshot_prefix: 'DIR/out'")), &["eval_type", "rows of 5", "'loss'"]);
    says(&folder.error(&text(&net(2), "ap_version: '11points'")), &["ap_version", "did you mean '11point'"]);
    let misspelt = text(&net(2), "").replace("'detection'", "'detect'");
    says(&folder.error(&misspelt), &["eval_type", "classification, detection"]);
}
