//! Signals that a run gets.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::util::*;

#[test]
fn sighup_takes_a_snapshot_and_sigint_stops() {
    let folder = job(NET, &SOLVER.replace("max_iter: 4", "display: 1000 max_iter: 2000000000"));
    let mut command = command(folder.path(), &TRAIN);
    let mut train = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(train.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("Iteration 1000 ")));
    train.signal("HUP");
    assert!(lines.any(|line| line.contains("Snapshotting solver state")));
    assert!(lines.any(|line| line.contains(" iter/s, ")), "training did not go on");
    train.signal("INT");
    let rest: Vec<_> = lines.collect();
    assert!(rest.iter().any(|line| line.contains("Snapshotting solver state")), "{rest:?}");
    assert!(rest.iter().any(|line| line.ends_with("Optimization stopped early.")), "{rest:?}");
    assert!(train.0.wait().unwrap().success());
    let names = fs::read_dir(folder.path()).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    assert_eq!(names.filter(|name| name.ends_with(".solverstate")).count(), 2);
}

/// A run asked to stop, or only to take a snapshot, while it does little but write: it ends when all it took is on disk.
#[test]
fn a_run_that_is_stopped_has_written_its_snapshots() {
    let net = NET.replace("dim: 12", "dim: 100000");
    for format in ["BINARYPROTO", "HDF5"] {
        let solver =
            format!("{SOLVER} momentum: 0.9 snapshot_format: {format}").replace("max_iter: 4", "max_iter: 1000000");
        let folder = job(&net, &solver);
        let end = if format == "HDF5" { ".h5" } else { "" };
        let state_end = format!(".solverstate{end}");
        let log = folder.path().join("log");
        let stderr = fs::File::create(&log).unwrap();
        let mut train = Running(command(folder.path(), &TRAIN).stderr(stderr).spawn().unwrap());
        let wait = |until: &dyn Fn() -> bool| {
            (0..2000).take_while(|_| !until()).for_each(|_| std::thread::sleep(Duration::from_millis(5)));
            assert!(until(), "{}", fs::read_to_string(&log).unwrap());
        };
        wait(&|| fs::read_to_string(&log).unwrap().contains("Starting Optimization"));
        train.signal("HUP");
        wait(&|| !snapshots(folder.path(), &state_end).is_empty());
        train.signal("HUP");
        train.signal("INT");
        assert!(train.ends(Duration::from_secs(60)), "Ctrl-C stops the run");
        assert!(train.0.wait().unwrap().success());
        let models = snapshots(folder.path(), &format!(".caffemodel{end}"));
        let states = snapshots(folder.path(), &state_end);
        assert!(!states.is_empty() && models.len() == states.len(), "{models:?} and {states:?}");
        assert!(models.iter().zip(&states).all(|(m, s)| m.0 == s.0), "{models:?} and {states:?}");
        let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|n| n.contains(".tmp-")).count(), 0);
        let (last, state) = states.last().unwrap();
        let more = solver.replace("1000000", &(last + 1).to_string());
        fs::write(folder.path().join("solver.prototxt"), more).unwrap();
        succeeds(folder.path(), &[&TRAIN[..], &["-snapshot", state]].concat());
    }
}

/// A net that is a pipe nobody writes to holds the run up for as long as wanted.
#[test]
fn a_second_ctrl_c_does_not_wait() {
    let folder = job(NET, SOLVER);
    let net = folder.path().join("net.prototxt");
    fs::remove_file(&net).unwrap();
    assert!(Command::new("mkfifo").arg(&net).status().unwrap().success());
    for effect in ["stop", "snapshot", "none"] {
        let args = [&TRAIN[..], &["-sigint_effect", effect]].concat();
        let mut train = Running(command(folder.path(), &args).stderr(Stdio::null()).spawn().unwrap());
        assert!(!train.ends(Duration::from_millis(400)), "the run did not wait for its net");
        train.signal("INT");
        assert!(!train.ends(Duration::from_millis(150)), "one Ctrl-C is a request: {effect}");
        train.signal("INT");
        match effect {
            "stop" => {
                assert!(train.ends(Duration::from_secs(10)), "the second Ctrl-C was not heard");
                assert_eq!(train.0.wait().unwrap().signal(), Some(2));
            }
            _ => assert!(!train.ends(Duration::from_millis(150)), "{effect} never ends a run"),
        }
    }
}
