//! Snapshots, and the weights a run starts from.

use lgm_testkit::says;

use super::{NET, text};
use crate::common::{Folder, params};

#[test]
fn snapshots_are_taken_when_due_and_after_training() {
    let every = |more: &str| {
        let folder = Folder::new();
        folder.train(&text(&format!("max_iter: 5 {more}")));
        let files = folder.files("out");
        assert_eq!(files.len() % 3, 0, "{files:?}");
        files
    };
    let three = |i: i32, h5: &str| {
        [
            format!("out_iter_{i}.caffemodel{h5}"),
            format!("out_iter_{i}.solverstate{h5}"),
            format!("out_iter_{i}.solverstate{h5}.lgm"),
        ]
    };
    assert_eq!(every(""), three(5, ""));
    assert_eq!(
        every("snapshot: 2 snapshot_format: HDF5"),
        [three(2, ".h5"), three(4, ".h5"), three(5, ".h5")].concat()
    );
    assert_eq!(every("snapshot: 2 snapshot_after_train: false"), [three(2, ""), three(4, "")].concat());
    assert_eq!(every("snapshot: 5"), three(5, ""), "once, not twice");
}

#[test]
fn no_iterations_leave_a_snapshot_whatever_the_policy() {
    let folder = Folder::new();
    for policy in ["fixed", "poly"] {
        let (solver, _) = folder.train(&text("max_iter: 0").replace("'fixed'", &format!("'{policy}'")));
        assert_eq!((solver.iter(), params(&solver)), (0, vec![("ip".into(), vec![vec![0]])]), "{policy}");
        assert!(folder.path("out_iter_0.solverstate").exists(), "{policy}");
    }
}

#[test]
fn a_snapshot_may_hold_the_last_update() {
    let folder = Folder::new();
    folder.train(&text("max_iter: 1 snapshot_diff: true"));
    let net = lgm_proto::read_net_binary(folder.path("out_iter_1.caffemodel")).unwrap();
    let blob = &net.message.layer.iter().find(|l| l.name() == "ip").unwrap().blobs[0];
    assert_eq!((blob.data.as_slice(), blob.diff.as_slice()), (&[1.5][..], &[-1.5][..]));
    folder.train(&text("max_iter: 1"));
    let net = lgm_proto::read_net_binary(folder.path("out_iter_1.caffemodel")).unwrap();
    assert!(net.message.layer.iter().all(|l| l.blobs.iter().all(|b| b.diff.is_empty())));
    let (_, log) = folder.train(&text("max_iter: 1 snapshot_diff: true snapshot_format: HDF5"));
    let file = folder.at("out_iter_1.caffemodel.h5");
    assert!(log.contains(&format!("Snapshotting to HDF5 file {file}")));
    assert!(
        log.contains(&format!("Snapshotting solver state to HDF5 file {}", folder.at("out_iter_1.solverstate.h5")))
    );
    let h5 = lgm_data::hdf5::H5File::open(&file).unwrap();
    for (name, value) in [("data/ip/0", 1.5), ("diff/ip/0", -1.5)] {
        assert_eq!(h5.dataset(name).unwrap().read().unwrap().into_f32(), [value], "{name}");
    }
}

#[test]
fn a_snapshot_replaces_an_older_one_whole() {
    let folder = Folder::new();
    folder.train(&text("max_iter: 2"));
    let old = std::fs::read(folder.path("out_iter_2.caffemodel")).unwrap();
    folder.train(&text("max_iter: 2").replace("base_lr: 0.25", "base_lr: 0.1"));
    assert_ne!(std::fs::read(folder.path("out_iter_2.caffemodel")).unwrap(), old);
    assert_eq!(folder.files("").len(), 3);
}

/// What a killed process left under a temporary name goes when the next run with that prefix begins; what a living one
/// is writing, and holds a lock on, stays.
#[test]
fn leavings_of_killed_processes_are_removed() {
    let folder = Folder::new();
    for name in [".out_iter_7.caffemodel.tmp-aB3", ".out_iter_7.solverstate.lgm.tmp-123"] {
        folder.write(name, "half");
    }
    let keep = [".other_iter_7.caffemodel.tmp-123", ".out_iter_7.caffemodel.tmp-living"];
    keep.iter().for_each(|name| drop(folder.write(name, "x")));
    let living = std::fs::File::open(folder.path(keep[1])).unwrap();
    living.lock().unwrap();
    folder.train(&text("max_iter: 1"));
    assert_eq!(folder.files(".tmp-"), keep);
}

#[test]
fn the_folder_of_snapshots_is_made_or_named_in_an_error() {
    let folder = Folder::new();
    folder.train(&text("max_iter: 1").replace("DIR/out", "DIR/new/deep/out"));
    assert!(folder.path("new/deep/out_iter_1.solverstate").exists());
    // Not for a net that cannot be built.
    folder.error(&text("max_iter: 1").replace("DIR/out", "DIR/none/out").replace("InnerProduct", "InnerProdukt"));
    assert!(!folder.path("none").exists());
    folder.write("file", "");
    let error = folder.error(&text("max_iter: 1").replace("DIR/out", "DIR/file/out"));
    says(
        &error,
        &[
            "solver.prototxt:",
            "snapshot_prefix",
            "cannot write snapshots in the folder",
            "file",
            "another snapshot_prefix",
        ],
    );
}

#[test]
fn weights_come_from_several_files_and_are_matched_by_name() {
    let folder = Folder::new();
    let named = |name: &str, filler: f32| {
        let net = NET.replace("name: 'ip'", &format!("name: '{name}'"));
        let net = net.replace("bias_term: false", &format!("bias_term: false weight_filler {{ value: {filler} }}"));
        text("max_iter: 0").replace(NET, &net)
    };
    for (name, filler, prefix) in [("ip", 5.0, "five"), ("ip", 7.0, "seven"), ("other", 9.0, "nine")] {
        folder.train(&named(name, filler).replace("DIR/out", &format!("DIR/{prefix}")));
    }
    let start = |weights: &str| {
        let (solver, log) = folder.train(&format!("{} {weights} snapshot_after_train: false", named("ip", 1.0)));
        (solver.net().layer_params("ip").unwrap()[0].1[0], log)
    };
    let file = |prefix: &str| format!("DIR/{prefix}_iter_0.caffemodel");
    assert_eq!(start("").0, 1.0);
    assert_eq!(start(&format!("weights: '{}'", file("five"))).0, 5.0);
    assert_eq!(start(&format!("weights: '{},{}'", file("five"), file("seven"))).0, 7.0, "the last one holds");
    let (value, log) = start(&format!("weights: '{}' weights: '{}'", file("five"), file("nine")));
    assert_eq!(value, 5.0);
    assert!(log.contains(&"Ignoring source layer other".to_string()));
    assert!(log.contains(&format!("Finetuning from {}", folder.at("nine_iter_0.caffemodel"))));
    let wide = named("ip", 1.0).replace("num_output: 1", "num_output: 2").replace("dim: 2 dim: 1", "dim: 2 dim: 2");
    let error = folder.error(&format!("{wide} weights: '{}'", file("five")));
    says(
        &error,
        &[
            "solver.prototxt:",
            "layer 'ip' (InnerProduct)",
            "five_iter_0.caffemodel",
            "parameter 0",
            "(2, 2)",
            "(1, 1)",
            "rename it",
        ],
    );
    says(&folder.error(&format!("{} weights: 'DIR/none'", named("ip", 1.0))), &["none: cannot open"]);
}
