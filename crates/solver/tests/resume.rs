//! A run resumed from a snapshot equals the run that never stopped, to the bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{Folder, finish, logged, params, registry, results};
use lgm_core::{ChannelsLast, Element, Storage};
use lgm_proto::SolverState;
use lgm_solver::{Action, Outcome, Solver, Watch};
use lgm_testkit::says;

/// Everything that has a position or draws numbers: shuffled HDF5 with crops and mirrors, LMDB with the same, random
/// dummy data, dropout, statistics of BatchNorm, a margin that grows, hidden states that go on from pass to pass; three losses.
const NET: &str = "
    layer { name: 'data' type: 'HDF5Data' top: 'data' top: 'label' include { phase: TRAIN }
            hdf5_data_param { source: 'DIR/train.txt' batch_size: 4 shuffle: true crop_size: 4 mirror: true scale: 2 mean_value: 0.1 } }
    layer { name: 'data' type: 'HDF5Data' top: 'data' top: 'label' include { phase: TEST }
            hdf5_data_param { source: 'DIR/test.txt' batch_size: 3 shuffle: true crop_size: 4 } }
    layer { name: 'db' type: 'Data' top: 'db' top: 'dblabel' include { phase: TRAIN }
            transform_param { scale: 0.004 crop_size: 3 mirror: true } data_param { source: 'DIR/db' batch_size: 4 backend: LMDB } }
    layer { name: 'noise' type: 'DummyData' top: 'noise' include { phase: TRAIN }
            dummy_data_param { shape { dim: 4 dim: 6 } data_filler { type: 'gaussian' std: 0.3 } } }
    layer { name: 'conv' type: 'Convolution' bottom: 'data' top: 'conv'
            convolution_param { num_output: 3 kernel_size: 2 weight_filler { type: 'msra' } } }
    layer { name: 'bn' type: 'BatchNorm' bottom: 'conv' top: 'conv' batch_norm_param { moving_average_fraction: 0.9 } }
    layer { name: 'scale' type: 'Scale' bottom: 'conv' top: 'conv' scale_param { bias_term: true } }
    layer { name: 'relu' type: 'ReLU' bottom: 'conv' top: 'conv' }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'conv' top: 'ip' param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
            inner_product_param { num_output: 6 weight_filler { type: 'xavier' } } }
    layer { name: 'sum' type: 'Eltwise' bottom: 'ip' bottom: 'noise' top: 'features' include { phase: TRAIN } }
    layer { name: 'same' type: 'Eltwise' bottom: 'ip' bottom: 'ip' top: 'features' include { phase: TEST }
            eltwise_param { coeff: [0.5, 0.5] } }
    layer { name: 'drop' type: 'Dropout' bottom: 'features' top: 'features' }
    layer { name: 'lgm' type: 'LGMLoss' bottom: 'features' bottom: 'label' top: 'loss' top: 'logits'
            lgm_loss_param { num_output: 3 center_coef: 0.1 weight_filler { type: 'gaussian' } update_sigma: true
                             margin_mul { policy: ADDUP value: 0 gamma: 0.25 step: 2 max: 1 }
                             center_coef_ramp { policy: ADDUP gamma: 0.25 step: 2 } } }
    layer { name: 'acc' type: 'Accuracy' bottom: 'logits' bottom: 'label' top: 'acc' include { phase: TEST } }
    layer { name: 'dbip' type: 'InnerProduct' bottom: 'db' top: 'dbip' include { phase: TRAIN }
            inner_product_param { num_output: 3 weight_filler { type: 'xavier' } } }
    layer { name: 'dbloss' type: 'SoftmaxWithLoss' bottom: 'dbip' bottom: 'dblabel' top: 'dbloss' include { phase: TRAIN } }
    layer { name: 'sequence' type: 'DummyData' top: 'sequence' top: 'cont'
            dummy_data_param { shape { dim: 3 dim: 2 dim: 4 } shape { dim: 3 dim: 2 }
                               data_filler { type: 'gaussian' } data_filler { value: 1 } } }
    layer { name: 'lstm' type: 'LSTM' bottom: 'sequence' bottom: 'cont' top: 'lstm'
            recurrent_param { num_output: 3 weight_filler { type: 'xavier' } } }
    layer { name: 'lstmloss' type: 'Reduction' bottom: 'lstm' top: 'lstmloss' loss_weight: 0.1 reduction_param { operation: SUMSQ } }";

const LAST: i32 = 8;

