//! Nets, solvers, weights and states.

use std::cell::RefCell;
use std::path::Path;

use lgm_core::{Phase, Registry};
use lgm_net::{Net, Options};
use lgm_proto::FileKind;
use lgm_solver::Solver;

use crate::scratch::Scratch;

/// Layers with parameters of several shapes, statistics and schedules.
const NET: &str = r#"
name: "n"
layer { name: "x" type: "DummyData" top: "x" top: "label" dummy_data_param { shape { dim: 2 dim: 2 dim: 3 dim: 3 } shape { dim: 2 } data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" convolution_param { num_output: 2 kernel_size: 2 } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "lgm" type: "LGMLoss" bottom: "ip" bottom: "label" top: "loss" lgm_loss_param { num_output: 3 update_sigma: true margin_mul { policy: STEPUP value: 0.1 gamma: 2 step: 2 max: 0.4 } } }
"#;

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    lgm_layers::register(&mut registry);
    lgm_data::register(&mut registry);
    registry
}

/// The solver of the states in the corpus.
fn settings(folder: &Scratch) -> String {
    let prefix = folder.text("x");
    format!(
        "net_param {{ {NET} }} base_lr: 0.01 lr_policy: 'multistep' gamma: 0.5 stepvalue: [1, 9] momentum: 0.9 max_iter: 9 \
         average_loss: 4 random_seed: 1 snapshot_prefix: '{prefix}'"
    )
}

/// A net's prototxt, with what is written of it read again.
pub fn net(bytes: &[u8]) {
    let _ = FileKind::of_head(bytes);
    if let Ok(upgraded) = lgm_proto::upgrade_net_text(bytes, Path::new("net.prototxt")) {
        let _ = lgm_proto::upgrade_net_text(&upgraded.bytes, Path::new("again.prototxt"));
    }
    let Ok(parsed) = lgm_proto::parse_net(bytes, Path::new("net.prototxt")) else { return };
    let text = lgm_proto::to_text(&parsed.message);
    let again = lgm_proto::parse_net(text.as_bytes(), Path::new("again.prototxt"));
    let again = again.unwrap_or_else(|error| panic!("what was written is not read: {error}\n{text}"));
    assert_eq!(lgm_proto::to_text(&again.message), text);
}

/// A solver's prototxt, checked as for a run; nets and folders that it names are not those of the machine.
pub fn solver(bytes: &[u8]) {
    if let Ok(upgraded) = lgm_proto::upgrade_solver_text(bytes, Path::new("solver.prototxt")) {
        let again = lgm_proto::upgrade_solver_text(&upgraded.bytes, Path::new("again.prototxt"));
        again.unwrap_or_else(|error| panic!("what was upgraded is not read: {error}"));
    }
    let Ok(mut parsed) = lgm_proto::parse_solver(bytes, Path::new("solver.prototxt")) else { return };
    let message = &mut parsed.message;
    // No file, no snapshot, nothing large.
    (message.net, message.train_net, message.test_net) = (None, None, Vec::new());
    (message.train_net_param, message.test_net_param, message.weights) = (None, Vec::new(), Vec::new());
    message.net_param = lgm_proto::parse_net(NET.as_bytes(), Path::new("net.prototxt")).ok().map(|net| net.message);
    (message.snapshot, message.snapshot_after_train, message.debug_info) = (None, Some(false), None);
    message.test_iter.truncate(2);
    message.max_iter = Some(message.max_iter().min(3));
    message.iter_size = message.iter_size.map(|n| n.min(2));
    message.test_iter.iter_mut().for_each(|n| *n = (*n).min(2));
    if let Ok(mut solver) = Solver::new(&parsed, &registry()) {
        let _ = solver.solve(&mut ());
    }
}

/// Binary weights.
pub fn weights(bytes: &[u8]) {
    thread_local! {
        static NET_AND_FOLDER: RefCell<(Net, Scratch)> = RefCell::new({
            let parsed = lgm_proto::parse_net(NET.as_bytes(), Path::new("net.prototxt")).expect("a sound net");
            let net = Net::new(&parsed.message, &parsed.positions, &registry(), &Options::new(Phase::Train, 1));
            (net.expect("a sound net"), Scratch::new())
        });
    }
    if let Ok(net) = lgm_proto::decode_net(bytes, Path::new("net.caffemodel")) {
        let _ = lgm_proto::to_text(&net);
    }
    if let Ok(upgraded) = lgm_proto::upgrade_net_binary(bytes, Path::new("net.caffemodel")) {
        let _ = lgm_proto::decode_net(&upgraded.bytes, Path::new("again.caffemodel"));
    }
    NET_AND_FOLDER.with_borrow_mut(|(net, folder)| {
        let path = folder.write("net.caffemodel", bytes);
        if lgm_net::expect_kind(&path, FileKind::Weights).is_ok() {
            let _ = net.load_weights(&path);
        }
    });
}

/// A solver state and what stands beside it, one of them from the fuzzer.
fn resume(state: &[u8], extra: &[u8]) {
    thread_local!(static FOLDER: Scratch = Scratch::new());
    FOLDER.with(|folder| {
        let sound = include_bytes!("../corpus/state.weights");
        folder.write("x_iter_2.caffemodel", sound);
        folder.write("x_iter_2.solverstate.lgm", extra);
        let path = folder.write("x_iter_2.solverstate", state);
        let parsed = lgm_proto::parse_solver(settings(folder).as_bytes(), Path::new("solver.prototxt"));
        let _ = Solver::resume(&parsed.expect("a sound solver"), &registry(), path);
    });
}

/// A solver state.
pub fn state(bytes: &[u8]) {
    resume(bytes, include_bytes!("../corpus/extra/sound"));
}

/// What stands beside a solver state.
pub fn extra(bytes: &[u8]) {
    resume(include_bytes!("../corpus/state/sound"), bytes);
}

/// Writes the state of the corpus, which [`state`] and [`extra`] vary, and weights of the net for [`weights`].
#[cfg(test)]
mod tests {
    use super::*;

    /// The sound inputs are taken: what is varied of them reaches beyond the first check.
    #[test]
    fn the_sound_state_is_of_this_solver() {
        let folder = Scratch::new();
        let make = |text: &str| lgm_proto::parse_solver(text.as_bytes(), Path::new("solver.prototxt")).unwrap();
        let corpus = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        if std::env::var_os("LGM_FUZZ_RENEW").is_some() {
            let two = settings(&folder).replace("max_iter: 9", "max_iter: 2");
            Solver::new(&make(&two), &registry()).unwrap().solve(&mut ()).unwrap();
            let two = two + " snapshot_format: HDF5";
            Solver::new(&make(&two), &registry()).unwrap().solve(&mut ()).unwrap();
            for (made, kept) in [
                ("x_iter_2.caffemodel.h5", "hdf5_weights/sound"),
                ("x_iter_2.solverstate.h5", "hdf5_state/sound"),
                ("x_iter_2.caffemodel", "state.weights"),
                ("x_iter_2.caffemodel", "weights/sound"),
                ("x_iter_2.solverstate", "state/sound"),
                ("x_iter_2.solverstate.lgm", "extra/sound"),
            ] {
                std::fs::copy(folder.at(made), corpus(kept)).unwrap();
            }
        }
        for (name, from) in [
            ("x_iter_2.caffemodel", "state.weights"),
            ("x_iter_2.solverstate", "state/sound"),
            ("x_iter_2.solverstate.lgm", "extra/sound"),
        ] {
            folder.write(name, &std::fs::read(corpus(from)).unwrap());
        }
        let solver = Solver::resume(&make(&settings(&folder)), &registry(), folder.at("x_iter_2.solverstate"));
        assert_eq!(solver.unwrap().iter(), 2);
    }
}
