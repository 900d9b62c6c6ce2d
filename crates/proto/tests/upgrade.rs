//! Older nets and solvers against what they become.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use lgm_proto::{
    Fault, NetParameter, Parsed, parse, parse_net, parse_solver, to_text, upgrade_net_binary, upgrade_net_text,
    upgrade_solver_text,
};

fn upgraded(text: &str) -> Parsed<NetParameter> {
    parse_net(text.as_bytes(), Path::new("old.prototxt")).unwrap_or_else(|error| panic!("{error}"))
}

/// Upgrades `old` and compares it with `new`, read as it stands.
fn becomes(old: &str, new: &str) -> Parsed<NetParameter> {
    let upgraded = upgraded(old);
    let expected: Parsed<NetParameter> = parse(new.as_bytes(), Path::new("new.prototxt")).unwrap();
    assert_eq!(to_text(&upgraded.message), to_text(&expected.message));
    upgraded
}

fn refused(text: &str) -> String {
    parse_net(text.as_bytes(), Path::new("old.prototxt")).unwrap_err().to_string()
}

#[test]
fn a_net_of_today_is_left_alone() {
    let text = "name: 'n' layer { name: 'd' type: 'Data' data_param { scale: 2 } } layer { type: 'BatchNorm'
        param { lr_mult: 1 } }";
    assert!(becomes(text, text).notices.is_empty());
}

#[test]
fn second_generation_layers() {
    let net = becomes(
        "name: 'n'
        layers { name: 'd' type: DATA top: 'x' include { phase: TRAIN }
            data_param { source: 's' scale: 0.5 mirror: true } transform_param { scale: 3 crop_size: 7 } }
        layers { name: 'w' type: WINDOW_DATA window_data_param { mean_file: 'm' crop_size: 9 } }
        layers { name: 'i' type: IMAGE_DATA image_data_param { crop_size: 5 } }
        layers { name: 'c' type: CONVOLUTION bottom: 'x' top: 'y' param: 'w' blob_share_mode: STRICT
            blob_share_mode: PERMISSIVE blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0 weight_decay: 3
            convolution_param { num_output: 3 } exclude { stage: 's' } }
        layers { name: 'l' type: SOFTMAX_LOSS loss_weight: 0.5 loss_param { ignore_label: 2 } }
        layers { name: 'none' }",
        "name: 'n'
        layer { name: 'd' type: 'Data' top: 'x' include { phase: TRAIN } data_param { source: 's' }
            transform_param { scale: 0.5 mirror: true crop_size: 7 } }
        layer { name: 'w' type: 'WindowData' window_data_param { } transform_param { mean_file: 'm' crop_size: 9 } }
        layer { name: 'i' type: 'ImageData' image_data_param { } transform_param { crop_size: 5 } }
        layer { name: 'c' type: 'Convolution' bottom: 'x' top: 'y'
            param { name: 'w' share_mode: STRICT lr_mult: 1 decay_mult: 1 }
            param { share_mode: PERMISSIVE lr_mult: 2 decay_mult: 0 } param { decay_mult: 3 }
            convolution_param { num_output: 3 } exclude { stage: 's' } }
        layer { name: 'l' type: 'SoftmaxWithLoss' loss_weight: 0.5 loss_param { ignore_label: 2 } }
        layer { name: 'none' }",
    );
    let steps: Vec<_> = net.notices.iter().filter_map(|notice| notice.strip_prefix("Attempting to upgrade ")).collect();
    let expected = ["transformation parameters", "V1LayerParameter"];
    assert_eq!(steps, expected.map(|old| format!("input file specified using deprecated {old}: old.prototxt")));
    assert_eq!(net.warnings.len(), 1);
    assert!(net.warnings[0].contains("run 'lgm-caffe upgrade_net_proto_text old.prototxt NEW'"), "{:?}", net.warnings);
    assert_eq!(net.positions.layer(4).unwrap().line, 9);
    assert_eq!(net.positions.get("layer[3].convolution_param").unwrap().line, 8);
}