fn folder() -> Folder {
    let folder = Folder::new();
    // No number of rows is a multiple of a batch: positions run through files and epochs.
    folder.images("a", 7);
    folder.images("b", 6);
    folder.write("train.txt", &format!("{}\n{}\n", folder.at("a.h5"), folder.at("b.h5")));
    folder.images("test", 5);
    folder.lmdb("db", 9);
    folder
}

/// A solver with `more` that snapshots under a prefix after every iteration.
fn solver(prefix: &str, more: &str) -> String {
    let momentum = if more.contains("AdaGrad") || more.contains("RMSProp") { "" } else { "momentum: 0.9" };
    format!(
        "net_param {{ {NET} }} test_iter: 2 test_interval: 3 {momentum} base_lr: 0.02 lr_policy: 'multistep' gamma: 0.5 \
         stepvalue: [2, 5] weight_decay: 0.01 iter_size: 2 average_loss: 3 display: 1 snapshot: 1 max_iter: {LAST} \
         snapshot_prefix: 'DIR/{prefix}' {more}"
    )
}

fn extension(more: &str) -> &'static str {
    if more.contains("HDF5") { ".h5" } else { "" }
}

/// Checks that what two runs left at the end is the same: parameters, histories, positions.
fn same_files(folder: &Folder, a: &str, b: &str, more: &str) {
    let (a, b) = (format!("{a}_iter_{LAST}"), format!("{b}_iter_{LAST}"));
    let read = |name: String| std::fs::read(folder.path(&name)).unwrap();
    let extension = extension(more);
    let positions = |name: &str| String::from_utf8(read(format!("{name}.solverstate{extension}.lgm"))).unwrap();
    assert_eq!(positions(&a), positions(&b), "{more}");
    if extension.is_empty() {
        assert!(read(format!("{a}.caffemodel")) == read(format!("{b}.caffemodel")), "{more}: weights differ");
        let state = |name: &str| -> SolverState {
            let state: SolverState = lgm_proto::read_binary(folder.path(&format!("{name}.solverstate"))).unwrap();
            SolverState { learned_net: None, ..state }
        };
        assert!(state(&a) == state(&b), "{more}: states differ");
    }
}

/// Resumes from snapshots of a run and compares what follows.
fn resumes(more: &str, from: impl IntoIterator<Item = i32>) {
    let folder = folder();
    let (whole, log) = folder.train(&solver("whole", more));
    assert!(log.iter().any(|l| l.starts_with("mul_margin changed to 0.75")), "the margin grows beyond every snapshot");
    let extension = extension(more);
    for k in from {
        let state = format!("whole_iter_{k}.solverstate{extension}");
        let (resumed, again) = folder.resume(&solver("again", more), &state);
        assert!(params(&whole) == params(&resumed), "{more}: resumed from {k}, weights differ");
        let (want, got) = (results(&log, k), results(&again, k));
        assert!(want.len() > 5 || k == LAST, "{want:?}");
        assert_eq!(want, got, "{more}: resumed from {k}");
        if k < LAST {
            same_files(&folder, "whole", "again", more);
        }
    }
}

#[test]
fn from_every_snapshot() {
    resumes("random_seed: 3", 1..=LAST);
}

/// What a recurrent layer carries from pass to pass is in neither of Caffe's files.
#[test]
fn hidden_states_are_in_no_file_of_caffes() {
    let folder = folder();
    folder.train(&solver("whole", "random_seed: 3"));
    let weights = lgm_proto::read_weights(folder.path("whole_iter_2.caffemodel")).unwrap();
    let lstm = weights.layers.iter().find(|layer| layer.name == "lstm").unwrap();
    assert_eq!(lstm.blobs.len(), 3);
    let state: SolverState = lgm_proto::read_binary(folder.path("whole_iter_2.solverstate")).unwrap();
    let learned: usize = weights.layers.iter().map(|layer| layer.blobs.len()).sum();
    assert_eq!(state.history.len(), learned);
    let extra = std::fs::read_to_string(folder.path("whole_iter_2.solverstate.lgm")).unwrap();
    assert_eq!(extra.matches("carried.1.5").count(), 2, "of the training net and of the test net");
}

/// On a device as on the host; a small window of losses lies on the device between displays.
#[test]
fn from_every_snapshot_on_a_device() {
    common::on_a_device(|| {
        resumes("random_seed: 3", [1, 2, 7]);
        resumes("random_seed: 3 type: 'Adam' snapshot_format: HDF5", [3]);
    });
}

