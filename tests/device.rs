//! Commands on the simulated GPU.

use std::path::Path;

use lgm_testkit::has_simulator;

use crate::util::{command, text};

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
    let mut command = command(folder, args);
    command.envs(gpu.map(|gpu| ("LGM_GPU", gpu))).envs(layout.map(|layout| ("LGM_LAYOUT", layout)));
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).lines().map(|line| text(line).to_string()).collect();
    (output.status.success(), log)
}

/// The numbers of what training and tests show.
fn losses(log: &[String]) -> Vec<f64> {
    let shown = log.iter().filter(|l| l.starts_with("Iteration ") || l.contains("net output"));
    let number = |line: &String| line.rsplit_once("loss = ")?.1.split(' ').next()?.parse().ok();
    shown.filter_map(number).collect()
}

#[test]
fn train_test_and_time_run_on_a_gpu_as_on_the_cpu() {
    if !has_simulator() {
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
    for (precision, said) in [(Some("fp32"), "fp32"), (None, "tf32")] {
        let flag = precision.map_or(vec![], |p| vec!["-precision", p]);
        let gpu = on_gpu(&[&train[..], &flag].concat());
        assert!(gpu.contains(&"Recorded as one graph: clear, forward, backward, update".into()), "{gpu:#?}");
        assert!(gpu.contains(&format!("Matrix products and convolutions in {said}")), "{gpu:#?}");
        let (want, got) = (losses(&cpu), losses(&gpu));
        assert!(want.len() >= 9 && want.len() == got.len(), "{want:?} and {got:?}");
        want.iter().zip(&got).for_each(|(w, g)| assert!((w - g).abs() < 1e-4 * w.abs(), "{want:?} and {got:?}"));
    }

    let test = ["test", "-model", "net.prototxt", "-weights", "out_iter_12.caffemodel", "-iterations", "3"];
    let loss = |log: &[String]| -> f64 {
        log.iter().find_map(|l| l.strip_prefix("Loss: ")).unwrap_or_else(|| panic!("{log:#?}")).parse().unwrap()
    };
    assert!(loss(&on_gpu(&test)) > 0.0);
    for subject in [["-model", "net.prototxt"], ["-solver", "s.prototxt"]] {
        let log = on_gpu(&[&["time"][..], &subject, &["-iterations", "2"]].concat());
        assert!(log.iter().any(|l| l.starts_with("Total Time: ")), "{log:#?}");
        assert!(log.iter().any(|l| l.contains("bytes in one arena")), "{log:#?}");
        assert!(log.iter().any(|l| l.starts_with("This GPU: ") && l.ends_with(" GB/s in a copy.")), "{log:#?}");
        let floor = log.iter().any(|l| l.starts_with("Its work (") && l.ends_with("% of its time."));
        assert_eq!(floor, subject[0] == "-solver", "{log:#?}");
        let peak = log.iter().find_map(|l| l.strip_prefix("Peak on the simulated GPU: ")).unwrap();
        assert!(
            peak.contains(" taken, ")
                && peak.contains(" of it by libraries")
                && peak.ends_with(" of 64.0 GiB free.")
                && !peak.starts_with('0'),
            "{peak}"
        );
    }
    for gpu in [None, Some("sim")] {
        let device: &[&str] = if gpu.is_some() { &["-gpu", "0"] } else { &[] };
        let time = ["time", "-solver", "s.prototxt", "-iterations", "1", "-seconds", "0.05"];
        let (success, log) = run(folder, gpu, &[&time[..], device].concat());
        assert!(success, "{log:#?}");
        let number = |what: &str| -> f64 {
            let found = log.iter().find_map(|l| l.strip_prefix(what)?.split(' ').next()?.parse().ok());
            found.unwrap_or_else(|| panic!("{what} is missing in {log:#?}"))
        };
        // An iteration of this net takes far less.
        let (count, average) = (number("Testing for "), number("Average iteration: "));
        assert!(count > 5.0 && average < 10.0 && (5.0..500.0).contains(&(count * average)), "{log:#?}");
    }
    let (success, log) = run(folder, None, &["time", "-solver", "s.prototxt", "-seconds", "-1"]);
    assert!(!success && log.iter().any(|l| l.contains("expected seconds, from 0 to 86400")), "{log:#?}");
    let (success, log) = run(folder, None, &[&train[..], &["-precision", "bf61"]].concat());
    assert!(!success && log.iter().any(|l| l.contains("unknown precision 'bf61'")), "{log:#?}");
}

/// A label that is no class ends a run with code 1, after a snapshot of the iteration before, from which another goes on.
#[test]
fn a_fault_on_a_gpu_leaves_a_snapshot() {
    if !has_simulator() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let labels = |odd: f32| {
        let x: Vec<f32> = (0..60).map(|i| (i * 37 % 11) as f32 / 11.0).collect();
        let label: Vec<f32> = (0..20).map(|i| if i == 14 { odd } else { (i % 2) as f32 }).collect();
        let file = folder.join("x.h5");
        let _ = std::fs::remove_file(&file);
        lgm_data::hdf5::write_f32(&file, &[("x", &[20, 3].into(), &x), ("label", &[20].into(), &label)]).unwrap();
    };
    std::fs::write(folder.join("x.txt"), "x.h5\n").unwrap();
    let net = "
        layer { name: 'x' type: 'HDF5Data' top: 'x' top: 'label' hdf5_data_param { source: 'x.txt' batch_size: 4 } }
        layer { name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y' inner_product_param { num_output: 2 weight_filler { type: 'xavier' } } }
        layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'y' bottom: 'label' top: 'loss' }";
    std::fs::write(folder.join("net.prototxt"), net).unwrap();
    std::fs::write(
        folder.join("s.prototxt"),
        SOLVER.replace("test_iter: 3 test_interval: 6", "").replace("display: 4", ""),
    )
    .unwrap();
    let train = ["train", "-solver", "s.prototxt", "-gpu", "0"];
    labels(5.0);
    let output = command(folder, &train).env("LGM_GPU", "sim").output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let last = log.lines().rfind(|l| l.contains("lgm-caffe: error: ")).unwrap();
    let end = "iteration 3, the last whole one, is saved: resume with -snapshot out_iter_3.solverstate";
    assert!(last.contains("layer 'loss' (SoftmaxWithLoss)") && last.ends_with(end), "{log}");
    labels(0.0);
    let resumed = [&train[..], &["-snapshot", "out_iter_3.solverstate"]].concat();
    let (success, log) = run(folder, Some("sim"), &resumed);
    assert!(success && folder.join("out_iter_12.caffemodel").exists(), "{log:#?}");
}

#[test]
fn memory_is_told_and_must_suffice() {
    if !has_simulator() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wide = NET.replace("dim: 8", "dim: 2000");
    std::fs::write(folder.join("net.prototxt"), &wide).unwrap();
    std::fs::write(folder.join("s.prototxt"), SOLVER).unwrap();
    let summary = |gpu: &str, more: &[&str]| {
        let args = [&["summary", "-model", "net.prototxt", "-gpu", "0"][..], more].concat();
        let output = command(folder, &args).env("LGM_GPU", gpu).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (success, said, log) = summary("sim", &[]);
    assert!(success, "{log}");
    let line =
        |start: &str| said.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{said}")).to_string();
    let on = line("on the simulated GPU: ");
    for part in ["KiB in the arena", "KiB for two batches on their way", "256 bytes for parameters and their gradients"]
    {
        assert!(on.contains(part), "{part} is not in {on}");
    }
    assert!(on.ends_with("64.0 GiB of 64.0 GiB were free"), "{on}");
    let training = line("training needs ");
    assert!(
        training.contains(" with SGD") && training.contains(" with Adam") && !training.contains("more"),
        "{training}"
    );
    let (success, said, log) = summary("sim", &["-phase", "TEST"]);
    assert!(success && said.contains("128 bytes for parameters;") && !said.contains("training needs"), "{said}{log}");

    let small = "sim:60000";
    for args in [
        &["train", "-solver", "s.prototxt"][..],
        &["summary", "-model", "net.prototxt"],
        &["time", "-model", "net.prototxt"],
    ] {
        let (success, log) = run(folder, Some(small), &[args, &["-gpu", "0"]].concat());
        let error = log.iter().find(|l| l.contains("does not fit")).unwrap_or_else(|| panic!("{log:#?}"));
        assert!(!success && error.contains("it needs ") && error.contains("of 58.6 KiB are free"), "{error}");
        assert!(!log.iter().any(|l| l == "Starting Optimization"), "{log:#?}");
        let about = error.split("a batch of about ").nth(1).and_then(|t| t.split(' ').next()).unwrap();
        // As many as were said do fit.
        let batch: usize = about.parse().unwrap();
        assert!((100..2000).contains(&batch), "{error}");
        std::fs::write(folder.join("net.prototxt"), NET.replace("dim: 8", &format!("dim: {batch}"))).unwrap();
        let (success, log) = run(folder, Some(small), &["summary", "-model", "net.prototxt", "-gpu", "0"]);
        assert!(success, "{log:#?}");
        std::fs::write(folder.join("net.prototxt"), &wide).unwrap();
    }
}

#[test]
fn blobs_in_bf16_and_channels_last() {
    if !has_simulator() {
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
        // The convolution by our own kernels, and by a library.
        let (success, by_library) = run_in_layout(folder, Some("sim-library"), layout, &train);
        assert!(success, "{by_library:#?}");
        for log in [&log, &by_library] {
            let got = losses(log);
            assert_eq!(got.len(), want.len());
            want.iter().zip(&got).for_each(|(w, g)| assert!((w - g).abs() < 0.03 * w.abs(), "{want:?} and {got:?}"));
        }
        let time = ["time", "-model", "net.prototxt", "-gpu", "0", "-precision", "bf16", "-iterations", "1"];
        let (success, log) = run_in_layout(folder, Some("sim"), layout, &time);
        let conversions = log.iter().find(|l| l.starts_with("Between formats: ")).unwrap_or_else(|| panic!("{log:#?}"));
        let count =
            if layout.is_some() { "3 conversions forward and 2 backward" } else { "2 conversions forward and 1" };
        assert!(success && conversions.contains(count), "{conversions}");
        assert!(log.iter().any(|l| l.contains("y to f32 NCHW\tforward: ")), "{log:#?}");
        let made = "Convolutions of a forward and a backward pass: ";
        let (library, timed) = run_in_layout(folder, Some("sim-library"), layout, &time);
        assert!(
            library
                && timed.contains(&format!(
                    "{made}2 by cuDNN (1 filter, 1 forward), 0 as matrix products by cuBLAS, 0 by our own kernels."
                )),
            "{timed:#?}"
        );
        let own = format!(
            "{made}0 by cuDNN, 0 as matrix products by cuBLAS, 2 by our own kernels (conv forward, conv filter)."
        );
        assert!(log.contains(&own) && run_in_layout(folder, Some("sim"), layout, &train).1.contains(&own), "{log:#?}");
    }
    let (success, log) = run_in_layout(folder, Some("sim"), Some("hwcn"), &train);
    assert!(!success && log.iter().any(|l| l.contains("LGM_LAYOUT is 'hwcn'; it can be nchw or nhwc")), "{log:#?}");
}
