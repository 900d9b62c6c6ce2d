//! What a run must survive or refuse: files of other kinds, numbers that are not finite, links that others planted, readers
//! that leave.

use std::fs;
use std::io::{BufRead, Read};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use lgm_proto::{SolverState, encode, read_binary, read_weights};

use crate::util::*;

#[test]
fn a_file_of_another_kind_is_told_with_what_takes_it() {
    for (format, end) in [("BINARYPROTO", ""), ("HDF5", ".h5")] {
        let folder = job(NET, &format!("{SOLVER} snapshot_format: {format}"));
        let path = folder.path();
        succeeds(path, &TRAIN);
        let (model, state) = (format!("out_iter_4.caffemodel{end}"), format!("out_iter_4.solverstate{end}"));
        let extra = format!("{state}.lgm");
        let with = |flag: &str, file: &str, parts: &[&str]| {
            let log = fails(path, &[&TRAIN[..], &[flag, file]].concat(), &[&[file][..], parts].concat());
            assert!(!log.iter().any(|line| line.contains("Iteration") || line.contains("damaged")), "{log:#?}");
        };
        let wants_state = "expected a solver state (.solverstate), found ";
        let wants_weights = "expected weights (.caffemodel), found ";
        with("-snapshot", &model, &[wants_state, "weights (.caffemodel): -weights takes it"]);
        with("-weights", &state, &[wants_weights, "a solver state (.solverstate): train's -snapshot takes it"]);
        with("-snapshot", "net.prototxt", &[wants_state, "a net's prototxt: -model takes it"]);
        with("-snapshot", &extra, &[wants_state, "the .lgm file beside a solver state"]);
        with("-weights", "solver.prototxt", &[wants_weights, "a solver's prototxt: -solver takes it"]);
        for (bytes, what) in [
            (&b"<!DOCTYPE html>\n<html><body>404</body></html>"[..], "a web page: a download that failed"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
                "a Git LFS pointer: 'git lfs pull'",
            ),
            (b"PK\x03\x04rest", "an archive (zip): unpack it"),
            (b"", "an empty file"),
        ] {
            fs::write(path.join("odd"), bytes).unwrap();
            with("-weights", "odd", &[wants_weights, what]);
            fails(path, &["train", "-solver", "odd"], &["odd: expected a solver's prototxt, found ", what]);
        }
        let test = |net: &str, weights: &str, parts: &[&str]| {
            fails(path, &["test", "-model", net, "-weights", weights, "-iterations", "1"], parts);
        };
        test("solver.prototxt", &model, &["expected a net's prototxt, found a solver's prototxt: -solver takes it"]);
        test(&model, &model, &["expected a net's prototxt, found weights (.caffemodel): -weights takes it"]);
        test("net.prototxt", &state, &[wants_weights, "a solver state"]);
        fails(path, &["time", "-solver", "net.prototxt"], &["expected a solver's prototxt, found a net's prototxt"]);
        fails(path, &["train", "-solver", "net.prototxt"], &["expected a solver's prototxt, found a net's prototxt"]);
        fs::write(path.join("s.prototxt"), SOLVER.replace("net.prototxt", "solver.prototxt")).unwrap();
        fails(
            path,
            &["train", "-solver", "s.prototxt"],
            &["solver.prototxt: expected a net's prototxt, found a solver's"],
        );
        let (output, log) = run(path, &[&TRAIN[..], &["-weights", &model, "-snapshot", &state]].concat());
        assert_eq!(output.status.code(), Some(2), "{log:?}");
    }
}

#[test]
fn two_trainings_with_one_snapshot_prefix_are_warned_of() {
    let folder = job(NET, &SOLVER.replace("max_iter: 4", "max_iter: 1000000000"));
    fs::write(folder.path().join("short.prototxt"), SOLVER).unwrap();
    fs::write(folder.path().join("other.prototxt"), SOLVER.replace("'out'", "'other'")).unwrap();
    let warned = |solver: &str| {
        let log = succeeds(folder.path(), &["train", "-solver", solver]);
        log.iter().any(|line| line.starts_with("another process trains with the snapshot_prefix 'out' too"))
    };
    assert!(!warned("short.prototxt"));
    let mut first = Running(command(folder.path(), &TRAIN).stderr(Stdio::piped()).spawn().unwrap());
    let log = std::io::BufReader::new(first.0.stderr.take().unwrap());
    assert!(log.lines().any(|line| line.unwrap().contains("Starting Optimization")));
    assert!(warned("short.prototxt") && !warned("other.prototxt"));
}