/// What is stored in fewer bits is made anew in every pass: nothing of it needs to be in a snapshot.
#[test]
fn from_snapshots_on_a_device_that_stores_bf16() {
    for channels_last in [ChannelsLast::Never, ChannelsLast::Always] {
        common::on_a_device_storing(Storage { element: Element::Bf16, channels_last }, || {
            resumes("random_seed: 3", [1, 4]);
        });
    }
}

/// A net that learns, with bf16 between its layers as in single precision: losses fall together and stay near.
#[test]
fn training_in_bf16_follows_single_precision() {
    let folder = folder();
    let settings = solver("bf16", "random_seed: 3")
        .replace("snapshot: 1 max_iter: 8", "snapshot: 0 snapshot_after_train: false max_iter: 60")
        .replace("stepvalue: [2, 5]", "stepvalue: 50")
        .replace("policy: ADDUP value: 0 gamma: 0.25 step: 2 max: 1", "value: 0.1");
    assert!(settings.contains("max_iter: 60") && settings.contains("stepvalue: 50"));
    let losses = |log: &[String]| -> Vec<f64> {
        let shown = log.iter().filter_map(|l| l.strip_prefix("Iteration ")?.rsplit_once("loss = "));
        shown.map(|(_, loss)| loss.parse().unwrap()).collect()
    };
    let want = losses(&folder.train(&settings).1);
    let last = |losses: &[f64]| losses[losses.len() - 10..].iter().sum::<f64>() / 10.0;
    assert!(want.len() >= 60 && last(&want) < 0.8 * want[0], "{want:?}");
    for channels_last in [ChannelsLast::Never, ChannelsLast::Always] {
        common::on_a_device_storing(Storage { element: Element::Bf16, channels_last }, || {
            let (_, log) = folder.train(&settings);
            assert!(log.iter().any(|l| l.starts_with("Blobs between layers in bf16")), "{log:?}");
            let got = losses(&log);
            assert_eq!(got.len(), want.len());
            assert!(got.iter().all(|loss| loss.is_finite()), "{got:?}");
            assert!(got[..5].iter().zip(&want).all(|(g, w)| (g - w).abs() < 0.05 * w), "{got:?} and {want:?}");
            assert!((last(&got) - last(&want)).abs() < 0.1 * want[0], "{got:?} and {want:?}");
            assert!(got != want, "nothing was rounded");
        });
    }
}

/// A run may go on elsewhere: what it ends with differs by rounding alone, and so do the losses it shows.
#[test]
fn moving_between_host_and_device() {
    let folder = folder();
    // Shown now and then, so that losses stay on the device meanwhile.
    let settings = |prefix: &str| solver(prefix, "random_seed: 3").replace("display: 1", "display: 3");
    let (host, want) = folder.train(&settings("host"));
    let near = |other: &Solver, what: &str| {
        for ((name, a), (_, b)) in params(&host).into_iter().zip(params(other)) {
            for (a, b) in a.concat().into_iter().zip(b.concat()) {
                let (a, b) = (f64::from_bits(a), f64::from_bits(b));
                assert!((a - b).abs() <= 1e-3 * (1.0 + a.abs()), "{what}: {name}: {a} and {b}");
            }
        }
    };
    let losses = |log: &[String]| -> Vec<f64> {
        let shown = log.iter().filter_map(|l| l.strip_prefix("Iteration ")?.rsplit_once("loss = "));
        shown.map(|(_, loss)| loss.parse().unwrap()).collect()
    };
    common::on_a_device(|| {
        let (device, got) = folder.train(&settings("device"));
        near(&device, "on the device");
        let (want, got) = (losses(&want), losses(&got));
        assert!(want.len() >= 3 && want.len() == got.len(), "{want:?} and {got:?}");
        want.iter().zip(&got).for_each(|(w, g)| assert!((w - g).abs() < 1e-3 * w.abs(), "{want:?} and {got:?}"));
        near(&folder.resume(&settings("again"), "host_iter_4.solverstate").0, "from the host to the device");
    });
    if !folder.files("device_iter_4.solverstate").is_empty() {
        near(&folder.resume(&settings("again"), "device_iter_4.solverstate").0, "from the device to the host");
    }
}

/// The run draws a seed; the snapshot keeps it.
#[test]
fn without_a_seed_in_the_prototxt() {
    resumes("snapshot_format: HDF5", [3, 4]);
    resumes("", [1, 5]);
}

#[test]
fn of_every_solver_type_and_format() {
    for rule in lgm_solver::Rule::ALL.map(lgm_solver::Rule::name) {
        for (format, from) in [("HDF5", 2), ("BINARYPROTO", 5)] {
            resumes(&format!("random_seed: 3 type: '{rule}' snapshot_format: {format} delta: 1e-6"), [from]);
        }
    }
}

