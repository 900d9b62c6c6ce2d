//! Nets and files that want more than there is: errors in words, exit code 1, nothing left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use lgm_core::Shape;
use lgm_data::hdf5::write_f32;
use tempfile::TempDir;

use crate::util::{binary, datasets, succeeds};

/// Runs the binary under shell limits (`ulimit …;`) and gives its exit code and all it printed.
fn limited(folder: &Path, limits: &str, args: &[&str]) -> (Option<i32>, String) {
    let script = format!("{limits} exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.current_dir(folder).args(["-c", &script]).arg(binary()).args(args).stdin(Stdio::null());
    command.env("RUST_BACKTRACE", "0").env("LGM_NUM_THREADS", "2");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

fn refused(folder: &Path, limits: &str, args: &[&str], parts: &[&str]) {
    let (code, text) = limited(folder, limits, args);
    assert_eq!(code, Some(1), "{args:?}: {text}");
    for part in parts.iter().chain(&["lgm-caffe: error: "]) {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    dir
}

const INPUT: &str =
    "layer { name: 'd' type: 'Input' top: 'x' input_param { shape { dim: 1 dim: 1 dim: 4 dim: 4 } } }\n";

fn input_and(layer: &str) -> String {
    format!("{INPUT}layer {{ name: 'big' bottom: 'x' top: 'y' {layer} }}\n")
}

#[test]
fn shapes_beyond_every_memory_name_their_layer() {
    for layer in [
        "type: 'Convolution' convolution_param { num_output: 1048576 kernel_size: 1 pad: 1048574 }",
        "type: 'Convolution' convolution_param { num_output: 1 kernel_size: 1 pad: 2147483646 }",
        "type: 'Embed' embed_param { input_dim: 4294967295 num_output: 4294967295 }",
        "type: 'Pooling' pooling_param { kernel_size: 4294967295 pad: 4294967294 stride: 1 }",
    ] {
        let dir = folder(&[("net.prototxt", &input_and(layer))]);
        for command in
            [&["summary", "-model", "net.prototxt"][..], &["time", "-model", "net.prototxt", "-iterations", "1"]]
        {
            refused(dir.path(), "", command, &["layer 'big'", "more elements than memory can hold"]);
        }
    }
    // As many elements as 64 bits count, less 28: the product of the extents must not wrap to 16.
    let reshape = input_and("type: 'Reshape' reshape_param { shape { dim: 16 dim: 1152921504606846977 } }");
    let dir = folder(&[("net.prototxt", &reshape)]);
    refused(dir.path(), "", &["summary", "-model", "net.prototxt"], &["layer 'big'", "16 elements"]);
}

#[test]
fn a_net_larger_than_memory_is_summed_up_and_not_run() {
    for layer in [
        "type: 'InnerProduct' inner_product_param { num_output: 4294967295 }",
        "type: 'Convolution' convolution_param { num_output: 2 kernel_size: 3 pad: 400000 }",
        "type: 'Embed' embed_param { num_output: 4294967295 input_dim: 1000 }",
    ] {
        let dir = folder(&[("net.prototxt", &input_and(layer))]);
        let time = ["time", "-model", "net.prototxt", "-iterations", "1"];
        refused(dir.path(), "", &time, &["layer 'big'", "takes", "but there are only"]);
        let (code, text) = limited(dir.path(), "", &["summary", "-model", "net.prototxt"]);
        assert!(code == Some(0) && text.contains("in all") && text.contains("more than there is"), "{text}");
    }
    // 400 MB of weights, copied for their gradients, where 700 are allowed.
    let dir =
        folder(&[("net.prototxt", &input_and("type: 'InnerProduct' inner_product_param { num_output: 6553600 }"))]);
    let time = ["time", "-model", "net.prototxt", "-iterations", "1"];
    refused(dir.path(), "ulimit -v 700000;", &time, &["layer 'big'", "left of the limit on this process"]);
}

#[test]
fn a_stride_beyond_the_image_costs_nothing() {
    for param in [
        "num_output: 2 kernel_size: 3 stride: 2147483647",
        "num_output: 2 kernel_size: 3 stride: 1073741824 pad: 1073741824",
        "num_output: 2 kernel_size: 2 dilation: 1073741824 pad: 536870912",
    ] {
        let layer = input_and(&format!("type: 'Convolution' convolution_param {{ {param} }}"));
        let dir = folder(&[("net.prototxt", &layer)]);
        let time = ["time", "-model", "net.prototxt", "-iterations", "2"];
        let (code, text) = limited(dir.path(), "ulimit -v 2000000; ulimit -t 60;", &time);
        assert_eq!(code, Some(0), "{param}: {text}");
    }
}

#[test]
fn weights_of_another_shape_are_refused_before_they_are_read() {
    let net = input_and("type: 'InnerProduct' inner_product_param { num_output: 1 bias_term: false }");
    let dir = folder(&[("net.prototxt", &net)]);
    let weights = dir.path().join("w.caffemodel.h5");
    write_f32(&weights, &[("data/big/0", &Shape::from([3, 16]), &[0.0; 48])]).unwrap();
    let time = ["test", "-model", "net.prototxt", "-weights", "w.caffemodel.h5", "-iterations", "1"];
    refused(dir.path(), "", &time, &["layer 'big'", "(1, 16)", "(3, 16)"]);
    // 4 TB of values that were never written, in some kilobytes.
    let file = hdf5_metno::File::create(&weights).unwrap();
    file.new_dataset::<f32>().shape([1 << 20, 1 << 20]).chunk([64, 64]).create("data/big/0").unwrap();
    file.close().unwrap();
    refused(dir.path(), "", &time, &["layer 'big'", "(1, 16)", "(1048576, 1048576)"]);
}

/// Where a disk has room for a snapshot's weights and not for its state, the weights are kept, and with them no state of an
/// earlier run; the error says from what to resume.
#[test]
fn the_weights_of_a_snapshot_on_a_full_disk() {
    let net = "layer { name: 'd' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 16 dim: 100 } } }\n\
               layer { name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y' inner_product_param { num_output: 100 } }\n\
               layer { name: 'r' type: 'Reduction' bottom: 'y' top: 'r' loss_weight: 1 }\n";
    for (format, end) in [("BINARYPROTO", ""), ("HDF5", ".h5")] {
        let solver = |more: &str| {
            format!(
                "net: 'net.prototxt' base_lr: 0.001 lr_policy: 'fixed' random_seed: 1 snapshot: 2 snapshot_prefix: 'x' \
                 snapshot_format: {format} {more}\n"
            )
        };
        let dir = folder(&[
            ("net.prototxt", net),
            ("sgd.prototxt", &solver("max_iter: 4")),
            // Twice the history, so that the state is twice as large as the weights.
            ("adam.prototxt", &solver("max_iter: 4 type: 'Adam' momentum: 0.9")),
        ]);
        let path = dir.path();
        let file = |iter: i32, kind: &str| path.join(format!("x_iter_{iter}.{kind}{end}"));
        succeeds(path, &["train", "-solver", "sgd.prototxt"]);
        let older = fs::read(file(2, "caffemodel")).unwrap();
        fs::remove_file(file(4, "caffemodel")).unwrap();
        let limits = "trap '' XFSZ; ulimit -f 120;";
        let what = [
            &format!("the snapshot x_iter_2.solverstate{end} was not written: ")[..],
            "File too large",
            &format!("; the weights are in x_iter_2.caffemodel{end}; there is no snapshot yet"),
        ];
        refused(path, limits, &["train", "-solver", "adam.prototxt"], &what);
        assert!(fs::read(file(2, "caffemodel")).unwrap() != older && !file(2, "solverstate").exists());
        assert!(
            !fs::read_dir(path).unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().contains(".tmp-"))
        );
        // The weights are those of a run that ends there.
        let kept = fs::read(file(2, "caffemodel")).unwrap();
        fs::write(path.join("adam.prototxt"), solver("max_iter: 2 type: 'Adam' momentum: 0.9")).unwrap();
        succeeds(path, &["train", "-solver", "adam.prototxt"]);
        assert!(kept == fs::read(file(2, "caffemodel")).unwrap());
        fs::write(path.join("adam.prototxt"), solver("max_iter: 4 type: 'Adam' momentum: 0.9")).unwrap();
        let state = format!("x_iter_2.solverstate{end}");
        let resumed = ["train", "-solver", "adam.prototxt", "-snapshot", &state];
        refused(path, limits, &resumed, &[&format!("the newest snapshot is {state}: resume with -snapshot {state}")]);
    }
}

/// Whatever the byte at which a disk is full, the error names the file and the system's reason, and no part of it stays.
#[test]
fn hdf5_files_on_a_full_disk() {
    let net = "layer { name: 'd' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 16 dim: 100 } } }\n\
               layer { name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y' inner_product_param { num_output: 100 } }\n\
               layer { name: 'r' type: 'Reduction' bottom: 'y' top: 'r' loss_weight: 1 }\n";
    let sink =
        "layer { name: 'o' type: 'HDF5Output' bottom: 'y' bottom: 'y' hdf5_output_param { file_name: 'out/o.h5' } }\n";
    let solver = |net: &str, more: &str| format!("net: '{net}' base_lr: 0.001 lr_policy: 'fixed' max_iter: 1 {more}\n");
    let dir = folder(&[
        ("net.prototxt", net),
        ("sink.prototxt", &format!("{net}{sink}")),
        ("snapshot.prototxt", &solver("net.prototxt", "snapshot: 1 snapshot_prefix: 'out/x' snapshot_format: HDF5")),
        ("output.prototxt", &solver("sink.prototxt", "snapshot_after_train: false")),
    ]);
    let mut images = vec![0, 0, 8, 3, 0, 0, 0, 40, 0, 0, 0, 16, 0, 0, 0, 16];
    images.extend((0..40 * 256).map(|i: u32| (i.wrapping_mul(2654435761) >> 11) as u8));
    fs::write(dir.path().join("images"), images).unwrap();
    fs::write(dir.path().join("labels"), [&[0, 0, 8, 1, 0, 0, 0, 40][..], &[1; 40]].concat()).unwrap();
    let out = dir.path().join("out");
    for kilobytes in [4, 12, 36] {
        for (what, args) in [
            ("out/x_iter_1", &["train", "-solver", "snapshot.prototxt"][..]),
            ("out/o.h5", &["train", "-solver", "output.prototxt"]),
            ("out/c.h5", &["convert-mnist", "images", "labels", "out/c.h5", "-backend", "hdf5"]),
        ] {
            if kilobytes == 36 && what != "out/x_iter_1" {
                continue;
            }
            let _ = fs::remove_dir_all(&out);
            fs::create_dir(&out).unwrap();
            // A limit on the size of files, whose signal is ignored, makes writes fail as a full disk does.
            let limits = format!("trap '' XFSZ; ulimit -f {};", 2 * kilobytes);
            refused(dir.path(), &limits, args, &[what, "File too large"]);
            assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{what}, {kilobytes} KB");
        }
    }
}

/// Databases too. LMDB does not tell the reason where the system writes in part.
#[test]
fn databases_on_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (out, limits) = (dir.path().join("out"), "trap '' XFSZ; ulimit -f 40;");
    datasets(dir.path());
    fs::create_dir(&out).unwrap();
    let pairs = ["convert_mnist_siamese_data", "images", "labels", "out/pairs", "-backend"];
    let cifar = ["convert_cifar_data", "cifar", "out"];
    for (kind, why) in [("lmdb", "the disk may be full"), ("leveldb", "File too large")] {
        for (what, args) in [("out/pairs", &pairs[..]), ("out/cifar10_train_", &cifar)] {
            refused(dir.path(), limits, &[args, &[kind]].concat(), &[what, "cannot be written", why]);
            assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{what} {kind}");
        }
    }
}
