//! Weights in the formats before today's: `layers` with named types by number (the second generation, of 2014) and with a
//! `layer` inside (the first, of 2013). The files are put together byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::*;
use lgm_net::Net;
use lgm_testkit::says;

/// A protobuf number.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field with a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field with bytes: a text, a message, packed values.
fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    [&varint(field << 3 | 2), &varint(content.len() as u64), content].concat()
}

/// How a file stores numbers.
#[derive(Clone, Copy, Debug)]
enum Stored {
    Packed,
    /// Each with a key of its own, as programs write that do not know of packing.
    Single,
    Double,
}

/// A BlobProto of `num`, `channels`, `height` and `width`.
fn blob(extents: [u64; 4], values: &[f32], stored: Stored) -> Vec<u8> {
    let mut blob: Vec<u8> = (1..).zip(extents).flat_map(|(field, extent)| number(field, extent)).collect();
    match stored {
        Stored::Packed => blob.extend(bytes(5, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())),
        Stored::Single => values.iter().for_each(|v| blob.extend([&varint(5 << 3 | 5), &v.to_le_bytes()[..]].concat())),
        Stored::Double => {
            blob.extend(bytes(8, &values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect::<Vec<_>>()));
        }
    }
    blob
}

/// A layer with blobs: of today's format (0), the second generation (2) or the first (1).
fn layer(generation: u8, name: &str, (kind, number_of_kind, first): (&str, u64, &str), blobs: &[Vec<u8>]) -> Vec<u8> {
    let all = |field: u64| -> Vec<u8> { blobs.iter().flat_map(|blob| bytes(field, blob)).collect() };
    match generation {
        0 => bytes(100, &[bytes(1, name.as_bytes()), bytes(2, kind.as_bytes()), all(7)].concat()),
        1 => {
            let inner = [bytes(1, name.as_bytes()), bytes(2, first.as_bytes()), all(50)].concat();
            bytes(2, &[bytes(1, &inner), bytes(2, b"bottom"), bytes(3, b"top")].concat())
        }
        _ => bytes(2, &[bytes(2, b"bottom"), bytes(4, name.as_bytes()), number(5, number_of_kind), all(6)].concat()),
    }
}

const CONVOLUTION: (&str, u64, &str) = ("Convolution", 4, "conv");
const INNER_PRODUCT: (&str, u64, &str) = ("InnerProduct", 14, "innerproduct");
const RELU: (&str, u64, &str) = ("ReLU", 18, "relu");

/// A second-generation net: a grouped convolution, a product, and more behind it.
fn old_net(more: &str) -> String {
    format!(
        "input: 'data' input_dim: 2 input_dim: 2 input_dim: 3 input_dim: 3
        layers {{ name: 'conv1' type: CONVOLUTION bottom: 'data' top: 'conv1' blobs_lr: 1 blobs_lr: 2
          convolution_param {{ num_output: 4 kernel_size: 2 group: 2 weight_filler {{ type: 'xavier' }} }} }}
        layers {{ name: 'relu1' type: RELU bottom: 'conv1' top: 'conv1' }}
        layers {{ name: 'fc6' type: INNER_PRODUCT bottom: 'conv1' top: 'fc6'
          inner_product_param {{ num_output: 3 weight_filler {{ type: 'xavier' }} }} }}
        {more}"
    )
}

fn values(count: usize, from: f32) -> Vec<f32> {
    (0..count).map(|i| from + i as f32 / 8.0).collect()
}

/// The file that goes with [`old_net`]; a layer `drop` more that the net does not have.
fn file(generation: u8, stored: Stored) -> Vec<u8> {
    let conv = [blob([4, 1, 2, 2], &values(16, -1.0), stored), blob([1, 1, 1, 4], &values(4, 3.0), stored)];
    let fc6 = [blob([1, 1, 3, 16], &values(48, 0.5), stored), blob([1, 1, 1, 3], &values(3, -2.0), stored)];
    [
        bytes(1, b"CaffeNet"),
        layer(generation, "conv1", CONVOLUTION, &conv),
        layer(generation, "relu1", RELU, &[]),
        layer(generation, "drop", INNER_PRODUCT, &[blob([1, 1, 1, 1], &[7.0], stored)]),
        layer(generation, "fc6", INNER_PRODUCT, &fc6),
    ]
    .concat()
}

fn load(net: &mut Net, bytes: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.caffemodel");
    std::fs::write(&path, bytes).unwrap();
    net.load_weights(Path::new(&path)).map(drop).map_err(|error| error.to_string())
}

#[test]
fn weights_of_each_generation_and_precision_go_to_layers_by_name() {
    for generation in [0, 1, 2] {
        for stored in [Stored::Packed, Stored::Single, Stored::Double] {
            let mut net = net(&old_net(""));
            load(&mut net, &file(generation, stored))
                .unwrap_or_else(|error| panic!("{generation} {stored:?}: {error}"));
            let params: Vec<_> = (0..4).map(|i| learnable(&mut net, i).0).collect();
            let expected = [values(16, -1.0), values(4, 3.0), values(48, 0.5), values(3, -2.0)];
            assert_eq!(params, expected, "{generation} {stored:?}");
        }
    }
}

