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
    run_in_layout(folder, gpu, None, args)
}

/// The same with `LGM_LAYOUT`.
fn run_in_layout(folder: &Path, gpu: Option<&str>, layout: Option<&str>, args: &[&str]) -> (bool, Vec<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lgm-caffe"));
    command.current_dir(folder).args(args).env_remove("LGM_GPU").env_remove("LGM_LAYOUT");
    command.envs(gpu.map(|gpu| ("LGM_GPU", gpu))).envs(layout.map(|layout| ("LGM_LAYOUT", layout)));
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

#[test]
fn blobs_in_bf16_and_channels_last() {
    if Command::new(std::env::var("CXX").unwrap_or("g++".into())).arg("--version").output().is_err() {
        println!("skipped: no C++ compiler for the simulated GPU");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let net = "
        layer { name: 'x' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 4 dim: 2 dim: 6 dim: 6 } data_filler { type: 'gaussian' } } }
        layer { name: 't' type: 'DummyData' top: 't' dummy_data_param { shape { dim: 4 dim: 3 } data_filler { type: 'gaussian' } } }
        layer { name: 'conv' type: 'Convolution' bottom: 'x' top: 'c' convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: 'msra' } } }
        layer { name: 'relu' type: 'ReLU' bottom: 'c' top: 'c' }
        layer { name: 'ip' type: 'InnerProduct' bottom: 'c' top: 'y' inner_product_param { num_output: 3 weight_filler { type: 'xavier' } } }
        layer { name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 't' top: 'loss' }";
    std::fs::write(folder.join("net.prototxt"), net).unwrap();
    std::fs::write(
        folder.join("s.prototxt"),
        format!("{SOLVER} precision: 'bf16'").replace("base_lr: 0.1", "base_lr: 0.02"),
    )
    .unwrap();
    let train = ["train", "-solver", "s.prototxt", "-gpu", "0"];
    let (_, plain) = run(folder, Some("sim"), &[&train[..], &["-precision", "fp32"]].concat());
    let want = losses(&plain);
    assert!(want.len() >= 9 && !plain.iter().any(|l| l.contains("Blobs between layers")), "{plain:#?}");
    for (layout, said) in [(None, "NHWC where tensor cores take it"), (Some("nhwc"), "NHWC wherever a layer can")] {
        let (success, log) = run_in_layout(folder, Some("sim"), layout, &train);
        assert!(
            success && log.iter().any(|l| l.starts_with("Blobs between layers in bf16") && l.contains(said)),
            "{log:#?}"
        );
        let got = losses(&log);
        assert_eq!(got.len(), want.len());
        want.iter().zip(&got).for_each(|(w, g)| assert!((w - g).abs() < 0.03 * w.abs(), "{want:?} and {got:?}"));
        let time = ["time", "-model", "net.prototxt", "-gpu", "0", "-precision", "bf16", "-iterations", "1"];
        let (success, log) = run_in_layout(folder, Some("sim"), layout, &time);
        let conversions = log.iter().find(|l| l.starts_with("Between formats: ")).unwrap_or_else(|| panic!("{log:#?}"));
        let count =
            if layout.is_some() { "3 conversions forward and 2 backward" } else { "2 conversions forward and 1" };
        assert!(success && conversions.contains(count), "{conversions}");
        assert!(log.iter().any(|l| l.contains("y to f32 NCHW\tforward: ")), "{log:#?}");
    }
    let (success, log) = run_in_layout(folder, Some("sim"), Some("hwcn"), &train);
    assert!(!success && log.iter().any(|l| l.contains("LGM_LAYOUT is 'hwcn'; it can be nchw or nhwc")), "{log:#?}");
}