/// A run started in another folder than the one that names in its files are meant from.
#[test]
fn names_in_files_that_are_not_there_are_told_with_their_place_and_the_folder() {
    let folder = job(NET, &SOLVER.replace("'out'", "'new/out'"));
    let (path, sub) = (folder.path(), folder.path().join("sub"));
    fs::create_dir(&sub).unwrap();
    let sub = sub.canonicalize().unwrap();
    let here = format!("(names are relative to the folder the program runs in, {})", sub.display());
    let place = "../solver.prototxt:1:1: solver field 'net': net.prototxt: cannot read: No such file or directory";
    fails(&sub, &["train", "-solver", "../solver.prototxt"], &[place, &here]);
    assert!(!sub.join("new").exists(), "nothing is made for a run that cannot begin");
    let solver = format!("{}\nweights: 'w.caffemodel'", SOLVER.replace("net.prototxt", "../net.prototxt"));
    fs::write(path.join("weights.prototxt"), solver).unwrap();
    let train = ["train", "-solver", "../weights.prototxt"];
    let place = "../weights.prototxt:3:1: solver field 'weights': w.caffemodel: cannot open: No such file or directory";
    fails(&sub, &train, &[place, &here]);
    let log = fails(&sub, &[&train[..], &["-weights", "v.caffemodel"]].concat(), &["v.caffemodel: cannot open"]);
    assert!(!log.concat().contains("solver field"), "{log:#?}");
    for (kind, param, what) in [
        ("Data", "data_param { source: 'in/db' batch_size: 1 }", "in/db: cannot open the database"),
        ("HDF5Data", "hdf5_data_param { source: 'in/l' batch_size: 1 }", "in/l: cannot open the list of HDF5 files"),
        ("ImageData", "image_data_param { source: 'in/l' batch_size: 1 }", "in/l: cannot open the list of images"),
    ] {
        let net = format!("layer {{ name: 'd' type: '{kind}' top: 'x' top: 'y' {param} }}");
        fs::write(path.join("net.prototxt"), net).unwrap();
        let layer = format!("../net.prototxt:1:1: layer 'd' ({kind}): ");
        fails(&sub, &["summary", "-model", "../net.prototxt"], &[&layer, what, &here]);
    }
}

#[test]
fn a_byte_order_mark_is_skipped_in_nets_and_solvers() {
    let folder = job(&format!("\u{feff}{NET}"), &format!("\u{feff}{SOLVER}"));
    succeeds(folder.path(), &TRAIN);
    fs::write(folder.path().join("net.prototxt"), NET.replacen("name: \"tiny\"", "name: \"tiny\" \u{feff}", 1))
        .unwrap();
    fails(folder.path(), &TRAIN, &["net.prototxt:2:14: "]);
}

