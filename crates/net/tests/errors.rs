//! What a net's errors say: where, which layer, what was expected and found, and what to try.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use lgm_core::DType;
use lgm_net::Options;
use lgm_testkit::says;

/// Checks the error of `layer`, placed on line 2 after a blob x of 2 x 3 and before a newline.
fn refused(layer: &str, parts: &[&str]) {
    let text = input("x", &[2, 3]) + "  " + layer + "\n" + "layer { name: 'end' type: 'Silence' bottom: 'x' }";
    let error = error(&text);
    assert!(!error.contains("internal error"), "{error}");
    let mut all = vec!["net.prototxt:2:3: layer "];
    all.extend_from_slice(parts);
    says(&error, &all);
}

#[test]
fn blobs_and_types_that_do_not_exist() {
    refused(
        "layer { name: 'r' type: 'ReLU' bottom: 'y' top: 'z' }",
        &[
            "'r' (ReLU): Unknown bottom blob 'y' (bottom index 0)",
            "no layer before this one makes it; add an Input or data layer",
        ],
    );
    refused(
        "layer { name: 'r' type: 'ReLU' bottom: 'y' top: 'z' } layer { name: 's' type: 'ReLU' bottom: 'z' top: 'y' }",
        &["Unknown bottom blob 'y'", "layer 's' after it does: put that first"],
    );
    refused(
        "layer { name: 'r' type: 'Eltwise' bottom: 'x' bottom: 'x_i' top: 'z' }",
        &["'r' (Eltwise): Unknown bottom blob 'x_i' (bottom index 1)"],
    );
    refused(
        "layer { name: 'r' type: 'Relu' bottom: 'x' top: 'z' }",
        &["'r' (Relu): unknown layer type 'Relu'; did you mean 'ReLU'?"],
    );
    refused(
        "layer { name: 'r' type: 'INNER_PRODUCT' bottom: 'x' top: 'z' }",
        &["unknown layer type 'INNER_PRODUCT'; did you mean 'InnerProduct'?"],
    );
    refused("layer { name: 'r' type: 'Python' bottom: 'x' top: 'z' }", &["a Python class, whose name no python_param"]);
    refused("layer { name: 'r' type: 'Xyzzy' bottom: 'x' top: 'z' }", &["(known types: AbsVal, "]);
    refused("layer { name: 'r' bottom: 'x' top: 'z' }", &["'r': type is missing; give one, as in type: "]);
    let later = input("data", &[1]) + "layer { name: 'r' type: 'ReLU' bottom: 'dta' top: 'z' }";
    says(&error(&later), &["net.prototxt:2:1", "'dta'", "did you mean 'data'?"]);
}

#[test]
fn the_types_known_are_listed_once_and_only_where_none_is_near() {
    let layers = ["Relu", "Plugh", "Xyzzy", "Scael"]
        .map(|kind| format!("layer {{ name: '{kind}' type: '{kind}' bottom: 'x' top: '{kind}' }}\n"));
    let error = error(&(input("x", &[2, 3]) + &layers.concat()));
    let lines: Vec<&str> = error.lines().collect();
    says(lines[0], &["net.prototxt:2:1: layer 'Relu' (Relu): unknown layer type 'Relu'; did you mean 'ReLU'?"]);
    assert!(lines[1].ends_with("unknown layer type 'Plugh'"), "{error}");
    says(lines[2], &["unknown layer type 'Xyzzy' (known types: AbsVal, Accuracy, "]);
    assert!(lines[3].ends_with("did you mean 'Scale'?") && lines.len() == 4, "{error}");
}

#[test]
fn all_that_forks_have_and_we_lack_is_told_at_once() {
    let text = input("x", &[2, 3])
        + "layer { name: 'p' type: 'Bogus' bottom: 'x' top: 'y' }\n\
           layer { name: 'q' type: 'DenseCRF' bottom: 'y' top: 'z' densecrf_param { max_iter: 1 } }\n\
           layer { name: 'py' type: 'Python' bottom: 'y' top: 'v' python_param { module: 'm' layer: 'L' } }\n\
           layer { name: 'c' type: 'Concat' bottom: 'x' top: 'w' concat_param { per_fla_fuse: true } }\n\
           layer { name: 't' type: 'Nonsense' bottom: 'x' include { phase: TEST } }";
    let error = error(&text);
    says(
        &error,
        &[
            "net.prototxt:2:1: layer 'p' (Bogus): unknown layer type 'Bogus'",
            "\nnet.prototxt:3:1: layer 'q' (DenseCRF): unknown layer type 'DenseCRF', which is a layer of forks of Caffe (hszhao/PSPNet",
            "\nnet.prototxt:4:1: layer 'py' (Python): the layer is the class 'L' of the Python module 'm'",
            "\nnet.prototxt:5:70: layer 'c' (Concat): 'per_fla_fuse' of ConcatParameter is a field of forks (intel/caffe",
        ],
    );
    assert!(!error.contains("Nonsense") && !error.contains("densecrf_param"), "{error}");
}

