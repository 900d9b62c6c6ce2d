//! A net's parameters in files: what is written is read back, and what does not fit is named.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use lgm_net::Net;
use lgm_testkit::says;
use std::path::{Path, PathBuf};

const KINDS: [&str; 2] = ["w.caffemodel", "w.caffemodel.h5"];

fn save(net: &Net, dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    match name.ends_with("h5") {
        true => net.write_weights_hdf5(&path, false).unwrap(),
        false => net.write_weights(&path, false).unwrap(),
    }
    path
}

/// Two products, `first` and `second` wide, under names that the test chooses; the data's seed tells two apart.
fn towers(names: [&str; 2], widths: [usize; 2]) -> String {
    gaussian("x", &[1, 3])
        + &product(names[0], "x", "h", widths[0], "")
        + "layer { name: 'r' type: 'ReLU' bottom: 'h' top: 'h' }\n"
        + &product(names[1], "h", "y", widths[1], "")
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    for names in [["a", "b"], ["inception/a/1x1", "inception/a/3x3"], ["a b", "ä"]] {
        for kind in KINDS {
            let source = net(&towers(names, [4, 2]));
            let file = save(&source, dir.path(), kind);
            let mut target = net(&towers(names, [4, 2]).replace("0.5", "5"));
            assert_ne!(target.layer_params(names[0]).unwrap(), source.layer_params(names[0]).unwrap());
            target.load_weights(&file).unwrap();
            for name in names {
                assert_eq!(
                    target.layer_params(name).unwrap(),
                    source.layer_params(name).unwrap(),
                    "{name} through {kind}"
                );
            }
        }
    }
}

#[test]
fn layers_the_net_lacks_are_passed_over_and_those_the_file_lacks_stay() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let file = save(&net(&towers(["a", "b"], [4, 2])), dir.path(), kind);
        let mut target = net(&towers(["a", "renamed"], [4, 7]).replace("0.5", "5"));
        let before = target.layer_params("renamed").unwrap();
        target.load_weights(&file).unwrap();
        assert_eq!(
            target.layer_params("a").unwrap(),
            net(&towers(["a", "b"], [4, 2])).layer_params("a").unwrap(),
            "{kind}"
        );
        assert_eq!(target.layer_params("renamed").unwrap(), before, "{kind}");
    }
}

#[test]
fn shapes_that_disagree_are_named_and_nothing_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let file = save(&net(&towers(["a", "b"], [4, 2])), dir.path(), kind);
        let mut target = net(&towers(["a", "b"], [4, 5]).replace("0.5", "5"));
        let before = target.layer_params("a").unwrap();
        let error = target.load_weights(&file).unwrap_err().to_string();
        let parts =
            ["net.prototxt:4:1: layer 'b' (InnerProduct)", kind, "parameter 0", "(5, 4)", "(2, 4)", "rename it"];
        says(&error, &parts);
        assert_eq!(target.layer_params("a").unwrap(), before, "{kind}: a was read before b failed");
    }
}

/// So that a net without biases, or a head without variances, takes a file that has them.
#[test]
fn of_more_parameters_the_first_are_taken_and_fewer_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = towers(["a", "b"], [4, 2]);
    let without_bias = |text: &str| text.replace("inner_product_param {", "inner_product_param { bias_term: false");
    for kind in KINDS {
        let source = net(&text);
        let file = save(&source, dir.path(), kind);
        let mut target = net(&without_bias(&text).replace("0.5", "5"));
        let loaded = target.load_weights(&file).unwrap();
        assert!(target.without_weights(&loaded).is_empty(), "{kind}");
        for name in ["a", "b"] {
            assert_eq!(
                target.layer_params(name).unwrap()[..],
                source.layer_params(name).unwrap()[..1],
                "{name} of {kind}"
            );
        }
        // The shapes of those that are taken must agree.
        let error = net(&without_bias(&towers(["a", "b"], [4, 5]))).load_weights(&file).unwrap_err().to_string();
        says(&error, &["layer 'b' (InnerProduct)", kind, "parameter 0", "(5, 4)", "(2, 4)"]);
        let file = save(&net(&without_bias(&text)), dir.path(), kind);
        let error = net(&text).load_weights(&file).unwrap_err().to_string();
        says(&error, &["layer 'a' (InnerProduct)", kind, "the layer has 2 parameters, the file 1", "rename it"]);
    }
}

