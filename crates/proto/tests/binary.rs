//! Binary files: weights of every generation, numbers two schemas disagree on, damage.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use lgm_proto::prost_reflect::ReflectMessage;
use lgm_proto::v1_layer_parameter::LayerType;
use lgm_proto::{
    BlobProto, CenterLossParameter, LayerParameter, NetParameter, SolverState, SpatialTransformerParameter,
    V0LayerParameter, V1LayerParameter, Weights, decode_net, encode, read_binary, read_net_binary, read_weights,
    strings, to_text, upgrade_net_binary, upgrade_net_text,
};

const FILE: &str = "net.caffemodel";

fn sample() -> NetParameter {
    NetParameter {
        name: Some("n".into()),
        layer: vec![LayerParameter {
            name: Some("ip".into()),
            r#type: Some("InnerProduct".into()),
            blobs: vec![
                BlobProto::from_f32(&[2, 3], vec![1., 2., 3., 4., 5., 6.], None),
                BlobProto::from_f64(&[2], vec![0.5, 0.25], None),
            ],
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn weights_of_every_generation_are_read() {
    let blob = || vec![BlobProto::from_f32(&[1], vec![7.0], None)];
    let net = NetParameter {
        layers: vec![
            V1LayerParameter {
                name: Some("c".into()),
                r#type: Some(LayerType::SoftmaxLoss as i32),
                blobs: blob(),
                ..Default::default()
            },
            V1LayerParameter { name: Some("f".into()), r#type: Some(77), ..Default::default() },
            V1LayerParameter {
                layer: Some(V0LayerParameter {
                    name: Some("i".into()),
                    r#type: Some("innerproduct".into()),
                    blobs: blob(),
                    ..Default::default()
                }),
                ..Default::default()
            },
        ],
        ..sample()
    };
    let weights = Weights::decode(&encode(&net), Path::new(FILE)).unwrap();
    let found: Vec<_> = weights.layers.iter().map(|l| (l.name.as_str(), l.kind.as_str(), l.blobs.len())).collect();
    let expected = [("c", "SoftmaxWithLoss", 1), ("f", "77", 0), ("i", "InnerProduct", 1), ("ip", "InnerProduct", 2)];
    assert_eq!(found, expected);
    assert_eq!(weights.name, "n");
    assert_eq!(weights.layers[3].blobs, sample().layer[0].blobs);
}

#[test]
fn names_and_parameters_no_schema_knows_do_not_matter() {
    // A net whose one layer has a Latin-1 name, a known field of an unexpected wire type, and an unknown field.
    let layer = b"\x0a\x04caf\xe9\xb0\x06\x05\xfa\x7f\x01x";
    let mut bytes = vec![0xa2, 0x06, layer.len() as u8];
    bytes.extend_from_slice(layer);
    let weights = Weights::decode(&bytes, Path::new(FILE)).unwrap();
    assert_eq!(weights.layers[0].name, strings::from_bytes(b"caf\xe9"));
}

/// A layer's bytes with a message of the fork's at the fork's number.
fn fork_layer(kind: &str, number: u64, param: &impl ReflectMessage) -> Vec<u8> {
    let mut layer = encode(&LayerParameter { r#type: Some(kind.into()), ..Default::default() });
    let param = encode(param);
    lgm_proto::prost::encoding::encode_varint(number << 3 | 2, &mut layer);
    lgm_proto::prost::encoding::encode_varint(param.len() as u64, &mut layer);
    layer.extend_from_slice(&param);
    let mut net = Vec::new();
    lgm_proto::prost::encoding::encode_varint(100 << 3 | 2, &mut net);
    lgm_proto::prost::encoding::encode_varint(layer.len() as u64, &mut net);
    net.extend_from_slice(&layer);
    net
}

#[test]
fn the_layers_type_decides_whose_field_147_and_148_are() {
    let transformer = SpatialTransformerParameter { output_h: Some(5), ..Default::default() };
    let center = CenterLossParameter { num_output: Some(9), ..Default::default() };
    let mut bytes = encode(&sample());
    bytes.extend(fork_layer("SpatialTransformer", 147, &transformer));
    bytes.extend(fork_layer("CenterLoss", 148, &center));
    bytes.extend(fork_layer("Swish", 147, &lgm_proto::SwishParameter { beta: Some(2.0) }));
    bytes.extend(fork_layer("Clip", 148, &lgm_proto::ClipParameter { min: -1.0, max: 1.0 }));
    let net = decode_net(&bytes, Path::new(FILE)).unwrap();
    assert_eq!(net.layer[0], sample().layer[0]);
    assert_eq!(net.layer[1].st_param, Some(transformer));
    assert_eq!(net.layer[1].swish_param, None);
    assert_eq!(net.layer[2].center_loss_param, Some(center));
    assert_eq!(net.layer[3].swish_param.unwrap().beta, Some(2.0));
    assert_eq!(net.layer[4].clip_param.unwrap().min, -1.0);
    assert_eq!(decode_net(&encode(&net), Path::new(FILE)).unwrap(), net);
}

#[test]
fn fields_of_forks_come_under_the_numbers_of_each() {
    let prior = lgm_proto::PriorBoxParameter { min_size: vec![30.0], ..Default::default() };
    let regions = lgm_proto::RoiPoolingParameter { pooled_h: Some(7), ..Default::default() };
    let mut bytes = Vec::new();
    for number in [203, 165, 211, 212] {
        bytes.extend(fork_layer("PriorBox", number, &prior));
    }
    for number in [8_266_711, 147, 150] {
        bytes.extend(fork_layer("ROIPooling", number, &regions));
    }
    let net = decode_net(&bytes, Path::new(FILE)).unwrap();
    assert!(net.layer[..4].iter().all(|layer| layer.prior_box_param.as_deref() == Some(&prior)));
    assert!(net.layer[4..].iter().all(|layer| layer.roi_pooling_param.as_deref() == Some(&regions)));
    assert!(net.layer[4..].iter().all(|layer| layer.swish_param.is_none() && layer.class_distance_param.is_none()));
}

#[test]
fn a_net_is_upgraded_when_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let old = NetParameter {
        layers: vec![V1LayerParameter { r#type: Some(LayerType::Relu as i32), ..Default::default() }],
        ..Default::default()
    };
    std::fs::write(&path, encode(&old)).unwrap();
    let net = read_net_binary(&path).unwrap();
    assert_eq!(net.message.layer[0].r#type(), "ReLU");
    assert_eq!(net.positions.layer(0), None);
    assert_eq!((net.notices.len(), net.warnings.len()), (2, 1));
}

#[test]
fn damage_is_named_with_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.caffemodel");
    let whole = encode(&sample());
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        read_weights(&path).unwrap_err().to_string()
    };
    let cut = read(&whole[..whole.len() - 5]);
    assert!(cut.starts_with(&path.display().to_string()), "{cut}");
    assert!(cut.contains("at byte 3, field 100 needs") && cut.ends_with("are left"), "{cut}");
    assert!(read(b"").ends_with("the file is empty"));
    assert!(read(b"\x89HDF\r\n\x1a\n....").contains("found an HDF5 file"));
    assert!(read(b"name: \"LeNet\"\nlayer {\n").contains("not a binary file of Caffe's"));
    std::fs::remove_file(&path).unwrap();
    assert!(read_weights(&path).unwrap_err().to_string().contains("cannot read"));
    // Every cut inside the one layer is noticed: nothing is silently shorter.
    for length in 4..whole.len() {
        assert!(Weights::decode(&whole[..length], &path).is_err(), "cut to {length}");
    }
}

#[test]
fn strings_that_are_not_utf8_keep_their_bytes() {
    let path = Path::new(FILE);
    let mut bytes = encode(&sample());
    let start = bytes.windows(2).position(|two| two == b"ip").unwrap();
    bytes[start + 1] = 0xe9;
    let net = decode_net(&bytes, path).unwrap();
    assert_eq!(net.layer[0].name(), strings::from_bytes(b"i\xe9"));
    assert_eq!(encode(&net), bytes);
    assert!(to_text(&net).contains("name: \"i\\351\""));
    assert_eq!(Weights::decode(&bytes, path).unwrap().layers[0].name, net.layer[0].name());
    assert_eq!(upgrade_net_binary(&bytes, path).unwrap().bytes, bytes);
    // Of an older net, which is written anew.
    let old = V1LayerParameter { name: Some(net.layer[0].name().into()), ..Default::default() };
    let old = NetParameter { layers: vec![V1LayerParameter { r#type: Some(14), ..old }], ..Default::default() };
    let upgraded = upgrade_net_binary(&encode(&old), path).unwrap().bytes.into_owned();
    assert!(upgraded.windows(2).any(|two| two == b"i\xe9"), "{upgraded:?}");
    let text = upgrade_net_text(b"layers { name: 'i\xe9' type: INNER_PRODUCT }", path).unwrap();
    assert!(text.bytes.windows(13).any(|line| line == b"name: \"i\\351\""), "{:?}", text.bytes);
}

#[test]
fn a_solver_state_survives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.solverstate");
    let state = SolverState {
        iter: Some(500),
        learned_net: Some("s.caffemodel".into()),
        history: vec![BlobProto::from_f32(&[2], vec![0.1, f32::NAN.copysign(1.0)], None)],
        current_step: Some(2),
    };
    std::fs::write(&path, encode(&state)).unwrap();
    let read: SolverState = read_binary(&path).unwrap();
    assert_eq!(encode(&read), encode(&state));
}

#[test]
fn blobs_of_both_generations_and_precisions() {
    let legacy = |num, channels, height, width| BlobProto {
        num,
        channels,
        height,
        width,
        data: vec![1.0; 6],
        ..Default::default()
    };
    let bias = legacy(Some(1), Some(1), Some(1), Some(6));
    assert!(bias.is_legacy());
    assert_eq!(bias.extents().unwrap(), [1, 1, 1, 6]);
    assert!(bias.fits(&[6]) && bias.fits(&[1, 6]) && bias.fits(&[1, 1, 1, 6]));
    assert!(!bias.fits(&[6, 1]) && !bias.fits(&[1, 1, 1, 1, 6]));
    assert_eq!(legacy(Some(6), None, None, None).extents().unwrap(), [6, 0, 0, 0]);

    let matrix = BlobProto::from_f32(&[2, 1], vec![1.0, 2.0], Some(vec![3.0, 4.0]));
    assert!(matrix.fits(&[2, 1]) && !matrix.fits(&[2]) && !matrix.is_legacy());
    assert_eq!(*matrix.values_f64().unwrap(), [1.0, 2.0]);
    assert_eq!(*matrix.gradients_f32().unwrap().unwrap(), [3.0, 4.0]);

    let double = BlobProto::from_f64(&[2], vec![0.1, 0.2], None);
    assert_eq!(*double.values_f64().unwrap(), [0.1, 0.2]);
    assert_eq!(*double.values_f32().unwrap(), [0.1_f32, 0.2]);
    assert_eq!(double.gradients_f64().unwrap(), None);

    let scalar = BlobProto::from_f32(&[], vec![5.0], None);
    assert_eq!(scalar.extents().unwrap(), Vec::<usize>::new());
    assert_eq!(*scalar.values_f32().unwrap(), [5.0]);
}

#[test]
fn blobs_that_contradict_themselves_are_refused() {
    let short = BlobProto::from_f32(&[2, 3], vec![1.0; 5], Some(vec![1.0; 4]));
    assert_eq!(short.values_f32().unwrap_err().to_string(), "expected 6 values for shape [2, 3], found 5");
    assert_eq!(short.gradients_f64().unwrap_err().to_string(), "expected 6 gradients for shape [2, 3], found 4");
    let negative = BlobProto { num: Some(-1), ..Default::default() };
    assert_eq!(negative.extents().unwrap_err().to_string(), "expected a shape of extents from 0, found [-1, 0, 0, 0]");
    let huge = BlobProto::from_f32(&[1 << 40, 1 << 40], Vec::new(), None);
    assert!(huge.extents().is_err() && !huge.fits(&[1 << 40, 1 << 40]));
}
