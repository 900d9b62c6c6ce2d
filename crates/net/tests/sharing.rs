//! Parameters that several layers share, and which layers run backward.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use lgm_net::Net;
use lgm_testkit::says;

fn shared(name: &str, bottom: &str, top: &str, outputs: usize, spec: &str) -> String {
    product(name, bottom, top, outputs, &format!("param {{ name: 'w' {spec} }} param {{ name: 'b' }}"))
}

/// Two layers with the same weights on two inputs.
fn siamese(first: &str, second: &str) -> String {
    gaussian("x1", &[3, 4])
        + &gaussian("x2", &[3, 4])
        + &shared("one", "x1", "y1", 2, first)
        + &shared("two", "x2", "y2", 2, second)
        + "layer { name: 'loss' type: 'EuclideanLoss' bottom: 'y1' bottom: 'y2' top: 'loss' }"
}

#[test]
fn sharers_use_one_memory_and_their_gradients_add_up() {
    let mut net = net(&siamese("", ""));
    let infos: Vec<_> = net.learnables().map(|l| (l.layer.to_string(), l.index)).collect();
    assert_eq!(infos, [("one".to_string(), 0), ("one".to_string(), 1)]);
    assert_eq!(net.layer_params("one").unwrap(), net.layer_params("two").unwrap());
    pass(&mut net, 0);
    let (x1, x2, y1, y2) = (data(&net, "x1"), data(&net, "x2"), data(&net, "y1"), data(&net, "y2"));
    // dL/dy1 = (y1 − y2)/3 = −dL/dy2, so dW = Σ (y1 − y2)/3 · (x1 − x2) and the bias's two parts cancel.
    let (_, dw) = learnable(&mut net, 0);
    for o in 0..2 {
        for i in 0..4 {
            let each = |n: usize| (y1[n * 2 + o] - y2[n * 2 + o]) / 3.0 * (x1[n * 4 + i] - x2[n * 4 + i]);
            let want: f64 = (0..3).map(each).sum();
            assert!((dw[o * 4 + i] as f64 - want).abs() < 1e-5, "{} against {want}", dw[o * 4 + i]);
        }
    }
    assert!(learnable(&mut net, 1).1.iter().all(|d| d.abs() < 1e-6));
}

/// A change through one layer's name is seen through the other's: there is one memory.
#[test]
fn what_is_loaded_for_one_sharer_holds_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = net(&siamese("", "").replace("'w'", "'v'"));
    pass(&mut source, 0);
    for file in ["a.caffemodel", "a.caffemodel.h5"] {
        let path = dir.path().join(file);
        if file.ends_with("h5") {
            source.write_weights_hdf5(&path, false).unwrap();
        } else {
            source.write_weights(&path, false).unwrap();
        }
        let mut other = net(&siamese("", "").replace("std: 0.5", "std: 0.1"));
        assert_ne!(other.layer_params("two").unwrap(), source.layer_params("two").unwrap());
        other.load_weights(&path).unwrap();
        assert_eq!(other.layer_params("one").unwrap(), source.layer_params("one").unwrap(), "{file}");
        assert_eq!(other.layer_params("two").unwrap(), source.layer_params("two").unwrap(), "{file}");
    }
}

/// A net whose test net is written apart, without the names of shared parameters: layers share by their own names, as in Caffe.
#[test]
fn a_net_lends_its_parameters_layer_by_layer() {
    let pair = |share: &str| {
        let layers = ["one", "two"].map(|name| {
            let bottom = if name == "one" { "x" } else { "one" };
            product(name, bottom, name, 4, &format!("param {{ {share} }}"))
        });
        gaussian("x", &[3, 4]) + &layers.concat()
    };
    let mut train = net(&pair("name: 'w'"));
    let mut test = net(&pair(""));
    let score = |net: &mut Net| net.forward(&step(0)).map(|_| data(net, "two"));
    let (own, want) = (score(&mut test).unwrap(), score(&mut train).unwrap());
    assert_ne!(own, want);
    for _ in 0..2 {
        assert_eq!(train.lend_params(&mut test, score).unwrap(), want);
        assert_eq!(score(&mut train).unwrap(), want, "given back");
    }
    let mut joined = net(&pair("name: 'w'"));
    let mut apart = net(&pair(""));
    let error = apart.lend_params(&mut joined, score).unwrap_err().to_string();
    says(&error, &["layer 'two' (InnerProduct)", "parameter 'w' is shared", "not in the training net"]);
}