/// Does one thing at one of the moments a solver asks, and counts them.
struct At {
    moment: usize,
    action: Action,
    asked: usize,
}

impl At {
    fn new(moment: usize, action: Action) -> Self {
        At { moment, action, asked: 0 }
    }
}

impl Watch for At {
    fn action(&mut self) -> Action {
        self.asked += 1;
        if self.asked == self.moment { self.action } else { Action::None }
    }
}

fn two_test_nets(prefix: &str) -> String {
    solver(prefix, "random_seed: 3").replace("snapshot: 1", "").replace("test_iter: 2", "test_iter: [2, 3]")
}

/// A snapshot on request may fall into the middle of a test; a resumed run repeats that test from its beginning.
#[test]
fn from_snapshots_on_request_at_any_moment() {
    let folder = folder();
    let (whole, log) = folder.train(&two_test_nets("whole"));
    let mut counter = At::new(0, Action::None);
    finish(folder.solver(&two_test_nets("whole")).unwrap(), &mut counter);
    assert_eq!(counter.asked, LAST as usize + 3 * 5, "once an iteration and once a test batch");
    for moment in 1..=counter.asked {
        let prefix = format!("asked{moment}");
        let text = format!("{} snapshot_after_train: false", two_test_nets(&prefix));
        let (snapped, _) = logged(|| finish(folder.solver(&text).unwrap(), &mut At::new(moment, Action::Snapshot)));
        assert!(params(&whole) == params(&snapped), "a snapshot at moment {moment} changes the run");
        let states: Vec<_> = folder.files(&prefix).into_iter().filter(|f| f.ends_with(".solverstate")).collect();
        let [state] = &states[..] else { panic!("moment {moment} left {states:?}") };
        let k = state.split("_iter_").nth(1).unwrap().split('.').next().unwrap().parse().unwrap();
        let (resumed, again) = folder.resume(&two_test_nets("again"), state);
        assert!(params(&whole) == params(&resumed), "moment {moment}, {state}");
        assert_eq!(results(&log, k), results(&again, k), "moment {moment}, {state}");
    }
}

#[test]
fn from_where_it_was_stopped() {
    let folder = folder();
    let (whole, log) = folder.train(&two_test_nets("whole"));
    for moment in 1..=LAST as usize + 2 * 5 {
        let prefix = format!("stopped{moment}");
        let mut solver = folder.solver(&two_test_nets(&prefix)).unwrap();
        let (outcome, said) = logged(|| solver.solve(&mut At::new(moment, Action::Stop)).unwrap());
        assert_eq!(outcome, Outcome::Stopped);
        assert_eq!(said.last().unwrap(), "Optimization stopped early.");
        let states: Vec<_> = folder.files(&prefix).into_iter().filter(|f| f.ends_with(".solverstate")).collect();
        let [state] = &states[..] else { panic!("moment {moment} left {states:?}") };
        let (resumed, again) = folder.resume(&two_test_nets("again"), state);
        assert!(params(&whole) == params(&resumed), "moment {moment}, {state}");
        let k = solver.iter();
        assert_eq!(results(&log, k), results(&again, k), "moment {moment}, {state}");
    }
}

/// What a run saves that diverges diverges in the same way.
#[test]
fn from_the_last_whole_iteration_before_a_loss_that_is_no_number() {
    let folder = folder();
    let text = |prefix: &str| solver(prefix, "random_seed: 3").replace("base_lr: 0.02", "base_lr: 1e30");
    let error = folder.error(&text("whole"));
    says(&error, &["iteration 1: the loss is nan; the first that is not finite is ", "whole_iter_1.solverstate"]);
    let state = folder.path("whole_iter_1.solverstate");
    let mut resumed = Solver::resume(&folder.parse(&text("again")), &registry(), state).unwrap();
    let again = resumed.solve(&mut ()).unwrap_err().to_string();
    assert_eq!(again.split(';').take(2).collect::<Vec<_>>(), error.split(';').take(2).collect::<Vec<_>>());
}

/// Caffe's two files alone: iteration, weights, history and rates go on; data begin anew.
#[test]
fn without_the_file_beside_the_state() {
    let folder = folder();
    let (whole, _) = folder.train(&solver("whole", "random_seed: 3"));
    std::fs::remove_file(folder.path("whole_iter_5.solverstate.lgm")).unwrap();
    let (resumed, log) = folder.resume(&solver("again", "random_seed: 3"), "whole_iter_5.solverstate");
    let line = log.iter().find(|l| l.starts_with("There is no ")).expect("a line about the missing file");
    says(line, &["whole_iter_5.solverstate.lgm", "data starts from its beginning"]);
    assert!(params(&whole) != params(&resumed));
    assert!(log.iter().any(|l| l == "Iteration 5, lr = 0.005"), "two steps of the rate were taken: {log:?}");
    assert_eq!(resumed.iter(), LAST);
}

