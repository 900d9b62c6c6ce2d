//! What the tests of whole runs share.

#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use lgm_core::Registry;
use tempfile::TempDir;

pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lgm-caffe"));
    command.current_dir(folder).args(args).stdin(Stdio::null());
    // What .cargo/config.toml sets for tests' own files, the binary is to do by itself.
    for name in ["GLOG_minloglevel", "GLOG_logtostderr", "GLOG_log_dir", "GLOG_v", "HDF5_USE_FILE_LOCKING"] {
        command.env_remove(name);
    }
    command
}

/// Runs the binary and gives what it logged, without stamps.
pub fn run(folder: &Path, args: &[&str]) -> (Output, Vec<String>) {
    let output = command(folder, args).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).lines().map(text).collect();
    (output, log)
}

pub fn text(line: &str) -> String {
    line.split_once("] ").map_or(line, |(_, text)| text).to_string()
}

pub fn succeeds(folder: &Path, args: &[&str]) -> Vec<String> {
    let (output, log) = run(folder, args);
    assert!(output.status.success(), "{args:?}: {log:#?}");
    log
}

/// The log of a run that must fail with code 1, and say all of `parts`, in order, after its last "error:".
pub fn fails(folder: &Path, args: &[&str], parts: &[&str]) -> Vec<String> {
    let (output, log) = run(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {log:#?}");
    let from = log.iter().position(|l| l.starts_with("lgm-caffe: error: ")).expect("an error in the log");
    says(&log[from..].join("\n"), parts);
    log
}

pub fn says(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("{part:?} is missing, or out of order, in:\n{text}") };
        rest = &rest[at + part.len()..];
    }
}

/// Names in a folder that end in `end`, sorted by the iteration in them.
pub fn snapshots(folder: &Path, end: &str) -> Vec<(i32, String)> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let visible = names.filter(|n| n.ends_with(end) && !n.starts_with('.'));
    let iteration = |n: &str| n.split("_iter_").nth(1)?.split('.').next()?.parse().ok();
    let mut found: Vec<_> = visible.filter_map(|n| Some((iteration(&n)?, n))).collect();
    found.sort();
    found
}

pub fn registry() -> Registry {
    let mut registry = Registry::default();
    lgm_layers::register(&mut registry);
    lgm_data::register(&mut registry);
    registry
}

pub const NET: &str = r#"
name: "tiny"
layer { name: "x" type: "DummyData" top: "x" top: "label"
  dummy_data_param { shape { dim: 8 dim: 12 } shape { dim: 8 } data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "y" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "y" bottom: "label" top: "accuracy" include { phase: TEST } }
"#;

pub const SOLVER: &str =
    "net: 'net.prototxt' base_lr: 0.01 lr_policy: 'fixed' random_seed: 1 snapshot_prefix: 'out' max_iter: 4\n";

/// A folder with `net.prototxt` and `solver.prototxt`.
pub fn job(net: &str, solver: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("net.prototxt"), net).unwrap();
    fs::write(folder.path().join("solver.prototxt"), solver).unwrap();
    folder
}

pub const TRAIN: [&str; 3] = ["train", "-solver", "solver.prototxt"];
