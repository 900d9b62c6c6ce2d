//! Names and paths in Latin-1, which are no UTF-8: the nets, the files and the logs of a whole run.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use lgm_proto::{decode_net, upgrade_net_binary};

use crate::util::*;

/// A text in Latin-1, written with an `@` for the byte 0xE9.
fn latin(text: &str) -> Vec<u8> {
    text.bytes().map(|byte| if byte == b'@' { 0xe9 } else { byte }).collect()
}

fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(OsString::from_vec(latin(name)))
}

fn run_latin(folder: &Path, args: &[&str]) -> Output {
    let args = args.iter().map(|arg| OsString::from_vec(latin(arg)));
    let output = command(folder, &[]).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

const NET: &str = "
    name: 'r@seau'
    layer { name: 'd@' type: 'HDF5Data' top: 'x' top: 'label' hdf5_data_param { source: 'l@/list@.txt' batch_size: 4 } }
    layer { name: 'ip@' type: 'InnerProduct' bottom: 'x' top: 'y@' inner_product_param { num_output: 2
      weight_filler { type: 'file' file: 'l@/w@.txt' } } }
    layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'y@' bottom: 'label' top: 'co@t' }";

const SOLVER: &str = "net: 'net@.prototxt' base_lr: 0.1 lr_policy: 'fixed' random_seed: 1 momentum: 0.9 snapshot: 2
    snapshot_prefix: 'l@/out@'";

/// A folder with the net and its data.
fn job() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(path(folder.path(), "l@")).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(path(folder.path(), name), bytes).unwrap();
    put("net@.prototxt", &latin(NET));
    put("l@/w@.txt", b"1 2 3 4 5 6");
    put("l@/list@.txt", &latin("l@/d@.h5\n"));
    // The library takes no names of files in other bytes.
    let made = folder.path().join("made.h5");
    let file = hdf5_metno::File::create(&made).unwrap();
    let x: Vec<f32> = (0..24).map(|i| i as f32 / 24.0).collect();
    let data = file.new_dataset::<f32>().shape([8, 3]).create("x").unwrap();
    data.write_raw(&x).unwrap();
    let labels = [0.0_f32, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0];
    file.new_dataset::<f32>().shape([8]).create("label").unwrap().write_raw(&labels).unwrap();
    drop((data, file));
    fs::rename(made, path(folder.path(), "l@/d@.h5")).unwrap();
    folder
}

#[test]
fn a_run_keeps_the_bytes_of_names_and_opens_paths_in_any() {
    for (format, end) in [("BINARYPROTO", ""), ("HDF5", ".h5")] {
        let dir = job();
        let folder = dir.path();
        let at = |name: &str| fs::read(path(folder, name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let solver = |last: i32| latin(&format!("{SOLVER} max_iter: {last} snapshot_format: {format}\n"));
        fs::write(path(folder, "s@.prototxt"), solver(4)).unwrap();
        let log = run_latin(folder, &["train", "-solver", "s@.prototxt"]).stderr;
        let log = String::from_utf8(log).expect("a log is UTF-8");
        for line in ["Creating Layer ip\\351", "loss -> co\\351t", "snapshot_prefix: \"l\\351/out\\351\""] {
            assert!(log.contains(line), "{line}: {log}");
        }
        let whole = at(&format!("l@/out@_iter_4.caffemodel{end}"));
        fs::remove_file(path(folder, &format!("l@/out@_iter_4.caffemodel{end}"))).unwrap();
        let state = format!("l@/out@_iter_2.solverstate{end}");
        run_latin(folder, &["train", "-solver", "s@.prototxt", "-snapshot", &state]);
        assert_eq!(at(&format!("l@/out@_iter_4.caffemodel{end}")), whole, "resumed");

        let weights = format!("l@/out@_iter_4.caffemodel{end}");
        let net = ["-model", "net@.prototxt", "-weights", &weights, "-iterations", "1"];
        let log = run_latin(folder, &[&["test"], &net[..]].concat()).stderr;
        assert!(String::from_utf8_lossy(&log).contains("co\\351t = "));
        assert!(!String::from_utf8_lossy(&log).contains("Ignoring source layer"), "weights are found by their names");
        run_latin(folder, &["extract_features", &weights, "net@.prototxt", "y@", "f@", "2", "lmdb"]);
        assert!(path(folder, "f@").is_dir());
    }
}

#[test]
fn files_are_upgraded_and_drawn_with_their_bytes() {
    let dir = job();
    let folder = dir.path();
    let at = |name: &str| fs::read(path(folder, name)).unwrap();
    let has = |bytes: &[u8], part: &str| bytes.windows(part.len()).any(|window| window == latin(part));
    fs::write(path(folder, "s@.prototxt"), latin(&format!("{SOLVER} max_iter: 2 solver_type: NESTEROV"))).unwrap();
    run_latin(folder, &["train", "-solver", "s@.prototxt"]);
    let weights = at("l@/out@_iter_2.caffemodel");
    assert!(has(&weights, "ip@") && has(&weights, "r@seau") && has(&weights, "l@/list@.txt"));
    assert_eq!(lgm_proto::encode(&decode_net(&weights, Path::new("w")).unwrap()), weights);
    assert_eq!(upgrade_net_binary(&weights, Path::new("w")).unwrap().bytes, weights);
    assert!(has(&at("l@/out@_iter_2.solverstate"), "l@/out@_iter_2.caffemodel"));

    run_latin(folder, &["upgrade_solver_proto_text", "s@.prototxt", "new@.prototxt"]);
    assert!(has(&at("new@.prototxt"), "snapshot_prefix: \"l\\351/out\\351\""));
    run_latin(folder, &["train", "-solver", "new@.prototxt"]);
    assert_eq!(at("l@/out@_iter_2.caffemodel"), weights);

    fs::write(path(folder, "old@.prototxt"), latin("layers { name: 'v@' type: RELU bottom: 'a@' top: 'a@' }")).unwrap();
    run_latin(folder, &["upgrade_net_proto_text", "old@.prototxt", "new@.prototxt"]);
    assert!(has(&at("new@.prototxt"), "name: \"v\\351\""));
    run_latin(folder, &["draw_net", "net@.prototxt", "net@.dot"]);
    assert!(has(&at("net@.dot"), "ip\\\\351"));
    let summary = run_latin(folder, &["summary", "-model", "net@.prototxt"]).stdout;
    assert!(String::from_utf8(summary).expect("UTF-8").contains("ip\\351"));
}

#[test]
fn lists_of_images_name_files_in_any_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    fs::create_dir(path(folder, "r@")).unwrap();
    image::RgbImage::new(2, 2).save_with_format(path(folder, "r@/i@.png"), image::ImageFormat::Png).unwrap();
    fs::write(path(folder, "list@"), latin("i@.png 1\n")).unwrap();
    run_latin(folder, &["convert_imageset", "r@/", "list@", "db@"]);
    let records = lgm_data::db::Database::open(path(folder, "db@")).unwrap();
    let mut records = lgm_data::db::Records::from(records, 0).unwrap();
    assert_eq!(records.next_to_end(2).unwrap()[0].key.to_vec(), latin("00000000_i@.png"));
    fs::write(
        path(folder, "net@"),
        latin("layer { name: 'i' type: 'ImageData' top: 'x' top: 'y' image_data_param { source: 'list@' root_folder: 'r@/' } }"),
    )
    .unwrap();
    let summary = run_latin(folder, &["summary", "-model", "net@"]).stdout;
    assert!(String::from_utf8_lossy(&summary).contains("(1, 3, 2, 2)"));
}