#[test]
fn settings_without_effect_are_ignored_with_one_warning() {
    let text = "default_forward_type: FLOAT16 layer { name: 'd' type: 'Input' top: 'd' forward_type: FLOAT input_param \
                { shape { dim: 2 dim: 3 } } } layer { name: 'r' type: 'ReLU' bottom: 'd' top: 'r' relu_param { engine: MKLDNN \
                relu6: false } } layer { name: 'o' type: 'Dropout' bottom: 'r' top: 'o' dropout_param { sample_weights_test: \
                false } }";
    let parsed = lgm_proto::parse_net(text.as_bytes(), std::path::Path::new(FILE)).unwrap();
    assert_eq!(
        parsed.warnings,
        [
            "net.prototxt: settings of forks that change no result here are ignored: default_forward_type, engine: MKLDNN, \
          forward_type"
        ]
    );
    net(text);
}

#[test]
fn names_that_are_taken() {
    refused(
        "layer { name: 'again' type: 'Input' top: 'x' input_param { shape { dim: 1 } } }",
        &["'again' (Input): Top blob 'x' produced by multiple sources", "another name"],
    );
    // In place goes by position: the second top cannot stand for the first bottom.
    refused(
        "layer { name: 's' type: 'Slice' bottom: 'x' top: 'a' top: 'x' slice_param { axis: 0 } }",
        &["'s' (Slice): Top blob 'x' produced by multiple sources"],
    );
}

#[test]
fn numbers_of_blobs() {
    let tail = "bottom: 'x' top: 'a'";
    refused(
        &format!("layer {{ name: 'r' type: 'ReLU' bottom: 'x' {tail} }}"),
        &["'r' (ReLU): takes exactly 1 bottom blob(s), found 2"],
    );
    refused(
        &format!("layer {{ name: 'r' type: 'ReLU' {tail} top: 'b' }}"),
        &["'r' (ReLU): makes exactly 1 top blob(s), found 2"],
    );
    refused("layer { name: 'r' type: 'ReLU' bottom: 'x' }", &["makes exactly 1 top blob(s), found 0"]);
    refused(
        &format!("layer {{ name: 'l' type: 'SoftmaxWithLoss' {tail} }}"),
        &["'l' (SoftmaxWithLoss): takes ", "bottom blob(s), found 1"],
    );
    refused("layer { name: 'q' type: 'Silence' }", &["'q' (Silence): takes at least 1 bottom blob(s), found 0"]);
    refused("layer { name: 'c' type: 'Concat' top: 'a' }", &["takes at least 1 bottom blob(s), found 0"]);
}

#[test]
fn shapes_that_do_not_fit() {
    refused(
        "layer { name: 'r' type: 'Reshape' bottom: 'x' top: 'a' reshape_param { shape { dim: 4 dim: -1 } } }",
        &["'r' (Reshape)", "(2, 3)"],
    );
    let eltwise = input("x", &[2, 3])
        + &input("y", &[3, 2])
        + "layer { name: 'sum' type: 'Eltwise' bottom: 'x' bottom: 'y' top: 'z' }";
    says(&error(&eltwise), &["net.prototxt:3:1: layer 'sum' (Eltwise)", "(2, 3)", "(3, 2)"]);
    let loss = eltwise.replace("'Eltwise'", "'EuclideanLoss'").replace("dim: 3 dim: 2", "dim: 2 dim: 4");
    says(&error(&loss), &["layer 'sum' (EuclideanLoss)", "3", "4"]);
    refused(
        "layer { name: 'a' type: 'Slice' bottom: 'x' top: 'a' top: 'b' slice_param { axis: 5 } }",
        &["'a' (Slice)", "axis 5 is out of range", "(2, 3)"],
    );
}