#[test]
fn values_in_the_prototxt_stand_for_a_filler() {
    let with = |blobs: &str| gaussian("x", &[3, 2]) + &product("ip", "x", "y", 1, blobs);
    let blob = |shape: &str, values: &str| format!("blobs {{ shape {{ {shape} }} {values} }} ");
    let bias = blob("dim: 1", "double_data: 3");
    let given = net(&with(&(blob("dim: 1 dim: 2", "data: 5 data: 7") + &bias)));
    let values: Vec<Vec<f64>> = given.layer_params("ip").unwrap().into_iter().map(|(_, values)| values).collect();
    assert_eq!(values, [vec![5.0, 7.0], vec![3.0]]);
    says(&error(&with(&bias)), &["layer 'ip' (InnerProduct)", "blobs", "expected 2, found 1"]);
    let turned = blob("dim: 2 dim: 1", "data: 5 data: 7") + &bias;
    says(&error(&with(&turned)), &["parameter 0 has the shape (1, 2)", "(2, 1)"]);
    let short = blob("dim: 1 dim: 2", "data: 5") + &bias;
    says(&error(&with(&short)), &["expected 2 values", "found 1"]);
}

#[test]
fn strict_sharing_compares_shapes_and_permissive_only_counts() {
    // Weights of 2 x 6 and 6 x 2 (its own transpose's count, another shape).
    let text = |spec: &str| {
        gaussian("x", &[1, 6])
            + &gaussian("z", &[1, 2])
            + &product("one", "x", "y", 2, "param { name: 'w' }")
            + &product("two", "z", "v", 6, &format!("param {{ name: 'w' {spec} }}"))
            + "layer { name: 's' type: 'Silence' bottom: 'y' bottom: 'v' }"
    };
    says(
        &error(&text("")),
        &[
            "net.prototxt:4:1: layer 'two' (InnerProduct)",
            "cannot share parameter 'w'",
            "PERMISSIVE",
            "(2, 6)",
            "(6, 2)",
        ],
    );
    let mut net = net(&text("share_mode: PERMISSIVE"));
    net.forward(&step(0)).unwrap();
    let (one, two) = (net.layer_params("one").unwrap(), net.layer_params("two").unwrap());
    assert_eq!((one[0].0.to_vec(), two[0].0.to_vec()), (vec![2, 6], vec![6, 2]));
    assert_eq!(one[0].1, two[0].1, "the same values in the same order");
    assert_eq!(net.learnables().len(), 3, "one weight, two biases");
    let fewer = text("share_mode: PERMISSIVE").replace("num_output: 6", "num_output: 5");
    says(&error(&fewer), &["cannot share parameter 'w'", "(2, 6)", "(5, 2)"]);
}

#[test]
fn rates_of_a_shared_parameter_may_be_given_once_or_agree() {
    let rates = |first: &str, second: &str| {
        let net: Net = net(&siamese(first, second));
        let info = net.learnables().next().unwrap();
        (info.lr_mult, info.decay_mult)
    };
    assert_eq!(rates("", ""), (1.0, 1.0));
    assert_eq!(rates("lr_mult: 2 decay_mult: 3", ""), (2.0, 3.0));
    assert_eq!(rates("", "lr_mult: 2 decay_mult: 3"), (2.0, 3.0));
    assert_eq!(rates("lr_mult: 2", "lr_mult: 2 decay_mult: 0"), (2.0, 0.0));
    let at = "net.prototxt:4:1: layer 'two' (InnerProduct)";
    says(
        &error(&siamese("lr_mult: 2", "lr_mult: 1")),
        &[at, "shared parameter 'w' has mismatched lr_mult", "2 where it was first named, 1 here"],
    );
    says(&error(&siamese("decay_mult: 0", "decay_mult: 1")), &[at, "mismatched decay_mult", "0 where", "1 here"]);
}

#[test]
fn one_layer_cannot_share_with_itself() {
    let text = gaussian("x", &[1, 2])
        + &product("one", "x", "y", 1, "param { name: 'w' } param { name: 'w' share_mode: PERMISSIVE }")
        + "layer { name: 's' type: 'Silence' bottom: 'y' }";
    let text = text.replace("dim: 2", "dim: 1");
    says(&error(&text), &["layer 'one'", "two parameters of one layer share the name 'w'"]);
}

/// Two products over each other, a loss, and gradients by what `first` and `second` say.
fn tower(net_fields: &str, first: &str, second: &str) -> Net {
    net(&(net_fields.to_string()
        + &gaussian("x", &[2, 3])
        + &gaussian("t", &[2, 1])
        + &product("one", "x", "h", 4, first)
        + &product("two", "h", "y", 1, second)
        + "layer { name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 't' top: 'loss' }"))
}

fn nonzero(net: &mut Net) -> Vec<bool> {
    pass(net, 0);
    let count = net.learnables().len();
    (0..count).map(|i| learnable(net, i).1.iter().any(|d| *d != 0.0)).collect()
}

