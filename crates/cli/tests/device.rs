//! Commands on the simulated GPU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

const NET: &str = "
    layer { name: 'x' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 8 dim: 3 } data_filler { type: 'gaussian' } } }
    layer { name: 't' type: 'DummyData' top: 't' dummy_data_param { shape { dim: 8 dim: 2 } data_filler { type: 'gaussian' } } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y' inner_product_param { num_output: 2 weight_filler { type: 'xavier' } } }
    layer { name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 't' top: 'loss' }";
const SOLVER: &str = "net: 'net.prototxt' base_lr: 0.1 momentum: 0.9 lr_policy: 'fixed' random_seed: 3 display: 4 \
    max_iter: 12 snapshot_prefix: 'out' test_iter: 3 test_interval: 6 ";

/// What a command logs, without stamps, and whether it succeeded.
fn run(folder: &Path, gpu: Option<&str>, args: &[&str]) -> (bool, Vec<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lgm-caffe"));
    command.current_dir(folder).args(args).env_remove("LGM_GPU").envs(gpu.map(|gpu| ("LGM_GPU", gpu)));
    let output = command.output().unwrap();
    let text = |line: &str| line.split_once("] ").map_or(line, |(_, text)| text).to_string();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).lines().map(text).collect())
}

/// The numbers of what training and tests show.
fn losses(log: &[String]) -> Vec<f64> {
    let shown = log.iter().filter(|l| l.starts_with("Iteration ") || l.contains("net output"));
    let number = |line: &String| line.rsplit_once("loss = ")?.1.split(' ').next()?.parse().ok();
    shown.filter_map(number).collect()
}

#[test]
fn train_test_and_time_run_on_a_gpu_as_on_the_cpu() {
    if Command::new(std::env::var("CXX").unwrap_or("g++".into())).arg("--version").output().is_err() {
        println!("skipped: no C++ compiler for the simulated GPU");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("net.prototxt"), NET).unwrap();
    std::fs::write(folder.join("s.prototxt"), SOLVER).unwrap();
    let on_gpu = |args: &[&str]| {
        let (success, log) = run(folder, Some("sim"), &[args, &["-gpu", "0"]].concat());
        assert!(success, "{args:?}: {log:#?}");
        assert!(log.iter().any(|l| l.contains("simulated GPU")) && !log.contains(&"Use CPU.".into()), "{log:#?}");
        log
    };
    let train = ["train", "-solver", "s.prototxt"];
    let (success, cpu) = run(folder, None, &train);
    assert!(success, "{cpu:#?}");
    let gpu = on_gpu(&train);
    assert!(gpu.contains(&"Recorded as one graph: clear, forward, backward, update".into()), "{gpu:#?}");
    let (want, got) = (losses(&cpu), losses(&gpu));
    assert!(want.len() >= 9 && want.len() == got.len(), "{want:?} and {got:?}");
    want.iter().zip(&got).for_each(|(w, g)| assert!((w - g).abs() < 1e-4 * w.abs(), "{want:?} and {got:?}"));

    let test = ["test", "-model", "net.prototxt", "-weights", "out_iter_12.caffemodel", "-iterations", "3"];
    let loss = |log: &[String]| -> f64 {
        log.iter().find_map(|l| l.strip_prefix("Loss: ")).unwrap_or_else(|| panic!("{log:#?}")).parse().unwrap()
    };
    assert!(loss(&on_gpu(&test)) > 0.0);
    for subject in [["-model", "net.prototxt"], ["-solver", "s.prototxt"]] {
        let log = on_gpu(&[&["time"][..], &subject, &["-iterations", "2"]].concat());
        assert!(log.iter().any(|l| l.starts_with("Total Time: ")), "{log:#?}");
        assert!(log.iter().any(|l| l.contains("bytes in one arena")), "{log:#?}");
    }
    let (success, log) = run(folder, None, &[&train[..], &["-precision", "bf61"]].concat());
    assert!(!success && log.iter().any(|l| l.contains("unknown precision 'bf61'")), "{log:#?}");
}