#[test]
fn renamed_layers_keep_what_they_drew_and_shared_ones_take_the_files() {
    let mut renamed = net(&old_net("").replace("fc6", "fc6_new"));
    let drawn = learnable(&mut renamed, 2).0;
    load(&mut renamed, &file(2, Stored::Packed)).unwrap();
    assert_eq!(learnable(&mut renamed, 2).0, drawn);
    assert_eq!(learnable(&mut renamed, 0).0, values(16, -1.0));

    // A siamese net's second half: its layers have other names, and the parameters of the first by theirs.
    let twin = "layers { name: 'fc6_p' type: INNER_PRODUCT bottom: 'conv1' top: 'fc6_p' param: 'w' param: 'b'
          inner_product_param { num_output: 3 } }";
    let text = old_net(twin).replace("top: 'fc6'\n", "top: 'fc6' param: 'w' param: 'b'\n");
    let mut shared = net(&text);
    assert_eq!(shared.learnables().len(), 4);
    load(&mut shared, &file(1, Stored::Double)).unwrap();
    assert_eq!(learnable(&mut shared, 2).0, values(48, 0.5));
    let own =
        [blob([1, 1, 3, 16], &values(48, 9.0), Stored::Packed), blob([1, 1, 1, 3], &values(3, 9.0), Stored::Packed)];
    load(&mut shared, &layer(2, "fc6_p", INNER_PRODUCT, &own)).unwrap();
    assert_eq!(shared.layer_params("fc6").unwrap(), shared.layer_params("fc6_p").unwrap());
    assert_eq!(learnable(&mut shared, 3).0, values(3, 9.0));
}

#[test]
fn a_net_learns_from_older_weights() {
    let more = "layers { name: 'loss' type: EUCLIDEAN_LOSS bottom: 'fc6' bottom: 'aim' top: 'loss' }
        layers { name: 'aim' type: DUMMY_DATA top: 'aim' dummy_data_param { num: 2 channels: 3 height: 1 width: 1 } }";
    let (loss, aim) = more.split_once('\n').unwrap();
    let text = old_net(&format!("{aim}\n{loss}"));
    let data = "layers { name: 'data' type: DUMMY_DATA top: 'data' dummy_data_param { num: 2 channels: 2 height: 3
        width: 3 data_filler { type: 'constant' value: 0.25 } } }";
    let text = text.replace("input: 'data' input_dim: 2 input_dim: 2 input_dim: 3 input_dim: 3", data);
    let mut net = net(&text);
    load(&mut net, &file(2, Stored::Single)).unwrap();
    let first = pass(&mut net, 0);
    for i in 0..4 {
        let (values, gradient) = net.learnable::<f32>(i).unwrap();
        assert!(gradient.iter().any(|g| *g != 0.0), "parameter {i} has no gradient");
        values.iter_mut().zip(gradient).for_each(|(value, g)| *value -= 1e-4 * *g);
    }
    let second = pass(&mut net, 1);
    assert!(second < first, "{second} after {first}");
}

#[test]
fn what_does_not_fit_or_is_cut_is_named() {
    let fc6 = |extents, count| layer(2, "fc6", INNER_PRODUCT, &[blob(extents, &values(count, 0.0), Stored::Double)]);
    let refused = |bytes: &[u8], parts: &[&str]| says(&load(&mut net(&old_net("")), bytes).unwrap_err(), parts);
    let bias = blob([1, 1, 1, 3], &values(3, 0.0), Stored::Packed);
    refused(&fc6([1, 1, 3, 16], 48), &["'fc6' (InnerProduct)", "the layer has 2 parameters, the file 1"]);
    let weights = |weights: Vec<u8>| layer(2, "fc6", INNER_PRODUCT, &[weights, bias.clone()]);
    refused(
        &weights(blob([1, 1, 16, 3], &values(48, 0.0), Stored::Double)),
        &["cannot copy parameter 0: the net's shape is (3, 16), the file's (1, 1, 16, 3)"],
    );
    refused(
        &weights(blob([1, 1, 3, 16], &values(47, 0.0), Stored::Double)),
        &["'fc6' (InnerProduct)", "expected 48 values for shape [1, 1, 3, 16], found 47"],
    );
    // An extent of 2^63 - 1, and a length that the file does not have.
    refused(&weights(blob([1, 1, 3, (1 << 63) - 1], &values(48, 0.0), Stored::Packed)), &["'fc6' (InnerProduct)"]);
    let mut claims = bytes(4, b"fc6");
    claims.extend([varint(6 << 3 | 2), varint(u64::MAX >> 1)].concat());
    refused(&bytes(2, &claims), &["old.caffemodel", "damaged, cut short"]);
    let whole = file(1, Stored::Packed);
    for cut in (1..whole.len()).step_by(7) {
        let _ = load(&mut net(&old_net("")), &whole[..cut]);
    }
}