#[test]
fn first_generation_layers() {
    let net = becomes(
        "name: 'n' input: 'data' input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
        layers { layer { name: 'pad' type: 'padding' pad: 2 } bottom: 'data' top: 'padded' }
        layers { layer { name: 'conv' type: 'conv' num_output: 4 kernelsize: 5 stride: 2 group: 1 biasterm: false
            weight_filler { type: 'xavier' } blobs_lr: 1 weight_decay: 1 } bottom: 'padded' top: 'conv' }
        layers { layer { name: 'pad2' type: 'padding' pad: 1 } bottom: 'conv' top: 'padded' }
        layers { layer { name: 'pool' type: 'pool' pool: AVE kernelsize: 2 stride: 3 } bottom: 'padded' top: 'pool' }
        layers { layer { name: 'norm' type: 'lrn' local_size: 3 alpha: 0.1 beta: 0.5 k: 2 } bottom: 'pool' top: 'n' }
        layers { layer { name: 'drop' type: 'dropout' dropout_ratio: 0.2 } bottom: 'n' top: 'n' }
        layers { layer { name: 'ip' type: 'innerproduct' num_output: 2 bias_filler { value: 1 } }
            bottom: 'n' top: 'ip' }
        layers { layer { name: 'cat' type: 'concat' concat_dim: 0 } bottom: 'ip' bottom: 'ip' top: 'cat' }
        layers { layer { name: 'loss' type: 'softmax_loss' } bottom: 'cat' bottom: 'data' }",
        "name: 'n'
        layer { name: 'input' type: 'Input' top: 'data' input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
        layer { name: 'conv' type: 'Convolution' bottom: 'data' top: 'conv' param { lr_mult: 1 decay_mult: 1 }
            convolution_param { num_output: 4 bias_term: false pad: 2 kernel_size: 5 group: 1 stride: 2
            weight_filler { type: 'xavier' } } }
        layer { name: 'pool' type: 'Pooling' bottom: 'conv' top: 'pool'
            pooling_param { pool: AVE kernel_size: 2 stride: 3 pad: 1 } }
        layer { name: 'norm' type: 'LRN' bottom: 'pool' top: 'n'
            lrn_param { local_size: 3 alpha: 0.1 beta: 0.5 k: 2 } }
        layer { name: 'drop' type: 'Dropout' bottom: 'n' top: 'n' dropout_param { dropout_ratio: 0.2 } }
        layer { name: 'ip' type: 'InnerProduct' bottom: 'n' top: 'ip'
            inner_product_param { num_output: 2 bias_filler { value: 1 } } }
        layer { name: 'cat' type: 'Concat' bottom: 'ip' bottom: 'ip' top: 'cat' concat_param { concat_dim: 0 } }
        layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'cat' bottom: 'data' }",
    );
    let lines: Vec<usize> = (0..8).map(|i| net.positions.layer(i).unwrap().line).collect();
    assert_eq!(lines, [1, 3, 6, 7, 8, 9, 11, 12]);
    assert_eq!(net.positions.layer(8), None);
    assert_eq!(net.positions.nearest("layer[2].pooling_param.kernel_size").unwrap().line, 6);
}

#[test]
fn first_generation_data_layers() {
    becomes(
        "layers { layer { name: 'd' type: 'data' source: 's' batchsize: 4 rand_skip: 3 scale: 0.5 meanfile: 'm'
            cropsize: 7 mirror: true } }
        layers { layer { name: 'i' type: 'images' source: 's' batchsize: 2 shuffle_images: true new_height: 8
            new_width: 9 rand_skip: 1 } }
        layers { layer { name: 'w' type: 'window_data' source: 's' batchsize: 2 det_fg_threshold: 0.1
            det_bg_threshold: 0.2 det_fg_fraction: 0.3 det_context_pad: 4 det_crop_mode: 'square' } }
        layers { layer { name: 'h' type: 'hdf5_data' source: 's' batchsize: 2 } }
        layers { layer { name: 'o' type: 'hdf5_output' hdf5_output_param { file_name: 'f' } } }
        layers { layer { name: 'g' type: 'infogain_loss' source: 's' } }",
        "layer { name: 'd' type: 'Data' data_param { source: 's' batch_size: 4 rand_skip: 3 }
            transform_param { scale: 0.5 mean_file: 'm' crop_size: 7 mirror: true } }
        layer { name: 'i' type: 'ImageData' image_data_param { source: 's' batch_size: 2 shuffle: true new_height: 8
            new_width: 9 rand_skip: 1 } }
        layer { name: 'w' type: 'WindowData' window_data_param { source: 's' batch_size: 2 fg_threshold: 0.1
            bg_threshold: 0.2 fg_fraction: 0.3 context_pad: 4 crop_mode: 'square' } }
        layer { name: 'h' type: 'HDF5Data' hdf5_data_param { source: 's' batch_size: 2 } }
        layer { name: 'o' type: 'HDF5Output' hdf5_output_param { file_name: 'f' } }
        layer { name: 'g' type: 'InfogainLoss' infogain_loss_param { source: 's' } }",
    );
}

