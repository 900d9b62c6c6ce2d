//! Commands that read and write databases: what they log, and what they refuse. What they compute is among the recorded
//! cases.

use std::fs;
use std::path::Path;

use lgm_data::db::{Backend, Database, Records, Writer};
use lgm_proto::prost::Message;
use lgm_proto::{Datum, LayerParameter, NetParameter};
use tempfile::TempDir;

use crate::util::*;

const NET: &str = "
    layer { name: 'd' type: 'Data' top: 'data' top: 'label' data_param { source: 'images' batch_size: 5 } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'data' top: 'ip' inner_product_param { num_output: 3
      weight_filler { type: 'constant' value: 0.5 } } }
    layer { name: 's' type: 'Reshape' bottom: 'data' top: 'five' reshape_param { shape { dim: 0 dim: 1 dim: 1 dim: 2 dim: 6 } } }
    layer { name: 'sum' type: 'Reduction' bottom: 'ip' top: 'sum' }";

/// A folder with twelve images of 1 x 3 x 4, a net that reads them, and its weights.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path().join("images"), Backend::Leveldb).unwrap();
    for n in 0..12u8 {
        let (channels, height, width) = (Some(1), Some(3), Some(4));
        let datum =
            Datum { channels, height, width, data: Some(vec![n; 12]), label: Some(n.into()), ..Default::default() };
        writer.put(format!("{n:08}").as_bytes(), datum.encode_to_vec()).unwrap();
    }
    writer.finish().unwrap();
    fs::write(dir.path().join("net.prototxt"), NET).unwrap();
    // Weights of none of the net's layers, which keep what their fillers give.
    let layer = LayerParameter { name: Some("other".into()), r#type: Some("Silence".into()), ..Default::default() };
    let weights = NetParameter { name: Some("other".into()), layer: vec![layer], ..Default::default() };
    fs::write(dir.path().join("w.caffemodel"), weights.encode_to_vec()).unwrap();
    dir
}

fn records(path: &Path, count: usize) -> Vec<(String, Datum)> {
    let mut records = Records::from(Database::open(path).unwrap(), 0).unwrap();
    let found = records.next_to_end(count + 1).unwrap();
    assert_eq!(found.len(), count);
    found.iter().map(|r| (String::from_utf8(r.key.to_vec()).unwrap(), Datum::decode(r.value).unwrap())).collect()
}

fn extract<'a>(blobs: &'a str, outputs: &'a str, form: &'a str) -> Vec<&'a str> {
    vec!["extract_features", "w.caffemodel", "net.prototxt", blobs, outputs, "3", form]
}

#[test]
fn features_go_to_databases_and_to_hdf5() {
    let dir = folder();
    for form in ["lmdb", "leveldb"] {
        let outputs = format!("{form}_ip,{form}_sum");
        let (_, log) = run(dir.path(), &extract("ip,sum", &outputs, form));
        for wanted in ["Use CPU.", "Extracting Features", "Successfully extracted the features!"] {
            assert!(log.iter().any(|line| line == wanted), "{wanted}: {log:#?}");
        }
        // The file is of another net.
        assert!(
            log.iter().any(|line| line.contains("w.caffemodel: no weights for the layer") && line.contains("'ip'"))
        );
        assert!(log.iter().any(|line| line == "Extracted features of 15 query images for feature blob ip"), "{log:#?}");
        for (i, (key, datum)) in records(&dir.path().join(format!("{form}_ip")), 15).into_iter().enumerate() {
            assert_eq!(key, format!("{i:010}"));
            assert_eq!((datum.channels(), datum.height(), datum.width()), (3, 1, 1));
            // Records go round after the twelfth.
            assert_eq!(datum.float_data, [(i % 12) as f32 * 6.0; 3]);
        }
        // A blob without axes is one item a batch.
        let sums = records(&dir.path().join(format!("{form}_sum")), 3);
        assert_eq!(sums[1].1.float_data, [(5..10).map(|n| n as f32 * 18.0).sum::<f32>()]);
    }
    succeeds(dir.path(), &extract("ip,five", "both.h5", "hdf5"));
    let file = lgm_data::hdf5::H5File::open(dir.path().join("both.h5")).unwrap();
    for (name, shape) in [("ip", &[15, 3][..]), ("five", &[15, 1, 1, 2, 6])] {
        let dataset = file.dataset(name).unwrap();
        assert_eq!(dataset.rows(), 15);
        let values = dataset.read_rows(0..15).unwrap().into_f32();
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        let each = values.len() / 15;
        let scale = if name == "ip" { 6.0 } else { 1.0 };
        assert!(values.chunks(each).enumerate().all(|(i, item)| item.iter().all(|&v| v == (i % 12) as f32 * scale)));
    }
}

#[test]
fn features_are_the_same_on_a_device() {
    if !lgm_testkit::has_simulator() {
        return;
    }
    let dir = folder();
    succeeds(dir.path(), &extract("ip", "cpu", "lmdb"));
    for (output, words) in [("words", &["GPU", "0"][..]), ("flag", &["-gpu", "0"])] {
        let args = [&extract("ip", output, "lmdb")[..], words].concat();
        let printed = command(dir.path(), &args).env("LGM_GPU", "sim").output().unwrap();
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        assert_eq!(records(&dir.path().join(output), 15), records(&dir.path().join("cpu"), 15));
    }
}

