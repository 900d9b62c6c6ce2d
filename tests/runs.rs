//! Whole runs of the binary: killed ones, resumed ones, any number of threads, and the mistakes a run can meet.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use lgm_solver::Solver;
use lgm_testkit::says;

use crate::util::*;

/// A number of moments that differ from run to run; each is told in a failure.
fn moments(n: usize) -> Vec<u64> {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos() as u64;
    (0..n as u64).map(|i| (seed / 1000 + i * 7919) % 83).collect()
}

/// Kills a run, many times, while it does little else than write snapshots. What lies in the folder afterwards must be
/// whole, and the newest state must go on.
#[test]
fn a_process_killed_at_any_moment_leaves_whole_snapshots() {
    // 40,000 weights and as many histories: most of an iteration is writing.
    let net = NET.replace("dim: 12", "dim: 10000");
    for (format, end) in [("BINARYPROTO", ""), ("HDF5", ".h5")] {
        let solver = format!("{SOLVER} momentum: 0.9 snapshot: 1 snapshot_format: {format}\n");
        let folder = job(&net, &solver.replace("max_iter: 4", "max_iter: 1000000"));
        let state_end = format!(".solverstate{end}");
        let mut left_unfinished = 0;
        for moment in moments(16) {
            let newest = snapshots(folder.path(), &state_end).pop();
            let mut args = TRAIN.to_vec();
            if let Some((_, state)) = &newest {
                args.extend(["-snapshot", state]);
            }
            let mut child = command(folder.path(), &args).stderr(Stdio::null()).spawn().unwrap();
            // From the first snapshot on, so that kills fall among writes however slow the machine starts.
            let begun = || snapshots(folder.path(), &state_end).pop() > newest;
            (0..400).take_while(|_| !begun()).for_each(|_| std::thread::sleep(Duration::from_millis(5)));
            std::thread::sleep(Duration::from_micros(moment * 1370));
            child.kill().unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(9), "the run ended by itself");
            let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            left_unfinished += names.filter(|n| n.contains(".tmp-")).count();
            // The ones before were looked at when they were the newest.
            for (_, model) in snapshots(folder.path(), &format!(".caffemodel{end}")).iter().rev().take(4) {
                let parsed = lgm_proto::read_net(folder.path().join("net.prototxt")).unwrap();
                let options = lgm_net::Options::new(lgm_core::Phase::Test, 1);
                let mut net = lgm_net::Net::new(&parsed.message, &parsed.positions, &registry(), &options).unwrap();
                net.load_weights(folder.path().join(model)).unwrap_or_else(|e| panic!("killed at {moment}: {e}"));
            }
            for (iter, state) in snapshots(folder.path(), &state_end).iter().rev().take(4) {
                let path = folder.path().join(state);
                assert!(PathBuf::from(format!("{}.lgm", path.display())).exists(), "killed at {moment}: {state}");
                let text = solver.replace("net.prototxt", folder.path().join("net.prototxt").to_str().unwrap());
                let text = text.replace("'out'", &format!("'{}'", folder.path().join("out").display()));
                let text = text.replace("max_iter: 4", "max_iter: 1000000");
                let parsed = lgm_proto::parse_solver(text.as_bytes(), Path::new("solver.prototxt")).unwrap();
                let solver = Solver::resume(&parsed, &registry(), &path);
                let solver = solver.unwrap_or_else(|e| panic!("killed at {moment}: {state}: {e}"));
                assert_eq!(solver.iter(), *iter);
            }
        }
        let (newest, state) = snapshots(folder.path(), &state_end).pop().expect("some snapshot");
        assert!(newest >= 16, "{newest}");
        fs::write(
            folder.path().join("solver.prototxt"),
            solver.replace("max_iter: 4", &format!("max_iter: {}", newest + 2)),
        )
        .unwrap();
        succeeds(folder.path(), &[&TRAIN[..], &["-snapshot", &state]].concat());
        assert_eq!(snapshots(folder.path(), &state_end).pop().unwrap().0, newest + 2);
        let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let leavings: Vec<_> = names.filter(|n| n.contains(".tmp-")).collect();
        assert!(leavings.is_empty(), "{leavings:?} were not cleared away");
        println!("{format}: {left_unfinished} unfinished files were left by 16 kills, {newest} snapshots taken");
    }
}