#[test]
fn settings_a_first_generation_layer_has_no_use_for_are_named() {
    let net = upgraded("layers { layer { name: 'r' type: 'relu' num_output: 3 k: 2 } }");
    assert_eq!(net.warnings.len(), 2);
    assert_eq!(net.warnings[1], "old.prototxt:1:1: layer 'r' (RELU) has no use for num_output, k; ignored");
}

#[test]
fn input_fields() {
    becomes(
        "input: 'a' input: 'b' input_shape { dim: 2 dim: 3 } input_shape { dim: 4 } layer { name: 'l' type: 'ReLU' }",
        "layer { name: 'input' type: 'Input' top: 'a' top: 'b'
            input_param { shape { dim: 2 dim: 3 } shape { dim: 4 } } } layer { name: 'l' type: 'ReLU' }",
    );
    becomes("input: 'a' layer { name: 'l' }", "layer { name: 'l' }");
}

#[test]
fn batch_norm_statistics_are_frozen() {
    becomes(
        "layer { type: 'BatchNorm' param { lr_mult: 1 name: 'mean' } param { } param { decay_mult: 2 } }
        layer { type: 'BatchNorm' param { lr_mult: 1 } param { lr_mult: 1 } }",
        "layer { type: 'BatchNorm' param { name: 'mean' lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 }
            param { lr_mult: 0 decay_mult: 0 } }
        layer { type: 'BatchNorm' param { lr_mult: 1 } param { lr_mult: 1 } }",
    );
}

#[test]
fn nets_that_cannot_be_upgraded_are_refused() {
    let cases = [
        (
            "layer { }\nlayers { }",
            "old.prototxt:2:1: the net has both 'layer' and 'layers'; write all of them as layer { type: \"…\" }",
        ),
        ("layers { layer { name: 'x' type: 'conf' } }", "old.prototxt:1:1: unknown first-generation layer type 'conf'"),
        (
            "input: 'd' input_dim: 1\ninput_dim: 2",
            "old.prototxt:1:1: expected one input_shape, or four input_dim, for each of 1 inputs, found shapes for 0",
        ),
        (
            "layers { layer { name: 'x' type: 'relu' } bottom: 'lost' }",
            "old.prototxt:1:1: bottom 'lost' is no input and no top of an earlier layer",
        ),
        (
            "input: 'd' layers { layer { type: 'padding' } bottom: 'd' top: 'p' }\n\
             layers { layer { type: 'relu' } bottom: 'p' top: 'r' }",
            "old.prototxt:2:1: padding can only precede a layer of type conv or pool, not 'relu'",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refused(text), expected);
    }
}

