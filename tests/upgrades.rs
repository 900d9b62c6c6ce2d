//! Files of older formats: upgraded, trained from as they are, and refused.

use std::fs;

use lgm_proto::{BlobProto, LayerParameter, NetParameter, V1LayerParameter, encode, read_weights};
use lgm_testkit::says;

use crate::util::*;

const OLD_NET: &str = "name: 'old'
layers { name: 'x' type: DUMMY_DATA top: 'x' top: 'label' dummy_data_param {
  num: 8 channels: 12 height: 1 width: 1 num: 8 channels: 1 height: 1 width: 1
  data_filler { type: 'gaussian' } data_filler { value: 1 } } }
layers { name: 'ip' type: INNER_PRODUCT bottom: 'x' top: 'y' blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  inner_product_param { num_output: 4 weight_filler { type: 'xavier' } } }
layers { name: 'loss' type: SOFTMAX_LOSS bottom: 'y' bottom: 'label' top: 'loss' }
";

/// An older net's weights, whose product `ip` is 4 × 12.
fn old_weights() -> Vec<u8> {
    let blob = |height, width, count: i32| BlobProto {
        num: Some(1),
        channels: Some(1),
        height: Some(height),
        width: Some(width),
        double_data: (0..count).map(|i| f64::from(i % 7) / 16.0).collect(),
        ..BlobProto::default()
    };
    let ip = V1LayerParameter {
        name: Some("ip".into()),
        r#type: Some(14),
        blobs: vec![blob(4, 12, 48), blob(1, 4, 4)],
        ..V1LayerParameter::default()
    };
    encode(&NetParameter { layers: vec![ip], ..NetParameter::default() })
}

#[test]
fn a_net_of_which_nothing_is_left_is_told() {
    let folder = tempfile::tempdir().unwrap();
    // An input without a shape, which Caffe drops too.
    fs::write(folder.path().join("old"), "input: 'x'\n").unwrap();
    let log = succeeds(folder.path(), &["upgrade_net_proto_text", "old", "new"]);
    says(log.last().unwrap(), &["new is empty", "old holds nothing that today's format has a place for"]);
    assert!(fs::read(folder.path().join("new")).unwrap().is_empty());
}

#[test]
fn an_older_net_trains_as_its_upgrade_does() {
    let solver = format!("{SOLVER} solver_type: NESTEROV momentum: 0.9 weight_decay: 0.01\n");
    let folder = job(OLD_NET, &solver);
    let at = |name: &str| folder.path().join(name);
    fs::write(at("old.caffemodel"), old_weights()).unwrap();
    let log = succeeds(folder.path(), &["train", "-solver", "solver.prototxt", "-weights", "old.caffemodel"]);
    for (file, command) in [("net.prototxt", "text"), ("old.caffemodel", "binary")] {
        let warning = format!("run 'lgm-caffe upgrade_net_proto_{command} {file} NEW'");
        assert_eq!(log.iter().filter(|line| line.contains(&warning)).count(), 1, "{warning}: {log:#?}");
    }
    fs::rename(at("out_iter_4.caffemodel"), at("first.caffemodel")).unwrap();

    let upgrades = [
        ("upgrade-net-proto-text", "net.prototxt", "NetParameter text"),
        ("upgrade_net_proto_binary", "old.caffemodel", "NetParameter binary"),
        ("upgrade_solver_proto_text", "solver.prototxt", "SolverParameter text"),
    ];
    for (command, file, what) in upgrades {
        // In place, as one does.
        let log = succeeds(folder.path(), &[command, file, file]);
        let wrote = format!("Wrote upgraded {what} proto to {file}");
        assert!(log.len() >= 2 && log.last() == Some(&wrote), "{log:#?}");
        let again = succeeds(folder.path(), &[command, file, "again"]);
        assert_eq!(again[0], format!("File already in latest proto format: {file}"));
        assert_eq!(fs::read(at("again")).unwrap(), fs::read(at(file)).unwrap());
    }
    let log = succeeds(folder.path(), &["train", "-solver", "solver.prototxt", "-weights", "old.caffemodel"]);
    assert!(!log.iter().any(|line| line.contains("older format")), "{log:#?}");
    let blobs =
        |name: &str| read_weights(at(name)).unwrap().layers.into_iter().flat_map(|l| l.blobs).collect::<Vec<_>>();
    let (first, second) = (blobs("first.caffemodel"), blobs("out_iter_4.caffemodel"));
    assert!(first.len() == 2 && first == second);
    assert!(first[0].data[1] != 1.0 / 16.0, "nothing was learned");
}