#[test]
fn gradients_stop_where_propagate_down_says_and_where_nothing_is_learned() {
    assert_eq!(nonzero(&mut tower("", "", "")), [true; 4]);
    assert_eq!(nonzero(&mut tower("", "", "propagate_down: false")), [false, false, true, true]);
    let frozen = "param { lr_mult: 0 } param { lr_mult: 0 }";
    assert_eq!(nonzero(&mut tower("", "", frozen)), [true, true, false, false]);
    let mut net = tower("", frozen, "");
    assert_eq!(nonzero(&mut net), [false, false, true, true]);
    assert!(net.blob_diff("h").unwrap().is_none(), "nothing below wants it");
    // Asked for, the gradient of what nobody learns from is there.
    let mut net = tower("", frozen, "propagate_down: true");
    assert_eq!(nonzero(&mut net), [false, false, true, true]);
    assert!(diff(&net, "h").iter().any(|d| *d != 0.0));
    // Only one parameter of a layer.
    assert_eq!(nonzero(&mut tower("", "param { lr_mult: 1 } param { lr_mult: 0 }", "")), [true, false, true, true]);
}

#[test]
fn force_backward_reaches_every_blob_but_labels() {
    let mut net = tower("force_backward: true ", "param { lr_mult: 0 } param { lr_mult: 0 }", "");
    assert_eq!(nonzero(&mut net), [true; 4]);
    assert!(diff(&net, "x").iter().any(|d| *d != 0.0));
    assert!(net.blob_diff("t").unwrap().is_some(), "EuclideanLoss has a gradient by both bottoms");
    let text = "force_backward: true ".to_string()
        + &gaussian("x", &[2, 3])
        + &input("label", &[2])
        + "layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'x' bottom: 'label' top: 'loss' }";
    let accuracy = "layer { name: 'acc' type: 'Accuracy' bottom: 'x' bottom: 'label' top: 'acc' }";
    let mut net = common::net(&text);
    pass(&mut net, 0);
    let gradient = diff(&net, "x");
    assert!(gradient.iter().any(|d| *d != 0.0));
    assert!(net.blob_diff("label").unwrap().is_none());
    let mut net = common::net(&(text + accuracy));
    pass(&mut net, 0);
    assert_eq!(diff(&net, "x"), gradient, "Accuracy passes nothing back, and that is no fault");
}

/// A branch with weights that no loss sees must not be run backward, nor hold memory for it.
#[test]
fn backward_is_skipped_where_no_loss_needs_it() {
    let run = |tail: &str| {
        let mut net = net(&(gaussian("x", &[2, 3])
            + &gaussian("t", &[2, 1])
            + &product("one", "x", "y", 1, "")
            + &product("side", "x", "s", 5, "")
            + "layer { name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 't' top: 'loss' }"
            + tail));
        pass(&mut net, 0);
        let layers: Vec<_> = net.layers().map(|(name, _)| name.to_string()).collect();
        let ran = |name: &str| layers.iter().position(|l| l == name);
        let side = ran("side").unwrap();
        (net.backward_layer(side, &step(0)).unwrap(), nonzero(&mut net))
    };
    for tail in
        ["", "layer { name: 'q' type: 'Silence' bottom: 's' }", "layer { name: 'r' type: 'ReLU' bottom: 's' top: 'r' }"]
    {
        assert_eq!(run(tail), (false, vec![true, true, false, false]), "{tail}");
    }
    let counted = "layer { name: 'r' type: 'ReLU' bottom: 's' top: 'r' loss_weight: 1 }";
    assert_eq!(run(counted), (true, vec![true; 4]));
}

/// A layer that no loss needs, beside one that a loss needs, on the same learned blob: its part of the split's gradient
/// is zero, not what happened to lie there.
#[test]
fn a_side_branch_adds_nothing_to_a_splits_gradient() {
    let text = |side: &str| {
        gaussian("x", &[2, 3])
            + &gaussian("t", &[2, 4])
            + &product("one", "x", "h", 4, "")
            + side
            + "layer { name: 'loss' type: 'EuclideanLoss' bottom: 'h' bottom: 't' top: 'loss' }"
    };
    let gradient = |side: &str| {
        let mut net = net(&text(side));
        (0..3).map(|b| (pass(&mut net, b), gradients(&mut net)).1).collect::<Vec<_>>()
    };
    let alone = gradient("");
    for side in [
        "layer { name: 'r' type: 'TanH' bottom: 'h' top: 'r' }".to_string(),
        product("p", "h", "p", 2, "").replace("layer {", "layer { propagate_down: false"),
        "layer { name: 'q' type: 'Silence' bottom: 'h' }".to_string(),
    ] {
        for (a, b) in alone.iter().zip(gradient(&side)) {
            assert_eq!(a[..], b[..a.len()], "{side}");
            assert!(b[a.len()..].iter().all(|d| *d == 0.0), "{side}");
        }
    }
}