#[test]
fn solver_type_becomes_type() {
    let kinds = [
        ("SGD", "SGD"),
        ("NESTEROV", "Nesterov"),
        ("ADAGRAD", "AdaGrad"),
        ("RMSPROP", "RMSProp"),
        ("ADADELTA", "AdaDelta"),
        ("ADAM", "Adam"),
    ];
    for (old, new) in kinds {
        let text = format!("solver_type: {old} snapshot_prefix: 'p'");
        let solver = parse_solver(text.as_bytes(), Path::new("s.prototxt")).unwrap();
        assert_eq!((solver.message.r#type(), solver.message.solver_type), (new, None));
        assert_eq!(solver.notices.len(), 2);
        assert!(solver.notices[1].ends_with(&format!("(string): solver_type: {old} is type: \"{new}\"")));
    }
    let both = parse_solver(b"type: 'SGD'\nsolver_type: ADAM", Path::new("s.prototxt")).unwrap_err().to_string();
    assert_eq!(both, "s.prototxt:2:1: both 'type' and the older 'solver_type' are given; remove solver_type");
}

#[test]
fn snapshot_prefix_comes_from_the_solvers_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let prefix = |text: String, file: &str| {
        parse_solver(text.as_bytes(), Path::new(file)).unwrap().message.snapshot_prefix().to_owned()
    };
    assert_eq!(prefix(String::new(), "jobs/lenet.solver.prototxt"), "jobs/lenet.solver");
    assert_eq!(prefix(format!("snapshot_prefix: '{folder}'"), "jobs/lenet.prototxt"), format!("{folder}/lenet"));
    assert_eq!(prefix("snapshot_prefix: 'snaps/a'".into(), "jobs/lenet.prototxt"), "snaps/a");
    assert_eq!(prefix("snapshot_prefix: 'none/of/these/'".into(), "jobs/lenet.prototxt"), "none/of/these/lenet");
}

fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn an_upgraded_text_keeps_the_settings_of_forks() {
    // engine: MKL2017 is a fork's value, quantization_param and eval_type are fields that are not supported or ignored.
    let old = "input: 'x' input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4
        layer { name: 'c' type: 'Convolution' bottom: 'x' top: 'y' convolution_param { num_output: 2 engine: MKL2017 }
            quantization_param { bw_params: 5 } }";
    let done = upgrade_net_text(old.as_bytes(), Path::new("old.prototxt")).unwrap_or_else(|error| panic!("{error}"));
    let text = text_of(&done.bytes);
    for line in ["  type: \"Input\"", "    engine: MKL2017", "  quantization_param {", "    bw_params: 5"] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(!text.contains("input_dim") && done.ignored.is_empty() && done.notices.len() == 2, "{text}");
    let old = "layers { type: CONVOLUTION convolution_param { engine: MKL2017 } }";
    let done_old = upgrade_net_text(old.as_bytes(), Path::new("old.prototxt")).unwrap();
    let expected = "layer {\n  type: \"Convolution\"\n  convolution_param {\n    engine: MKL2017\n  }\n}\n";
    assert_eq!(text_of(&done_old.bytes), expected);
    let again = upgrade_net_text(&done.bytes, Path::new("new.prototxt")).unwrap();
    assert!(again.notices.is_empty() && again.bytes == done.bytes);

    let solver = "solver_type: ADAM eval_type: 'detection' base_lr: 0.5";
    let done = upgrade_solver_text(solver.as_bytes(), Path::new("solver.prototxt")).unwrap();
    let lines: Vec<_> = text_of(&done.bytes).lines().collect();
    assert_eq!(lines, ["base_lr: 0.5", "type: \"Adam\"", "eval_type: \"detection\""]);
}

#[test]
fn an_upgraded_binary_net_keeps_its_arrays_and_the_layers_that_were_up_to_date() {
    use lgm_proto::{BlobProto, LayerParameter, V0LayerParameter, V1LayerParameter, decode_net, encode};
    let path = Path::new("old.caffemodel");
    let blob =
        |value: f64| BlobProto { num: Some(1), channels: Some(1), double_data: vec![value], ..Default::default() };
    let padding = V0LayerParameter { r#type: Some("padding".into()), pad: Some(3), ..Default::default() };
    let conv = V0LayerParameter {
        name: Some("c".into()),
        r#type: Some("conv".into()),
        k: Some(2.0),
        blobs: vec![blob(0.1), blob(0.2)],
        ..Default::default()
    };
    let layer = |layer: V0LayerParameter, bottom: &str, top: &str| V1LayerParameter {
        layer: Some(layer),
        bottom: vec![bottom.into()],
        top: vec![top.into()],
        ..Default::default()
    };
    let ip = V1LayerParameter {
        name: Some("ip".into()),
        r#type: Some(14),
        bottom: vec!["c".into()],
        blobs: vec![blob(0.3)],
        ..Default::default()
    };
    let net = NetParameter {
        input: vec!["x".into()],
        input_dim: vec![1, 3, 9, 9],
        layers: vec![layer(padding, "x", "p"), layer(conv, "p", "c"), ip],
        ..Default::default()
    };
    let bytes = encode(&net);
    let done = upgrade_net_binary(&bytes, path).unwrap();
    let new = decode_net(&done.bytes, path).unwrap();
    let names: Vec<_> = new.layer.iter().map(|layer| (layer.name(), layer.r#type(), layer.blobs.len())).collect();
    assert_eq!(names, [("input", "Input", 0), ("c", "Convolution", 2), ("ip", "InnerProduct", 1)]);
    assert_eq!(new.layer[1].blobs, [blob(0.1), blob(0.2)]);
    assert_eq!(new.layer[1].bottom, ["x"]);
    assert_eq!(new.layer[2].blobs, [blob(0.3)]);
    assert!(done.ignored.len() == 1 && done.ignored[0].contains("has no use for k"), "{:?}", done.ignored);

    // Of today's layers only BatchNorm is changed; the other keeps a fork's number and a field that nobody knows.
    let mut other =
        encode(&LayerParameter { name: Some("r".into()), r#type: Some("ROIPooling".into()), ..Default::default() });
    other.extend(b"\x9a\x09\x02\x08\x07\xaa\xfa\x7f\x01x");
    let frozen = LayerParameter {
        r#type: Some("BatchNorm".into()),
        param: vec![Default::default(); 3],
        blobs: vec![blob(0.4)],
        ..Default::default()
    };
    let mut bytes = encode(&NetParameter { layer: vec![frozen], ..Default::default() });
    bytes.extend([0xa2, 0x06, other.len() as u8]);
    bytes.extend(&other);
    let done = upgrade_net_binary(&bytes, path).unwrap();
    assert!(done.bytes.ends_with(&other));
    let new = decode_net(&done.bytes, path).unwrap();
    assert_eq!((new.layer[0].param[2].lr_mult, &new.layer[0].blobs), (Some(0.0), &vec![blob(0.4)]));

    for cut in 1..bytes.len() {
        let _ = upgrade_net_binary(&bytes[..cut], path);
    }
    // The last byte of the array's values is taken from it.
    let broken = NetParameter {
        layers: vec![V1LayerParameter { blobs: vec![blob(0.5)], ..Default::default() }],
        ..Default::default()
    };
    let mut broken = encode(&broken);
    broken.pop();
    broken[1] -= 1;
    broken[3] -= 1;
    assert!(upgrade_net_binary(&broken, path).unwrap_err().to_string().contains("damaged, cut short"));
    assert!(upgrade_net_binary(b"", path).unwrap_err().to_string().ends_with("the file is empty"));
}

#[test]
fn what_cannot_be_upgraded_is_told_from_what_cannot_be_read() {
    let kind = |text: &str| match upgrade_net_text(text.as_bytes(), Path::new("old.prototxt")).unwrap_err() {
        lgm_proto::Error::Text { fault, .. } => fault,
        error => panic!("{error}"),
    };
    assert!(matches!(kind("layer { } layers { }"), Fault::Upgrade(_)));
    assert!(matches!(kind("layer { nmae: 'x' }"), Fault::UnknownField { .. }));
}

#[test]
fn margins_of_older_nets_of_the_lgm_fork() {
    let layer = |fields: &str| format!("layer {{ type: 'ClassDistance' class_distance_param {{ {fields} }} }}");
    for (old, new) in [
        ("margin: 0.1", "margin_mul { value: 0.1 }"),
        (
            "margin: 0.01 margin_step: 500 margin_mult: 2 margin_max: 1",
            "margin_mul { policy: STEPUP value: 0.01 gamma: 2 step: 500 max: 1 }",
        ),
        (
            "margin_mul: 0.001 # 0.01\nmargin_add: 4 margin_step: 1000 margin_mult: 3 margin_max: 0.1 metric: \"l2\"",
            "margin_mul { policy: STEPUP value: 0.001 gamma: 3 step: 1000 max: 0.1 } margin_add { value: 4 } metric: L2",
        ),
        ("margin_mul: -.5 metric: 'ip'", "margin_mul { value: -0.5 } metric: IP"),
        ("margin_mul { value: 0.2 } margin_add: {value: 3}", "margin_mul { value: 0.2 } margin_add { value: 3 }"),
    ] {
        becomes(&layer(old), &layer(new));
    }
    becomes(
        "layer { margin_softmax_loss_param { lambda: 5 } }",
        "layer { margin_softmax_loss_param { lambda { value: 5 } } }",
    );
    for (fields, expected) in [
        (
            "margin: 1\nmargin_mul: 2",
            "old.prototxt:1:54: both margin_mul and the older 'margin' are given; remove margin",
        ),
        ("margin_mul { step: 3 } margin_max: 1", "old.prototxt:1:54: margin_mul has a schedule of its own"),
        ("margin_add: 4 nonsense: 3", "old.prototxt:1:68: unknown field 'nonsense' in ClassDistanceParameter"),
        ("margin_add: 4 margin_mul: x", "old.prototxt:1:80: margin_mul: "),
        ("metric: \"l3\" margin_mul: 1", "old.prototxt:1:62: metric: "),
        ("margin_mul: 1 2", "old.prototxt:1:68: "),
    ] {
        let error = refused(&layer(fields));
        assert!(error.starts_with(expected), "{error}");
    }
}