/// A net whose loss is what its weights, all of them 1 at first, make of five batches; the last holds `odd`.
fn batches(folder: &Path, odd: f32) -> String {
    let mut rows = vec![0.5f32; 5 * 2 * 3];
    *rows.last_mut().unwrap() = odd;
    let labels: Vec<f32> = (0..10).map(|i| (i % 2) as f32).collect();
    let file = folder.join("rows.h5");
    lgm_data::hdf5::write_f32(&file, &[("x", &[10, 3].into(), &rows), ("label", &[10].into(), &labels)]).unwrap();
    fs::write(folder.join("rows.txt"), "rows.h5\n").unwrap();
    r#"layer { name: "d" type: "HDF5Data" top: "x" top: "label" hdf5_data_param { source: "rows.txt" batch_size: 2 } }
       layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" }
       layer { name: "ip" type: "InnerProduct" bottom: "bn" top: "y" inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
       layer { name: "loss" type: "SoftmaxWithLoss" bottom: "y" bottom: "label" top: "loss" }"#
        .into()
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_leaves_the_iteration_before() {
    let settings =
        |more: &str| format!("{SOLVER} momentum: 0.9 display: 100 {more}").replace("max_iter: 4", "max_iter: 9");
    let read = |folder: &Path, name: &str| fs::read(folder.join(name)).unwrap();
    for (odd, snapshot) in [(f32::NAN, "snapshot: 3"), (f32::INFINITY, "")] {
        let folder = job("", &settings(snapshot));
        let path = folder.path();
        fs::write(path.join("net.prototxt"), batches(path, odd)).unwrap();
        let parts = [
            "iteration 4: the loss is nan; the first that is not finite is blob 'x' of layer 'd' (HDF5Data)",
            "iteration 4, the last whole one, is saved: resume with -snapshot out_iter_4.solverstate",
        ];
        fails(path, &TRAIN, &parts);
        // What is saved is what a run that ends there saves, statistics, data position and all.
        let saved =
            ["out_iter_4.caffemodel", "out_iter_4.solverstate", "out_iter_4.solverstate.lgm"].map(|n| read(path, n));
        batches(path, 0.5);
        fs::write(path.join("solver.prototxt"), settings("").replace("max_iter: 9", "max_iter: 4")).unwrap();
        succeeds(path, &TRAIN);
        let whole =
            ["out_iter_4.caffemodel", "out_iter_4.solverstate", "out_iter_4.solverstate.lgm"].map(|n| read(path, n));
        assert!(saved == whole);
    }
    // Told to, the run goes on, is warned once of the loss, and writes no snapshot of what is not finite.
    let folder = job("", &settings("snapshot: 3"));
    let path = folder.path();
    fs::write(path.join("net.prototxt"), batches(path, f32::NAN)).unwrap();
    let log = succeeds(path, &[&TRAIN[..], &["-keep_going"]].concat());
    assert_eq!(log.iter().filter(|line| line.contains("the loss is nan")).count(), 1, "{log:#?}");
    assert!(log.iter().any(|l| l.starts_with("iteration 6: ") && l.ends_with("so no snapshot is written")), "{log:#?}");
    assert_eq!(snapshots(path, ".solverstate"), [(3, "out_iter_3.solverstate".to_string())]);
}

#[test]
fn weights_that_are_not_finite_never_reach_a_snapshot() {
    // The loss stays finite while the weights overflow: nothing but the snapshot and the display look at them.
    let net = r#"layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 dim: 2 } data_filler { value: 1e20 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 bias_term: false } }
        layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1e10 }"#;
    for (more, parts) in [
        (
            "",
            &["iteration 1: parameter 0 of layer 'ip' is not finite, so no snapshot is written", "no snapshot yet"][..],
        ),
        ("display: 1", &["iteration 0: after its update, parameter 0 of layer 'ip' is not finite"]),
        ("clip_gradients: 1", &["iteration 0: the gradients' L2 norm is inf"]),
    ] {
        let folder = job(
            net,
            &format!("{SOLVER} {more}").replace("base_lr: 0.01", "base_lr: 1e10").replace("max_iter: 4", "max_iter: 1"),
        );
        fails(folder.path(), &TRAIN, parts);
        let left = snapshots(folder.path(), "");
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_state_of_an_impossible_iteration_is_refused() {
    let folder = job(NET, &format!("{SOLVER} momentum: 0.9 snapshot: 2"));
    let path = folder.path();
    succeeds(path, &TRAIN);
    let state: SolverState = read_binary(path.join("out_iter_2.solverstate")).unwrap();
    fs::remove_file(path.join("out_iter_2.solverstate.lgm")).unwrap();
    let with = |iter: i32, step: i32| {
        let odd = SolverState { iter: Some(iter), current_step: Some(step), ..state.clone() };
        fs::write(path.join("out_iter_2.solverstate"), encode(&odd)).unwrap();
        [&TRAIN[..], &["-snapshot", "out_iter_2.solverstate"]].concat()
    };
    for iter in [-5, i32::MIN, 5, i32::MAX] {
        let said =
            format!("out_iter_2.solverstate: is of iteration {iter}, expected one from 0 to max_iter, which is 4");
        fails(path, &with(iter, 0), &[&said]);
    }
    for step in [-1, 3, i32::MAX] {
        fails(
            path,
            &with(2, step),
            &["out_iter_2.solverstate: says that the learning rate has taken", "expected from 0 to"],
        );
    }
    succeeds(path, &with(4, 0));
}

#[test]
fn variances_that_are_not_learned_stay_exactly_as_they_are() {
    for (isotropic, given) in [(true, ""), (false, ""), (true, "param { } param { lr_mult: 3 decay_mult: 2 }")] {
        let net = format!(
            "{}\nlayer {{ name: 'lgm' type: 'LGMLoss' bottom: 'y' bottom: 'label' top: 'l' {given} \
             lgm_loss_param {{ num_output: 3 isotropic: {isotropic} center_coef: 0.1 bias_filler {{ value: 1.7 }} }} }}",
            NET.lines().filter(|line| !line.contains("\"loss\"")).collect::<Vec<_>>().join("\n")
        );
        let folder = job(&net, &format!("{SOLVER} momentum: 0.9 weight_decay: 0.5"));
        succeeds(folder.path(), &TRAIN);
        let weights = read_weights(folder.path().join("out_iter_4.caffemodel")).unwrap();
        let lgm = weights.layers.iter().find(|layer| layer.name == "lgm").unwrap();
        let variances = lgm.blobs[1].values_f32().unwrap();
        assert!(variances.iter().all(|v| *v == 1.7) && !variances.is_empty(), "{variances:?}");
        assert!(lgm.blobs[0].values_f32().unwrap().iter().any(|center| *center != 0.0), "centers are learned");
    }
}

#[test]
fn links_that_others_planted_are_not_written_through() {
    for (format, end) in [("BINARYPROTO", ""), ("HDF5", ".h5")] {
        let folder =
            job(NET, &SOLVER.replace("'out'", "'pub/x'").replace('\n', &format!(" snapshot_format: {format}\n")));
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        fs::create_dir(folder.path().join("pub")).unwrap();
        let planted =
            [".caffemodel", ".solverstate"].map(|kind| folder.path().join(format!("pub/x_iter_4{kind}{end}")));
        planted.iter().for_each(|link| symlink(&victim, link).unwrap());
        succeeds(folder.path(), &TRAIN);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(planted.iter().all(|file| fs::symlink_metadata(file).unwrap().is_file()));
    }
}

#[test]
fn commands_that_do_not_train_print_their_result_and_nothing_besides() {
    let folder = job(NET, SOLVER);
    let path = folder.path();
    let summary = ["summary", "-model", "net.prototxt"];
    let idx = |magic: u32, extents: &[u32], values: &[u8]| {
        let numbers = [magic].iter().chain(extents).flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
        [&numbers, values].concat()
    };
    fs::write(path.join("images"), idx(2051, &[2, 1, 2], &[0, 1, 2, 3])).unwrap();
    fs::write(path.join("labels"), idx(2049, &[2], &[0, 1])).unwrap();
    let glyphs = ["make-glyphs", "-out", "g", "-train", "4", "-test", "4"];
    let mnist = ["convert-mnist", "images", "labels", "mnist"];
    for args in [&summary[..], &glyphs, &mnist, &["device_query"]] {
        let (output, log) = run(path, args);
        assert!(output.status.success() && log.is_empty() && !output.stdout.is_empty(), "{args:?}: {log:#?}");
    }
    let (output, log) = run(path, &[&summary[..], &["-v", "1"]].concat());
    assert!(output.status.success() && log.iter().any(|line| line == "Creating Layer ip"), "{log:#?}");
    assert!(succeeds(path, &TRAIN).iter().any(|line| line == "Creating Layer ip"));
}

#[test]
fn a_reader_that_leaves_ends_a_command_quietly_and_a_full_disk_in_words() {
    let folder = job(NET, SOLVER);
    for args in [
        &["summary", "-model", "net.prototxt"][..],
        &["make-glyphs", "-out", "g", "-train", "4", "-test", "4"],
        &["--help"],
    ] {
        let mut child = command(folder.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(child.wait().unwrap().success() && said.is_empty(), "{args:?}: {said}");
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(folder.path(), args).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("error: cannot write to standard output: No space left on device"), "{said}");
    }
}

#[test]
fn hdf5_output_saves_every_batch() {
    let output = r#"layer { name: "out" type: "HDF5Output" bottom: "y" bottom: "label" hdf5_output_param { file_name: "out.h5" } include { stage: "save" } }"#;
    let folder = job(&format!("{NET}{output}"), SOLVER);
    succeeds(folder.path(), &TRAIN);
    let test = ["test", "-model", "net.prototxt", "-weights", "out_iter_4.caffemodel", "-stage", "save", "-iterations"];
    let rows = |batches: &str| {
        succeeds(folder.path(), &[&test[..], &[batches]].concat());
        hdf5_metno::File::open(folder.path().join("out.h5")).unwrap().dataset("label").unwrap().shape()[0]
    };
    let batch = rows("1");
    assert_eq!(rows("7"), 7 * batch);
}