/// Data that have no such position any more begin at their first record, as in Caffe; everything else goes on.
#[test]
fn with_fewer_data_than_before() {
    let folder = folder();
    folder.train(&solver("whole", "random_seed: 3"));
    std::fs::remove_dir_all(folder.path("db")).unwrap();
    folder.lmdb("db", 2);
    folder.images("a", 1);
    folder.write("train.txt", &format!("{}\n", folder.at("a.h5")));
    let (resumed, log) = folder.resume(&solver("again", "random_seed: 3"), "whole_iter_5.solverstate");
    for layer in ["HDF5Data 'data': ", "Data 'db': "] {
        let told: Vec<_> = log.iter().filter(|l| l.starts_with(layer)).collect();
        assert!(told.len() == 1 && told[0].contains("its data begin at the first record"), "{layer}{told:?}");
    }
    assert!(log.iter().any(|l| l == "Iteration 5, lr = 0.005"), "{log:?}");
    assert_eq!(resumed.iter(), LAST);
}

/// The weights may have been moved together with the state.
#[test]
fn from_a_snapshot_that_was_moved() {
    let folder = folder();
    for more in ["random_seed: 3", "random_seed: 3 snapshot_format: HDF5"] {
        let (whole, _) = folder.train(&solver("whole", more));
        let moved = folder.path(&format!("moved{}", extension(more)));
        std::fs::create_dir(&moved).unwrap();
        for file in folder.files("whole_iter_4.") {
            std::fs::rename(folder.path(&file), moved.join(file)).unwrap();
        }
        let state = moved.join(format!("whole_iter_4.solverstate{}", extension(more)));
        let (resumed, _) = folder.resume(&solver("again", more), state.to_str().unwrap());
        assert!(params(&whole) == params(&resumed), "{more}");
    }
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let folder = folder();
    folder.train(&solver("whole", "random_seed: 3"));
    folder.train(&solver("hdf5", "random_seed: 3 snapshot_format: HDF5"));
    let refuse = |text: &str, state: &str| -> String {
        let resumed = Solver::resume(&folder.parse(text), &registry(), folder.path(state));
        resumed.map(drop).expect_err("this state was accepted").to_string()
    };
    let plain = solver("again", "random_seed: 3");
    for state in ["whole_iter_4.solverstate", "hdf5_iter_4.solverstate.h5"] {
        let adam = solver("again", "random_seed: 3 type: 'Adam'");
        says(&refuse(&adam, state), &[state, "history arrays", "Adam", "another net or type?"]);
        let wider = plain.replace("num_output: 6", "num_output: 7").replace("dim: 4 dim: 6", "dim: 4 dim: 7");
        says(&refuse(&wider, state), &["layer 'ip' (InnerProduct)", "parameter 0", "(7, 27)", "(6, 27)"]);
        says(&refuse(&plain, &format!("no_{state}")), &[&format!("no_{state}"), "cannot open"]);
    }
    let state = "whole_iter_4.solverstate";
    let change = |name: &str, to: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let path = folder.path(name);
        let old = std::fs::read(&path).unwrap();
        std::fs::write(&path, to(old.clone())).unwrap();
        let error = refuse(&plain, state);
        std::fs::write(&path, old).unwrap();
        error
    };
    says(&change(state, &|old| old[..old.len() / 2].into()), &[state]);
    says(&change("whole_iter_4.caffemodel", &|old| old[..old.len() / 2].into()), &["whole_iter_4.caffemodel"]);
    let beside = "whole_iter_4.solverstate.lgm";
    says(&change(beside, &|old| old[..old.len() / 2].into()), &[beside, "is damaged", "remove it to resume from"]);
    let other = std::fs::read(folder.path("whole_iter_5.solverstate.lgm")).unwrap();
    says(&change(beside, &|_| other.clone()), &[beside, "is of iteration 5, expected 4", "remove it"]);
    std::fs::rename(folder.path("whole_iter_4.caffemodel"), folder.path("elsewhere")).unwrap();
    says(&refuse(&plain, state), &[state, "names the weights", "whole_iter_4.caffemodel", "neither there nor at"]);
    assert!(Path::new(&folder.at("elsewhere")).exists());
}