/// Layers of every kind that works in parallel, large enough that they do.
const WIDE: &str = r#"
layer { name: "x" type: "DummyData" top: "x" top: "label"
  dummy_data_param { shape { dim: 8 dim: 3 dim: 33 dim: 31 } shape { dim: 8 } data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" convolution_param { num_output: 20 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "lrn" type: "LRN" bottom: "conv" top: "lrn" }
layer { name: "pool" type: "Pooling" bottom: "lrn" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "mean" type: "Pooling" bottom: "conv" top: "mean" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "both" type: "Concat" bottom: "pool" bottom: "mean" top: "both" }
layer { name: "group" type: "Convolution" bottom: "both" top: "group" convolution_param { num_output: 12 group: 4 kernel_size: 3 dilation: 2 weight_filler { type: "msra" } } }
layer { name: "drop" type: "Dropout" bottom: "group" top: "group" }
layer { name: "ip" type: "InnerProduct" bottom: "group" top: "ip" inner_product_param { num_output: 64 weight_filler { type: "xavier" } } }
layer { name: "prelu" type: "PReLU" bottom: "ip" top: "ip" }
layer { name: "lgm" type: "LGMLoss" bottom: "ip" bottom: "label" top: "loss"
  lgm_loss_param { num_output: 10 center_coef: 0.1 update_sigma: true isotropic: false weight_filler { type: "gaussian" } margin_mul { value: 0.3 } } }
"#;

#[test]
fn the_number_of_threads_never_shows() {
    let weights = |threads: &str| {
        let folder = job(WIDE, &format!("{SOLVER} momentum: 0.9 weight_decay: 0.01 clip_gradients: 5 display: 1"));
        let output = command(folder.path(), &TRAIN).env("LGM_NUM_THREADS", threads).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{log}");
        let told: Vec<_> = log.lines().filter(|l| l.contains("net output")).map(|l| text(l).to_string()).collect();
        assert_eq!(told.len(), 4);
        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        (told, read("out_iter_4.caffemodel"), read("out_iter_4.solverstate"))
    };
    let one = weights("1");
    for threads in ["2", "5"] {
        let other = weights(threads);
        assert_eq!(one.0, other.0, "losses with {threads} threads");
        assert!(one == other, "files with {threads} threads");
    }
}

#[test]
fn a_solver_that_asks_for_a_gpu_is_warned_once_and_trains() {
    if lgm_cuda::devices().is_ok() {
        println!("skipped: this machine has a GPU");
        return;
    }
    let folder = job(NET, &format!("{SOLVER} solver_mode: GPU"));
    let (output, _) = run(folder.path(), &TRAIN);
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    let warnings: Vec<_> = log.lines().filter(|l| l.starts_with('W')).collect();
    let [warning] = warnings[..] else { panic!("{warnings:?}") };
    says(warning, &["solver_mode: GPU", "no GPU can be used: ", "running on the CPU instead"]);
    assert!(folder.path().join("out_iter_4.caffemodel").exists());
    let order = [&TRAIN[..], &["--gpu=0"]].concat();
    fails(folder.path(), &order, &["-gpu 0 was given, but no GPU can be used: ", "looked", "leave out -gpu"]);
}

#[test]
fn files_that_are_missing_or_malformed_are_named_with_the_place() {
    let folder = job(NET, SOLVER);
    let path = folder.path();
    let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
    fails(path, &["train", "-solver", "no.prototxt"], &["no.prototxt: cannot read"]);
    let with = |solver: &str, parts: &[&str]| {
        write("s.prototxt", solver);
        fails(path, &["train", "-solver", "s.prototxt"], parts);
    };
    with(&SOLVER.replace("net.prototxt", "none.prototxt"), &["none.prototxt: cannot read"]);
    with(&format!("{SOLVER}\n  bse_lr: 1"), &["s.prototxt:3:3: ", "'bse_lr'", "'base_lr'"]);
    with(&format!("{SOLVER}max_iter: 5"), &["s.prototxt:2:", "max_iter"]);
    with(&format!("{SOLVER}display: 'x'"), &["s.prototxt:2:10: "]);
    with(&format!("{SOLVER}net_param {{ "), &["s.prototxt:2:"]);
    with(&format!("{SOLVER}type: 'adam'"), &["s.prototxt:2:1: ", "'Adam'"]);
    with(&SOLVER.replace("'fixed'", "'fxed'"), &["s.prototxt:1:", "'lr_policy'", "'fixed'"]);
    with(&format!("{SOLVER}weights: 'none.caffemodel'"), &["none.caffemodel: cannot open"]);
    fails(path, &[&TRAIN[..], &["-snapshot", "none.solverstate"]].concat(), &["cannot resume from none.solverstate"]);
    fails(path, &[&TRAIN[..], &["-weights", "none.caffemodel"]].concat(), &["none.caffemodel: cannot open"]);
    let with_net = |net: &str, parts: &[&str]| {
        write("net.prototxt", net);
        fails(path, &TRAIN, parts);
    };
    with_net(
        &NET.replace("num_output: 4", "num_outputs: 4"),
        &["net.prototxt:6:25: ", "'num_outputs'", "'num_output'"],
    );
    with_net(&NET.replace("phase: TEST", "phase: TST"), &["net.prototxt:8:", "'TST'", "'TEST'"]);
    with_net(
        &NET.replace("\"SoftmaxWithLoss\"", "\"SoftmaxWithLos\""),
        &["net.prototxt:7:1: layer 'loss' (SoftmaxWithLos): unknown layer type", "'SoftmaxWithLoss'"],
    );
    with_net(
        &NET.replace("\"y\" bottom: \"label\"", "\"y\" bottom: \"labl\""),
        &["net.prototxt:7:1: layer 'loss' (SoftmaxWithLoss): Unknown bottom blob 'labl'", "did you mean 'label'?"],
    );
    with_net(
        "layer { name: 'd' type: 'HDF5Data' top: 'x' hdf5_data_param { source: 'none.txt' batch_size: 1 } }",
        &["net.prototxt:1:1: layer 'd' (HDF5Data): none.txt"],
    );
    with_net(
        "layer { name: 'd' type: 'Data' top: 'x' data_param { source: 'none' batch_size: 1 backend: LMDB } }",
        &["net.prototxt:1:1: layer 'd' (Data): none"],
    );
    write("net.prototxt", NET);
    fs::create_dir_all(path.join("blocked")).unwrap();
    write("blocked/file", "");
    with(&SOLVER.replace("'out'", "'blocked/file/out'"), &["s.prototxt:1:", "cannot write snapshots", "blocked/file"]);
    write("s.prototxt", &SOLVER.replace("'out'", "'made/for/it/out'"));
    succeeds(path, &["train", "-solver", "s.prototxt"]);
    assert!(path.join("made/for/it/out_iter_4.solverstate").exists());
}

#[test]
fn a_data_file_that_another_process_has_locked_is_read() {
    let net = NET.replacen("DummyData", "HDF5Data", 1);
    let (start, end) = (net.find("dummy_data_param").unwrap(), net.find("layer { name: \"ip\"").unwrap());
    let net = format!("{}hdf5_data_param {{ source: 'list.txt' batch_size: 4 }} }}\n{}", &net[..start], &net[end..]);
    let folder = job(&net, SOLVER);
    let file = folder.path().join("x.h5");
    lgm_data::hdf5::write_f32(&file, &[("x", &[8, 3].into(), &[0.5; 24]), ("label", &[8].into(), &[1.0; 8])]).unwrap();
    fs::write(folder.path().join("list.txt"), "x.h5\n").unwrap();
    let held = fs::File::open(&file).unwrap();
    held.lock().unwrap();
    succeeds(folder.path(), &TRAIN);
}

/// Flags reach the solver whichever way they are written.
#[test]
fn weights_snapshots_levels_and_stages_come_from_flags() {
    let staged = r#"
        layer { name: "high" type: "Power" bottom: "x" top: "high" include { min_level: 1 } }
        layer { name: "low" type: "Power" bottom: "x" top: "low" include { stage: "a" not_stage: "b" } }"#;
    let folder = job(&format!("{NET}{staged}"), &format!("{SOLVER} snapshot: 2"));
    let path = folder.path();
    let log = succeeds(path, &["--solver=solver.prototxt", "train"]);
    let creates = |log: &[String], layer: &str| log.iter().any(|l| l == &format!("Creating Layer {layer}"));
    assert!(!creates(&log, "high") && !creates(&log, "low"));
    let log = succeeds(path, &["train", "--solver", "solver.prototxt", "-level=1", "--stage", "a,c"]);
    assert!(creates(&log, "high") && creates(&log, "low"));
    let log = succeeds(path, &["train", "-solver=solver.prototxt", "-stage", "a,b"]);
    assert!(!creates(&log, "low"));
    let own = job(&format!("state {{ stage: \"a\" level: 1 }} {NET}{staged}"), SOLVER);
    for command in [&TRAIN[..], &["time", "-model", "net.prototxt", "-iterations", "1"]] {
        let log = succeeds(own.path(), command);
        assert!(
            creates(&log, "high") && creates(&log, "low"),
            "{command:?} leaves out what the net's own state chooses"
        );
        let log = succeeds(own.path(), &[command, &["-stage", "b"]].concat());
        assert!(creates(&log, "high") && !creates(&log, "low"), "{command:?} has no stages but those of the flag");
    }
    let log = succeeds(path, &[&TRAIN[..], &["-weights", "out_iter_2.caffemodel,out_iter_4.caffemodel"]].concat());
    let from: Vec<_> = log.iter().filter(|l| l.starts_with("Finetuning from ")).collect();
    assert_eq!(from, ["Finetuning from out_iter_2.caffemodel", "Finetuning from out_iter_4.caffemodel"]);
    let log = succeeds(path, &[&TRAIN[..], &["--snapshot=out_iter_2.solverstate"]].concat());
    assert!(log.iter().any(|l| l == "Resuming from out_iter_2.solverstate"));
    assert!(!log.iter().any(|l| l.contains("Snapshotting to binary proto file out_iter_2")));
}

#[test]
fn test_tells_batches_and_means() {
    let folder = job(NET, SOLVER);
    succeeds(folder.path(), &TRAIN);
    let args = ["test", "-model", "net.prototxt", "-weights", "out_iter_4.caffemodel", "-iterations", "3"];
    let log = succeeds(folder.path(), &args);
    let from = log.iter().position(|l| l == "Running for 3 iterations.").unwrap();
    let told = &log[from + 1..];
    let number = |line: &str, start: &str| -> f64 {
        line.strip_prefix(start).unwrap_or_else(|| panic!("{line}")).split(' ').next().unwrap().parse().unwrap()
    };
    let (mut accuracy, mut loss) = (0.0, 0.0);
    for batch in 0..3 {
        accuracy += number(&told[2 * batch], &format!("Batch {batch}, accuracy = "));
        loss += number(&told[2 * batch + 1], &format!("Batch {batch}, loss = "));
    }
    assert!((number(&told[6], "Loss: ") - loss / 3.0).abs() < 1e-4);
    assert!((number(&told[7], "accuracy = ") - accuracy / 3.0).abs() < 1e-4);
    assert!((number(&told[8], "loss = ") - loss / 3.0).abs() < 1e-4);
    says(&told[8], &[" (* 1 = ", " loss)"]);
    assert_eq!(told.len(), 9);
    let missing = ["test", "-model", "net.prototxt", "-weights", "no.caffemodel"];
    fails(folder.path(), &missing, &["no.caffemodel: cannot open"]);
}

#[test]
fn time_tells_every_layer_and_the_sums() {
    let folder = job(NET, SOLVER);
    let log = succeeds(folder.path(), &["time", "-model", "net.prototxt", "-iterations", "2"]);
    let text = log.join("\n");
    let mut parts = vec!["Performing Forward".to_string(), "Initial loss: ".into(), "Performing Backward".into()];
    parts.extend(["*** Benchmark begins ***".into(), "Testing for 2 iterations.".into()]);
    parts.extend((1..=2).map(|i| format!("Iteration: {i} forward-backward time: ")));
    parts.push("Average time per layer: ".into());
    for layer in ["x", "ip", "loss"] {
        parts.extend(["forward", "backward"].map(|pass| format!("{layer:>10}\t{pass}: ")));
    }
    let ends = ["Average Forward pass: ", "Average Backward pass: ", "Average Forward-Backward: ", "Total Time: "];
    parts.extend(ends.map(String::from));
    parts.push("*** Benchmark ends ***".into());
    says(&text, &parts.iter().map(String::as_str).collect::<Vec<_>>());
    let test = succeeds(folder.path(), &["time", "-model", "net.prototxt", "-iterations", "1", "-phase", "TEST"]);
    assert!(test.iter().any(|l| l.starts_with("  accuracy\tforward: ")), "{test:#?}");
    assert!(!log.iter().any(|l| l.contains("accuracy\tforward")));
}