#[test]
fn parameters_and_weights_of_the_wrong_number() {
    refused(
        &product("ip", "x", "y", 2, "param { } param { } param { lr_mult: 1 }"),
        &["'ip' (InnerProduct): too many param entries: the layer has 2 parameters, found 3 entries"],
    );
    refused(
        "layer { name: 'r' type: 'ReLU' bottom: 'x' top: 'y' param { lr_mult: 1 } }",
        &["'r' (ReLU): too many param entries: the layer has 0 parameters, found 1 entries"],
    );
    refused(
        "layer { name: 'r' type: 'ReLU' bottom: 'x' top: 'y' loss_weight: 1 loss_weight: 2 }",
        &["'r' (ReLU)", "loss_weight must be given never or once a top: expected 1 values, found 2"],
    );
    refused(
        "layer { name: 'r' type: 'ReLU' bottom: 'x' top: 'y' propagate_down: true propagate_down: false }",
        &["'r' (ReLU): propagate_down must be given never or once a bottom: expected 1 values, found 2"],
    );
    refused(
        "layer { name: 'r' type: 'ReLU' bottom: 'x' top: 'y' include { phase: TRAIN } exclude { phase: TEST } }",
        &["'r' (ReLU): give either include rules or exclude rules, not both"],
    );
    refused(
        &product("ip", "x", "y", 2, "").replace("type: 'gaussian' std", "type: 'gausian' std"),
        &["'ip' (InnerProduct)", "unknown filler", "did you mean 'gaussian'?"],
    );
    refused("layer { name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'y' }", &["'ip' (InnerProduct)", "num_output"]);
}

#[test]
fn gradients_that_cannot_flow() {
    // A label that something learned makes.
    let label = product("ip", "x", "label", 2, "").replace("num_output: 2", "num_output: 1");
    let text = input("x", &[2, 3]) + &label + "layer { name: 'l' type: 'SoftmaxWithLoss' bottom: 'x' bottom: 'label' }";
    says(
        &error(&text),
        &[
            "net.prototxt:3:1: layer 'l' (SoftmaxWithLoss)",
            "cannot backpropagate to bottom 1 ('label')",
            "propagate_down: false",
        ],
    );
    net(&text.replace("'SoftmaxWithLoss'", "'SoftmaxWithLoss' propagate_down: false propagate_down: false"));
    refused(
        "layer { name: 'l' type: 'SoftmaxWithLoss' bottom: 'x' bottom: 'x' propagate_down: [true, true] }",
        &["'l' (SoftmaxWithLoss)", "label"],
    );
    // Indices that something learned makes.
    let text = input("x", &[2, 3])
        + &product("ip", "x", "y", 4, "")
        + "layer { name: 'e' type: 'Embed' bottom: 'y' top: 'z' loss_weight: 1 \
           embed_param { input_dim: 3 num_output: 2 } }";
    says(&error(&text), &["net.prototxt:3:1: layer 'e' (Embed)", "bottom 0 ('y'), which holds labels or indices"]);
    // A loss behind a layer that passes nothing back.
    let text = input("x", &[2, 3])
        + &input("label", &[2])
        + &product("ip", "x", "y", 4, "")
        + "layer { name: 'acc' type: 'Accuracy' bottom: 'y' bottom: 'label' top: 'acc' loss_weight: 1 }";
    says(
        &error(&text),
        &["net.prototxt:4:1: layer 'acc' (Accuracy)", "passes no gradient back", "propagate_down: false"],
    );
    // Without backward, neither is a fault.
    try_net(&text, &Options { backward: false, ..options() }).unwrap();
}

/// A value met while running is blamed on its layer too.
#[test]
fn values_that_a_layer_cannot_take() {
    let text = input("x", &[1, 3])
        + &input("label", &[1])
        + "layer { name: 'l' type: 'SoftmaxWithLoss' bottom: 'x' bottom: 'label' top: 'l' }";
    let mut net = net(&text);
    net.set_blob("label", &[7.0]).unwrap();
    let error = net.forward(&step(0)).unwrap_err().to_string();
    says(&error, &["net.prototxt:3:1: layer 'l' (SoftmaxWithLoss)", "7", "0", "2"]);
}

#[test]
fn a_net_in_double_precision_has_no_single_precision_gradients() {
    let text = gaussian("x", &[1, 2]) + &product("ip", "x", "y", 1, "").replace("layer {", "layer { loss_weight: 1");
    let mut net = try_net(&text, &Options { dtype: DType::F64, ..options() }).unwrap();
    pass(&mut net, 0);
    assert!(net.learnable::<f32>(0).is_err());
    assert_eq!(net.learnable::<f64>(0).unwrap().1.len(), 2);
    let mut net = try_net(&text, &Options { backward: false, ..options() }).unwrap();
    net.forward(&step(0)).unwrap();
    assert!(net.learnable::<f32>(0).is_err(), "no backward, no gradients");
}