/// NVIDIA's fork before 2017: γ, β, mean, variance and a number without meaning.
#[test]
fn older_batch_norms_are_put_into_todays_order() {
    let dir = tempfile::tempdir().unwrap();
    let text = gaussian("x", &[2, 3, 2, 2])
        + "layer { name: 'n' type: 'BatchNorm' bottom: 'x' top: 'y' batch_norm_param { scale_bias: true } }";
    let channels = |from: f32| vec![from, from + 1.0, from + 2.0];
    let wanted = [channels(30.0), channels(40.0), vec![1.0], channels(10.0), channels(20.0)];
    let values = [channels(10.0), channels(20.0), channels(30.0), channels(40.0), vec![0.0]];
    let shapes = [[3], [3], [3], [3], [1]].map(lgm_core::Shape::from);
    let params = |file: &Path| {
        let mut net = net(&text);
        let loaded = net.load_weights(file).unwrap();
        assert!(net.without_weights(&loaded).is_empty());
        (0..5).map(|i| learnable(&mut net, i).0).collect::<Vec<_>>()
    };
    for spatial in [false, true] {
        let shape = |values: &[f32]| if spatial { vec![1, values.len(), 1, 1] } else { vec![values.len()] };
        let blobs = values.iter().map(|v| lgm_proto::BlobProto::from_f32(&shape(v), v.clone(), None)).collect();
        let layer = lgm_proto::LayerParameter {
            name: Some("n".into()),
            r#type: Some("BatchNorm".into()),
            blobs,
            ..Default::default()
        };
        let old = lgm_proto::NetParameter { layer: vec![layer], ..Default::default() };
        let file = dir.path().join("old.caffemodel");
        std::fs::write(&file, lgm_proto::encode(&old)).unwrap();
        assert_eq!(params(&file), wanted, "[1, C, 1, 1]: {spatial}");
        let file = dir.path().join("old.caffemodel.h5");
        let shapes = shapes.each_ref().map(|s| if spatial { [1, s.count(), 1, 1].into() } else { s.clone() });
        let names: Vec<_> = (0..5).map(|i| format!("data/n/{i}")).collect();
        let datasets: Vec<_> = (0..5).map(|i| (names[i].as_str(), &shapes[i], values[i].as_slice())).collect();
        lgm_hdf5::write_f32(&file, &datasets).unwrap();
        assert_eq!(params(&file), wanted, "[1, C, 1, 1]: {spatial}, HDF5");
    }
    // Today's files stay as they are.
    for kind in KINDS {
        let mut today = net(&text);
        today.load_weights(dir.path().join("old.caffemodel")).unwrap();
        assert_eq!(params(&save(&today, dir.path(), kind)), wanted, "{kind}");
    }
}

#[test]
fn files_that_are_missing_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let text = towers(["a", "b"], [4, 2]);
    let error = net(&text).load_weights(dir.path().join("no.caffemodel")).unwrap_err().to_string();
    says(&error, &["no.caffemodel: cannot open"]);
    for kind in KINDS {
        let file = save(&net(&text), dir.path(), kind);
        let bytes = std::fs::read(&file).unwrap();
        for cut in [bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&file, &bytes[..cut]).unwrap();
            let error = net(&text).load_weights(&file).unwrap_err().to_string();
            says(&error, &[kind]);
            assert!(!error.contains('\n'), "{error}");
        }
        std::fs::write(&file, b"").unwrap();
        says(&net(&text).load_weights(&file).unwrap_err().to_string(), &[kind, "empty"]);
    }
}