#[test]
fn inputs_that_cannot_be_upgraded() {
    let folder = job("layer { } layers { }", "solver_type: ADAM type: 'Adam'");
    fs::write(folder.path().join("bad.prototxt"), "layers { nmae: 'x' }").unwrap();
    fs::write(folder.path().join("extra.prototxt"), "layers { layer { name: 'r' type: 'relu' num_output: 3 } }")
        .unwrap();
    fs::write(folder.path().join("odd"), [0xff; 40]).unwrap();
    let layer = LayerParameter { name: Some("r".into()), ..Default::default() };
    let net = NetParameter { name: Some("n".into()), layer: vec![layer], ..Default::default() };
    fs::write(folder.path().join("weights"), encode(&net)).unwrap();
    let both = "the net has both 'layer' and 'layers'";
    fails(folder.path(), &["upgrade_net_proto_text", "net.prototxt", "out"], &["net.prototxt:1:11", both]);
    let both = "both 'type' and the older 'solver_type' are given";
    fails(folder.path(), &["upgrade_solver_proto_text", "solver.prototxt", "out"], &["solver.prototxt:1:1", both]);
    for (command, file, parts) in [
        ("upgrade_net_proto_text", "bad.prototxt", ["text file as NetParameter: bad.prototxt", "did you mean 'name'?"]),
        ("upgrade_net_proto_binary", "bad.prototxt", ["binary file as NetParameter", "found a net's prototxt"]),
        ("upgrade_net_proto_binary", "odd", ["binary file as NetParameter", "not a binary file of Caffe's"]),
        (
            "upgrade_net_proto_text",
            "solver.prototxt",
            ["NetParameter: solver", "a solver's prototxt: -solver takes it"],
        ),
        ("upgrade_net_proto_text", "weights", ["text file as NetParameter", "found weights (.caffemodel)"]),
        ("upgrade_solver_proto_text", "net.prototxt", ["as SolverParameter", "found a net's prototxt"]),
        ("upgrade_solver_proto_text", "none", ["text file as SolverParameter: none", "cannot read"]),
    ] {
        let (output, log) = run(folder.path(), &[command, file, "out"]);
        assert_eq!(output.status.code(), Some(2), "{log:#?}");
        says(&log.join("\n"), &[&["error: Failed to parse input "][..], &parts[..]].concat());
    }
    assert!(!folder.path().join("out").exists());
    // What has no place is left out, and the exit code says so.
    let (output, log) = run(folder.path(), &["upgrade_net_proto_text", "extra.prototxt", "out"]);
    assert_eq!(output.status.code(), Some(1));
    says(
        &log.join("\n"),
        &["layer 'r' (RELU) has no use for num_output", "Wrote upgraded NetParameter text proto to out"],
    );
    let text = fs::read_to_string(folder.path().join("out")).unwrap();
    assert_eq!(text, "layer {\n  name: \"r\"\n  type: \"ReLU\"\n}\n");
}

#[test]
fn a_run_of_ours_becomes_tables() {
    let solver = format!("{SOLVER} test_iter: 1 test_interval: 2 display: 1\n");
    let folder = job(NET, &solver);
    let (output, _) = run(folder.path(), &TRAIN);
    fs::write(folder.path().join("train.log"), &output.stderr).unwrap();
    let printed = prints(folder.path(), &["parse-log", "train.log", ".", "--verbose", "-delimiter", ";"]);
    assert_eq!(printed, "Wrote ./train.log.train\nWrote ./train.log.test\n");
    for (end, head, iterations) in [
        ("train", "NumIters;Seconds;LearningRate;loss", &["0.0", "1.0", "2.0", "3.0"][..]),
        ("test", "NumIters;Seconds;LearningRate;accuracy;loss", &["0.0", "2.0", "4.0"]),
    ] {
        let table = fs::read_to_string(folder.path().join(format!("train.log.{end}"))).unwrap();
        let mut lines = table.lines();
        assert_eq!(lines.next(), Some(head));
        let rows: Vec<Vec<&str>> = lines.map(|line| line.split(';').collect()).collect();
        assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), iterations);
        assert!(rows.iter().all(|row| row[2] == "0.01" && row.len() == head.split(';').count()), "{table}");
    }
    fails(folder.path(), &["parse_log", "net.prototxt", "."], &["net.prototxt: expected the log of a training"]);
    let (output, log) = run(folder.path(), &["parse_log", "train.log", ".", "-delimiter", "ab"]);
    assert_eq!(output.status.code(), Some(2), "{log:#?}");
    assert!(log.join("\n").contains("expected one character"), "{log:#?}");
}
