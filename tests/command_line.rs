//! The binary as a user meets it: usage, mistakes, the log and what reads it, signals.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use regex::Regex;

use crate::util::{NET, SOLVER, TRAIN, binary, command, job};

fn run(args: &[&str]) -> Output {
    command(Path::new("."), args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Severity, month and day, time, thread, source file and line, text.
fn stamped() -> Regex {
    Regex::new(r"^([IWEF])(\d{4}) (\d\d:\d\d:\d\d\.\d{6}) +(\d+) ([\w-]+\.rs):(\d+)\] (.*)$").unwrap()
}

/// The texts of a log, whose every line must have a stamp.
fn texts(log: &str) -> Vec<String> {
    let stamped = stamped();
    let text = |line: &str| {
        let parts = stamped.captures(line).unwrap_or_else(|| panic!("no stamp: {line}"));
        parts[7].to_string()
    };
    log.lines().map(text).collect()
}

#[test]
fn alone_it_prints_its_usage() {
    let output = run(&[]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    for word in ["Usage: lgm-caffe", "train", "test", "time", "device_query", "convert-mnist", "convert-cifar"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    let version = String::from_utf8(run(&["-version"]).stdout).unwrap();
    assert_eq!(version, format!("lgm-caffe {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(String::from_utf8(run(&["train", "-version"]).stdout).unwrap(), version);
}

#[test]
fn mistakes_are_answered_in_the_log_with_code_2() {
    let table: &[(&[&str], &str)] = &[
        (&["trian", "-solver", "s"], "unknown command 'trian'; did you mean 'train'?"),
        (&["train_net", "s"], "unknown command 'train_net', an older tool of Caffe's; use 'lgm-caffe train -solver "),
        (&["train", "-flagfile", "no/flags"], "no/flags: cannot open the flags: "),
        (&["train", "-solvr", "s"], "unknown flag '-solvr'; did you mean '-solver'?"),
        (&["train"], "the following required arguments were not provided:"),
        (&["train", "-solver"], "a value is required for '--solver <FILE>'"),
        (&["train", "-solver=s", "-gpu=one"], "invalid value 'one' for '--gpu <IDS>': expected GPU numbers like '0'"),
        (&["train", "-solver=s", "-sigint_effect=halt"], "invalid value 'halt' for '--sigint_effect <EFFECT>'"),
        (&["train", "-solver=s", "-snapshot=a", "-weights=b"], "the argument '--snapshot <FILE>' cannot be used with"),
        (&["test", "-model=m", "-weights=a, ,b"], "invalid value ' ' for '--weights <FILES>': expected file names"),
        (&["test", "-model=m", "-weights=w", "-iterations=0"], "invalid value '0' for '--iterations <N>'"),
        (&["time", "-model=m", "-phase=TRIAN"], "invalid value 'TRIAN' for '--phase <PHASE>'"),
        (&["-solver", "s"], "which command?"),
        (&["time", "-solver=s", "-model=m"], "the argument '--model <FILE>' cannot be used with '--solver <FILE>'"),
    ];
    for (args, expected) in table {
        let output = run(args);
        let log = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {log}");
        assert!(log.starts_with('F'), "{log}");
        let first = texts(&log).swap_remove(0);
        assert!(first.starts_with(&format!("lgm-caffe: error: {expected}")), "{args:?}: {first}");
    }
}

#[test]
fn of_flags_of_which_one_is_required_all_are_named() {
    for (args, expected) in [
        (&["time"][..], "  <--model <FILE>|--solver <FILE>>"),
        (&["adversarial", "-model=m", "-weights=w"], "  <--epsilon <FRACTIONS>|--against <SOURCE>>"),
    ] {
        let log = texts(&stderr(&run(args)));
        assert!(log.iter().any(|line| line.ends_with(expected)), "{args:?}: {log:#?}");
    }
}

#[test]
fn under_the_name_of_a_tool_it_is_that_tool() {
    let folder = job(NET, SOLVER);
    fs::write(folder.path().join("old.prototxt"), "layers { name: 'r' type: RELU bottom: 'x' top: 'y' }").unwrap();
    for (name, args, code, expected) in [
        (
            "upgrade_net_proto_text",
            &["old.prototxt", "new.prototxt"][..],
            0,
            "Wrote upgraded NetParameter text proto to",
        ),
        ("compute_image_mean.bin", &["none"], 1, "lgm-caffe: error: none: cannot open the database"),
        ("extract_features", &["-logtostderr"], 2, "lgm-caffe: error: the following required arguments"),
        ("caffe", &TRAIN, 0, "Optimization Done."),
        ("caffe.bin", &TRAIN, 0, "Optimization Done."),
        // A name that programs have anyway is none of a tool's.
        ("time", &TRAIN, 0, "Optimization Done."),
    ] {
        let link = folder.path().join(name);
        symlink(binary(), &link).unwrap();
        let output = Command::new(&link).args(args).current_dir(folder.path()).output().unwrap();
        let log = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{name}: {log}");
        assert!(log.contains(expected), "{name}: {log}");
    }
}

#[test]
fn a_log_folder_that_is_not_there_is_warned_of() {
    let folder = job(NET, SOLVER);
    for (flags, variable) in [(&["-log_dir", "none"][..], ""), (&[], "none")] {
        let mut train = command(folder.path(), &[&TRAIN[..], flags].concat());
        let output = train.env("GLOG_log_dir", variable).output().unwrap();
        let log = texts(&stderr(&output));
        assert!(output.status.success(), "{log:#?}");
        let warned = "none/lgm-caffe.";
        assert!(log[0].starts_with(warned) && log[0].ends_with("; the log goes to stderr alone"), "{log:#?}");
        assert!(log.iter().any(|line| line == "Optimization Done."), "{log:#?}");
    }
}

#[test]
fn a_missing_file_is_named_with_code_1_and_a_useless_flag_is_warned_of() {
    let output = run(&["train", "-solver", "no/such.prototxt", "-iterations", "3"]);
    let log = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let texts = texts(&log);
    assert_eq!(texts[0], "flag -iterations has no effect on 'train'");
    assert!(texts[1].starts_with("lgm-caffe: error: no/such.prototxt: "), "{log}");
}

#[test]
fn device_query_tells_every_library_and_fails_for_a_gpu_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let query = |args: &[&str]| command(folder.path(), args).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    let output = query(&["device_query"]);
    let log = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let texts: Vec<String> = log.lines().map(String::from).collect();
    for name in ["CUDA driver", "NVRTC", "cuBLAS", "cuDNN", "NCCL"] {
        let row = texts.iter().find(|text| text.starts_with(&format!("  {name} "))).unwrap();
        if row.ends_with(" missing") {
            let place = format!("  LD_LIBRARY_PATH: {}: not there", folder.path().display());
            assert!(texts.contains(&place), "{log}");
        }
    }
    let output = query(&["device_query", "-gpu", "4096"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("lgm-caffe: error: -gpu 4096: "));
}

#[test]
fn log_scripts_find_what_they_look_for() {
    let solver = "net: 'net.prototxt' snapshot_prefix: 'out' base_lr: 0.01 lr_policy: 'step' gamma: 0.5 stepsize: 20 \
                  display: 10 max_iter: 40 test_iter: 2 test_interval: 20";
    let folder = job(NET, solver);
    fs::create_dir(folder.path().join("logs")).unwrap();
    let args = ["-solver=solver.prototxt", "train", "--log_dir", "logs"];
    let output = command(folder.path(), &args).output().unwrap();
    let log = stderr(&output);
    assert!(output.status.success(), "{log}");
    let file = fs::read_to_string(folder.path().join("logs/lgm-caffe.INFO")).unwrap();
    assert_eq!(file.lines().skip(3).collect::<Vec<_>>(), log.lines().collect::<Vec<_>>());

    // What the scripts take: the line that starts the clock, then numbers out of lines by their words.
    let texts = texts(&log);
    let start = texts.iter().position(|text| text.contains("Solving")).unwrap();
    assert_eq!(texts[start], "Solving tiny");
    let numbers = |pattern: &str| -> Vec<f64> {
        let pattern = Regex::new(pattern).unwrap();
        let found = texts[start..].iter().filter_map(|text| pattern.captures(text));
        found.map(|parts| parts[1].parse().unwrap()).collect()
    };
    assert_eq!(numbers(r"^Iteration (\d+) \(.* iter/s, .*s/10 iters\), loss = "), [0.0, 10.0, 20.0, 30.0]);
    assert_eq!(numbers(r"^Iteration (\d+), Testing net \(#0\)$"), [0.0, 20.0, 40.0]);
    assert_eq!(numbers(r"^Iteration \d+, lr = ([0-9.e+-]+)$"), [0.01, 0.01, 0.005, 0.005]);
    let output = r" net output #\d: loss = ([0-9.e+-]+) \(\* 1 = [0-9.e+-]+ loss\)$";
    assert_eq!(numbers(&format!("Train{output}")).len(), 4);
    assert_eq!(numbers(&format!("Test{output}")).len(), 3);
}