/// Layers may go without a name, or share one, as in Caffe: each draws weights of its own, and takes its own back from
/// a file.
#[test]
fn layers_without_a_name_of_their_own_keep_apart() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "same"] {
        let text = gaussian("x", &[1, 3])
            + &product(name, "x", "y", 4, "")
            + "layer { type: 'ReLU' bottom: 'y' top: 'y' }\n"
            + &product(name, "y", "z", 4, "")
            + &product(name, "z", "z2", 4, "")
            + "layer { type: 'Dropout' bottom: 'z2' top: 'z2' } layer { type: 'ReLU' bottom: 'z' top: 'v' }";
        let weights = |net: &mut Net| -> Vec<_> { [0, 2, 4].map(|i| learnable(net, i).0).into() };
        let mut source = net(&text);
        let drawn = weights(&mut source);
        assert_ne!(drawn[1], drawn[2], "two layers drew the same weights");
        for kind in KINDS {
            let file = save(&source, dir.path(), kind);
            let mut target = net(&text.replace("0.5", "5"));
            target.load_weights(&file).unwrap();
            assert_eq!(weights(&mut target), drawn, "'{name}' through {kind}");
            // A file's one layer of the name goes to the first, as in Caffe.
            let one = net(&(gaussian("x", &[1, 3]) + &product("same", "x", "y", 4, "").replace("0.5", "3")));
            if name == "same" {
                target.load_weights(save(&one, dir.path(), kind)).unwrap();
                assert_eq!(target.layer_params("same").unwrap(), one.layer_params("same").unwrap());
                assert_eq!(weights(&mut target)[1..], drawn[1..]);
            }
        }
    }
}

#[test]
fn layers_that_no_file_fills_are_told_with_the_name_they_may_have_there() {
    let dir = tempfile::tempdir().unwrap();
    let source = net(&towers(["first", "second"], [4, 5]));
    for kind in KINDS {
        let file = save(&source, dir.path(), kind);
        let mut target = net(&towers(["first", "secnd"], [4, 5]));
        let mut loaded = target.load_weights(&file).unwrap();
        assert_eq!(target.without_weights(&loaded), [("secnd", Some("second"))]);
        // Another file fills it.
        let other = net(&towers(["other", "secnd"], [4, 5]));
        loaded.join(target.load_weights(save(&other, dir.path(), kind)).unwrap());
        assert!(target.without_weights(&loaded).is_empty());
        assert_eq!(target.without_weights(&Default::default()), [("first", None), ("secnd", None)]);
    }
}

/// Whoever shares a parameter has what its owner was given.
#[test]
fn a_shared_parameter_is_filled_once() {
    let dir = tempfile::tempdir().unwrap();
    let shared = "param { name: 'w' } param { name: 'b' }";
    let text = gaussian("x", &[2, 4]) + &product("one", "x", "h", 4, shared) + &product("two", "h", "y", 4, shared);
    for kind in KINDS {
        let file = save(&net(&text), dir.path(), kind);
        let mut target = net(&text);
        let loaded = target.load_weights(&file).unwrap();
        assert!(target.without_weights(&loaded).is_empty(), "{kind}");
    }
}

/// A name may be the beginning of another's path, in any order.
#[test]
fn names_with_slashes_may_lie_within_each_other() {
    let dir = tempfile::tempdir().unwrap();
    for names in [["a", "a/b"], ["a/b", "a"]] {
        let source = net(&towers(names, [4, 2]));
        let file = save(&source, dir.path(), "w.caffemodel.h5");
        let mut target = net(&towers(names, [4, 2]).replace("0.5", "5"));
        target.load_weights(&file).unwrap();
        for name in names {
            assert_eq!(target.layer_params(name).unwrap(), source.layer_params(name).unwrap(), "{name}");
        }
    }
}