#[test]
fn features_that_cannot_be_written_are_refused_and_leave_nothing() {
    let dir = folder();
    let refused = |blobs: &str, outputs: &str, form: &str, more: &[&str], parts: &[&str]| {
        fails(dir.path(), &[&extract(blobs, outputs, form)[..], more].concat(), parts);
    };
    refused(
        "ip,sum",
        "a",
        "lmdb",
        &[],
        &["each blob needs an output of its own: found 2 blobs (ip,sum) and 1 outputs"],
    );
    refused("ip,sum", "a,a", "lmdb", &[], &["the output 'a' is named twice"]);
    refused("ip,ip", "a,b", "lmdb", &[], &["the blob 'ip' is named twice"]);
    refused("ip,", "a,b", "lmdb", &[], &["expected names separated by commas, found an empty one in 'ip,'"]);
    refused("ipp", "a", "lmdb", &[], &["'ipp'", "did you mean 'ip'"]);
    refused("five", "a", "leveldb", &[], &["blob 'five' has shape (5, 1, 1, 2, 6)", "write HDF5"]);
    refused("ip", "images", "lmdb", &[], &["images: already exists"]);
    refused("ip", "net.prototxt", "hdf5", &[], &["net.prototxt: already exists"]);
    refused("ip", "a", "lmdb", &["CPU", "1"], &["CPU takes no number of a GPU, found 1"]);
    refused("ip", "a", "lmdb", &["CPU", "-gpu", "0"], &["CPU and -gpu exclude each other"]);
    refused("ip", "a", "lmdb", &["GPU", "1", "-gpu", "0"], &["-gpu 0 and GPU 1 ask for different GPUs"]);
    fs::write(dir.path().join("net.prototxt"), NET.replace("source: 'images'", "source: 'gone'")).unwrap();
    refused("ip", "a", "lmdb", &[], &["gone: cannot open the database"]);
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["images", "net.prototxt", "w.caffemodel"]);
}

#[test]
fn a_mean_that_cannot_be_taken_or_written_is_refused() {
    let dir = folder();
    fails(dir.path(), &["compute_image_mean", "gone"], &["gone: cannot open the database"]);
    fails(dir.path(), &["compute_image_mean", "net.prototxt"], &["expected the folder of an LMDB or LevelDB database"]);
    let missing = ["compute_image_mean", "images", "no/mean.binaryproto"];
    let log = fails(dir.path(), &missing, &["no/mean.binaryproto: its folder no does not exist"]);
    assert!(!log.iter().any(|line| line.contains("Processed")), "{log:#?}");
    let wrong = ["compute_image_mean", "-backend=hdf5", "images"];
    let (output, log) = run(dir.path(), &wrong);
    assert!(output.status.code() == Some(2) && log.iter().any(|line| line.contains("lmdb, leveldb")), "{log:#?}");
    let (_, log) = run(dir.path(), &["compute-image-mean", "images", "mean.binaryproto"]);
    for wanted in ["Processed 12 files.", "Write to mean.binaryproto", "mean_value channel [0]: 5.5"] {
        assert!(log.iter().any(|line| line == wanted), "{wanted}: {log:#?}");
    }
}

#[test]
fn caffes_scripts_make_their_databases() {
    let dir = tempfile::tempdir().unwrap();
    datasets(dir.path());
    for kind in ["lmdb", "leveldb"] {
        let log = succeeds(dir.path(), &["convert_cifar_data", "cifar", "out", kind]);
        let wrote = [
            format!("Wrote 40 images to out/cifar10_train_{kind}"),
            format!("Wrote 8 images to out/cifar10_test_{kind}"),
        ];
        assert_eq!(log, [&["Writing Training data", "Writing Testing data"].map(String::from)[..], &wrote].concat());
        let train = format!("out/cifar10_train_{kind}");
        let log = succeeds(dir.path(), &["compute_image_mean", &format!("-backend={kind}"), &train, "out/mean"]);
        assert!(log.iter().any(|line| line == "Processed 40 files."), "{log:#?}");
        assert_eq!(records(&dir.path().join(&train), 40)[9].1.label(), 1);
    }
    let log = succeeds(dir.path(), &["convert_mnist_siamese_data", "images", "labels", "pairs"]);
    assert_eq!(log, ["A total of 40 items.", "Rows: 16 Cols: 16", "Wrote 40 pairs to pairs"]);
    assert!(dir.path().join("pairs/CURRENT").exists());
    assert!(
        records(&dir.path().join("pairs"), 40).iter().all(|(_, datum)| (datum.channels(), datum.label()) == (2, 1))
    );

    fails(dir.path(), &["convert_cifar_data", "cifar", "out", "lmdb"], &["cifar10_train_lmdb: already exists"]);
    fails(dir.path(), &["convert_mnist_siamese_data", "images", "labels", "pairs"], &["pairs: already exists"]);
    let (output, log) = run(dir.path(), &["convert_cifar_data", "cifar", "out", "hdf5"]);
    assert!(output.status.code() == Some(2) && log[0].contains("invalid value 'hdf5' for '<DB_TYPE>'"), "{log:#?}");
}
