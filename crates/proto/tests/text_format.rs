//! What the text format accepts, and how each refusal reads.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use lgm_proto::{Datum, NetParameter, Parsed, SolverParameter, parse, pooling_parameter::PoolMethod, strings};

fn net(text: &str) -> Result<Parsed<NetParameter>, String> {
    parse(text.as_bytes(), Path::new("net.prototxt")).map_err(|error| error.to_string())
}

fn accepted(text: &str) -> NetParameter {
    net(text).unwrap_or_else(|error| panic!("{text}\n{error}")).message
}

/// The values of one filler, for spellings of numbers.
fn filler(fields: &str) -> lgm_proto::FillerParameter {
    let net = accepted(&format!("layer {{ inner_product_param {{ weight_filler {{ {fields} }} }} }}"));
    net.layer[0].inner_product_param.clone().unwrap().weight_filler.unwrap()
}

#[test]
fn separators_braces_and_lists() {
    let spellings = [
        "name: 'n' layer { name: 'a' bottom: 'x' bottom: 'y' } layer { }",
        "name: 'n'; layer: { name: 'a', bottom: ['x', 'y']; }, layer: {}",
        "name:'n'layer<name:'a'bottom:['x']bottom:'y'>layer<>",
        "# a comment\nname: # here too\n'n'\r\n\tlayer: [{ name: 'a' bottom: ['x', 'y'] bottom: [] }, {}]",
        "name: 'n' layer[{ name: 'a' bottom: ['x', 'y'] blobs [] }] layer # more\n[<>]",
        "name: 'n' layer [] layer\n[{ name: 'a' bottom: ['x', 'y'] blobs[<data: [1, 2]>, {shape{dim:1}}] }, {}]",
    ];
    for text in spellings {
        let net = accepted(text);
        assert_eq!(net.name(), "n", "{text}");
        assert_eq!(net.layer.len(), 2, "{text}");
        assert_eq!(net.layer[0].bottom, ["x", "y"], "{text}");
        assert_eq!(net.layer[0].r#type, None, "{text}");
    }
}

#[test]
fn strings() {
    let cases = [
        (r#""double" " and " 'single'"#, "double and single"),
        (r#"'it\'s "quoted"'"#, "it's \"quoted\""),
        (r#""\a\b\f\n\r\t\v\?\\\"""#, "\x07\x08\x0c\n\r\t\x0b?\\\""),
        (r#""\101\x42\u0043""#, "ABC"),
        ("'é'", "é"),
        ("''", ""),
    ];
    for (text, value) in cases {
        assert_eq!(accepted(&format!("name: {text}")).name(), value, "{text}");
    }
}

#[test]
fn strings_and_comments_hold_any_bytes_and_the_text_may_begin_with_a_byte_order_mark() {
    let net = |text: &[u8]| -> Result<NetParameter, String> {
        parse(text, Path::new("net.prototxt")).map(|p: Parsed<NetParameter>| p.message).map_err(|e| e.to_string())
    };
    for good in [&b"# caf\xe9\nname: 'a' # \xff"[..], b"\xef\xbb\xbfname: 'a'", b"\xef\xbb\xbf# \xe9\n name: 'a'"] {
        assert_eq!(net(good).unwrap().name(), "a");
    }
    assert_eq!(net("name: '\u{fffd}' # \u{fffd}".as_bytes()).unwrap().name(), "\u{fffd}");
    assert!(net(b"\xef\xbb\xbfnam: 'a'").unwrap_err().starts_with("net.prototxt:1:1: unknown field 'nam'"));
    // Raw or escaped, whole or in parts, the same bytes are the same name.
    for (bytes, texts) in [
        (
            &b"caf\xe9 1"[..],
            &[&b"'caf\xe9 1'"[..], b"\"caf\\351 1\"", b"'caf\\xe9' ' 1'", b"'ca' # \xe9 \\\n 'f\xe9 1'"][..],
        ),
        ("café".as_bytes(), &["'café'".as_bytes(), b"'caf\\303\\251'", b"'caf\\xC3' '\\xa9'", b"'caf\xc3' '\xa9'"]),
        (b"\xc4\xa3\\\xd0\xcd", &[b"'\xc4\xa3\\\\\xd0\xcd'", b"'\\304\\243\\134\\320\\315'"]),
        ("\u{10ffe9}".as_bytes(), &["'\u{10ffe9}'".as_bytes(), br"'\U0010ffe9'", br"'\364\217\277\251'"]),
    ] {
        for text in texts {
            let net = net(&[b"name: ", *text, b" layer { name: ", text, b"}"].concat()).unwrap();
            assert_eq!(strings::to_bytes(net.name()), bytes);
            assert_eq!(net.layer[0].name(), net.name());
        }
    }
    let datum: Datum = parse(b"data: '\xe9\\352\\0' label: 3", Path::new("datum")).unwrap().message;
    assert_eq!(datum.data(), b"\xe9\xea\0");
    for (bad, at) in [
        (&b"name: 'a' \xe9"[..], "1:11: expected a field name or a value, but found the byte 0xE9"),
        (b"# \xe9\n n\xe9me: 'a'", "2:3: expected a field name or a value, but found the byte 0xE9"),
        (b"name: '\xe9\xe9' nam: 3", "1:12: unknown field 'nam'"),
        (b"name: '\\\xe9'", "1:8: "),
        (b"name: '\xe9", "1:"),
        (b"layer { type: 'Pooling' pooling_param { pool: '\xe9' } }", "1:47: pool: "),
        ("name: 'a' \u{feff}".as_bytes(), "1:11: expected a field name or a value, but found the character"),
        ("\u{feff}\u{feff}name: 'a'".as_bytes(), "1:"),
    ] {
        let error = net(bad).unwrap_err();
        assert!(error.starts_with(&format!("net.prototxt:{at}")), "{error}");
    }
}

#[test]
fn numbers() {
    for (text, value) in [
        ("1.5", 1.5),
        ("1.5f", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1F", 1.0),
        ("-2e-3", -2e-3),
        ("- 2E+3f", -2e3),
        ("7", 7.0),
        ("inf", f32::INFINITY),
        ("-Infinity", f32::NEG_INFINITY),
        ("1e60", f32::INFINITY),
    ] {
        assert_eq!(filler(&format!("value: {text}")).value(), value, "{text}");
    }
    assert!(filler("value: nan").value().is_nan());
    for (text, value) in [("0x1F", 31), ("010", 8), ("-0x10", -16), ("0", 0), ("-2147483648", i32::MIN)] {
        assert_eq!(filler(&format!("sparse: {text}")).sparse(), value, "{text}");
    }
}

#[test]
fn enums_and_booleans() {
    for text in ["AVE", "1", "0x1"] {
        let net = accepted(&format!("layer {{ pooling_param {{ pool: {text} }} }}"));
        assert_eq!(net.layer[0].pooling_param.as_ref().unwrap().pool(), PoolMethod::Ave, "{text}");
    }
    for (text, value) in
        [("true", true), ("True", true), ("t", true), ("1", true), ("false", false), ("False", false), ("f", false)]
    {
        assert_eq!(accepted(&format!("debug_info: {text}")).debug_info, Some(value), "{text}");
    }
}

#[test]
fn presence_survives() {
    let net = accepted("layer { batch_norm_param { eps: 1e-5 } }");
    let param = net.layer[0].batch_norm_param.as_ref().unwrap();
    assert_eq!((param.eps, param.use_global_stats), (Some(1e-5), None));
    assert_eq!(param.moving_average_fraction(), 0.999);
}

#[test]
fn both_schemas_collisions_are_fields_of_their_own() {
    let text = "layer { swish_param { beta: 2 } clip_param { min: 0 max: 6 } st_param { output_H: 3 }
        center_loss_param { num_output: 10 } class_distance_param { margin_add { value: 4 } }
        lgm_loss_param { margin_mul { value: 0.3 policy: ADDUP } } }";
    let net = accepted(text);
    let layer = &net.layer[0];
    assert_eq!(layer.swish_param.unwrap().beta(), 2.0);
    assert_eq!(layer.clip_param.unwrap().max, 6.0);
    assert_eq!(layer.st_param.as_ref().unwrap().output_h(), 3);
    assert_eq!(layer.center_loss_param.as_ref().unwrap().num_output(), 10);
    assert_eq!(layer.class_distance_param.as_ref().unwrap().margin_add.unwrap().value(), 4.0);
    assert_eq!(layer.lgm_loss_param.as_ref().unwrap().sigma_floor(), 0.01);
}

#[test]
fn every_refusal_names_its_place_and_what_to_try() {
    let cases = [
        (
            "layer {\n  convolution_param { kernal_size: 3 }\n}",
            "2:23: unknown field 'kernal_size' in ConvolutionParameter; did you mean 'kernel_size'?",
        ),
        ("layr { }", "1:1: unknown field 'layr' in NetParameter; did you mean 'layer'?"),
        (
            "layer { name: 'a' }\nlayer {\n name: 'b'\n\nlayer { }\nlayer { }\nlayer {\n bogus: 1 }\n",
            "5:1: the layer that begins at line 2 is not closed before the next; '}' is missing",
        ),
        (
            "layer { relu_param {\n}\nlayer { convolution_param { num_outputs: 1\nlayer { } }\n}\nlayer { }",
            "3:1: the layer that begins at line 1 is not closed before the next; '}' is missing",
        ),
        (
            "layers { bottom: 'a'\n }\n layers { tops: 'b'\n layers { }",
            "3:11: unknown field 'tops' in V1LayerParameter; did you mean 'top'?\n\
             net.prototxt:4:2: the layer that begins at line 3 is not closed before the next; '}' is missing",
        ),
        (
            "layers { name: 'd' type: \"HDF5Data\" }",
            "1:26: the type \"HDF5Data\" is one of today's, which the older 'layers' does not take (its types are names \
             without quotes, as in type: CONVOLUTION); write 'layer' in its place",
        ),
        (
            "layer { blobs { shape { dims: 1 extent: 2 } } }",
            "1:25: unknown field 'dims' in BlobShape; did you mean 'dim'?\n\
             net.prototxt:1:33: unknown field 'extent' in BlobShape; expected one of dim",
        ),
        (
            "state { stages: 'a'\n who: 1 } layer { pooling_param { pool: AVG } whose_param { name: 3 } }",
            "1:9: unknown field 'stages' in NetState; did you mean 'stage'?\n\
             net.prototxt:2:2: unknown field 'who' in NetState; expected one of phase, level, stage\n\
             net.prototxt:2:41: unknown value 'AVG' for pool; did you mean 'AVE'?\n\
             net.prototxt:2:47: unknown field 'whose_param' in LayerParameter",
        ),
        (
            "layer { transform_param { scale_ration: [1, 0.875] mirroring: [] } }",
            "1:27: unknown field 'scale_ration' in TransformationParameter; expected one of scale, mirror, crop_size, \
             mean_file, mean_value, force_color, force_gray, \
             resize_param, noise_param, emit_constraint, crop_h, crop_w, distort_param, expand_param",
        ),
        ("layer { bogus_param { } }", "1:9: unknown field 'bogus_param' in LayerParameter"),
        ("layer { relo_param { } }", "1:9: unknown field 'relo_param' in LayerParameter; did you mean 'relu_param'?"),
        ("state { who: 1 }", "1:9: unknown field 'who' in NetState; expected one of phase, level, stage"),
        ("layer { pooling_param { pool: AVG } }", "1:31: unknown value 'AVG' for pool; did you mean 'AVE'?"),
        (
            "layer { pooling_param { pool: mean } }",
            "1:31: unknown value 'mean' for pool; expected one of MAX, AVE, STOCHASTIC, AVE_EXC_PAD",
        ),
        (
            "layer {\n pooling_param { pool: 77 } }",
            "2:18: unknown value '77' for pool; expected one of MAX, AVE, STOCHASTIC, AVE_EXC_PAD",
        ),
        ("name: 'a'\nname: 'b'", "2:7: 'name' is given twice, first at line 1; remove one"),
        (
            "layer {\n relu_param { }\n relu_param { } }",
            "3:13: 'relu_param' is given twice, first at line 2; remove one",
        ),
        ("layer { clip_param { min: 1 } }", "1:9: clip_param needs a field 'max', which is missing"),
        (
            "layer { name: 'a' } layer { clip_param { max: 1 } }",
            "1:29: clip_param needs a field 'min', which is missing",
        ),
        (
            "layer {\n  name: 'a'\n",
            "2:12: expected '}' or a field name, but reached end of input; \
             the bracket opened at line 1, column 7 is not closed",
        ),
        (
            "layer { bottom: ['a' ",
            "1:21: expected ',' or ']', but reached end of input; \
             the bracket opened at line 1, column 17 is not closed",
        ),
        (
            "layer { inner_product_param { num_output: \"10\" } }",
            "1:43: num_output: expected an integer, but found '\"10\"'",
        ),
        (
            "layer { inner_product_param { num_output: -1 } }",
            "1:43: num_output: expected value to be an unsigned 32-bit integer, but the value -1 is out of range; \
             the value must be between 0 and 4294967295 inclusive",
        ),
        ("debug_info: yes", "1:13: debug_info: expected 'true' or 'false', but found 'yes'"),
        ("debug_info: 2", "1:13: debug_info: expected 0 or 1, but found '2'"),
        ("name: net", "1:7: name: expected a string, but found 'net'"),
        ("name 'net'", "1:6: name: expected ':' or a message value, but found '\"net\"'"),
        ("layer: 3", "1:8: layer: expected '{' or '<', but found '3'"),
        ("name: 'a'}", "1:10: expected a field name, but found '}'"),
        ("é: 1", "1:1: expected a field name or a value, but found the character 'é'"),
        ("name: 'é\nb'", "1:9: expected the closing quote of a string before the end of the line"),
        ("name: '\\q'", "1:8: invalid string escape"),
        (
            "input_dim: 10name: 'a'",
            "1:12: input_dim: whitespace is required between an integer literal and an identifier",
        ),
        ("layer { loss_weight: 1.5name: 'a' }", "1:22: expected a space between a number and the name that follows it"),
        (
            "layer { loss_weight: 01.5 }",
            "1:22: a number that starts with 0 is octal and must be an integer; remove the leading zero",
        ),
        ("input_dim: 08", "1:13: expected a field name, but found '8'"),
        ("layer { loss_weight: 010 }", "1:22: loss_weight: expected a number, but found '10'"),
        ("input_dim [1, 2]", "1:11: expected ':' or a message value, but found '['"),
        ("input_dim []", "1:11: expected ':' or a message value, but found '['"),
        ("layer { relu_param [{}] }", "1:20: expected '{' or '<', but found '['"),
        ("layer { relu_param: [{}] }", "1:21: expected '{' or '<', but found '['"),
        ("layer[{}] layer [{} {}]", "1:21: layer: expected ',' or ']', but found '{'"),
        ("layer[{ blobs[{ dta: 1 }] }, {}] layer[{}]", "1:17: unknown field 'dta' in BlobProto; did you mean 'data'?"),
        ("layer[{}]layer[{ name: 3 }]", "1:24: name: expected a string, but found '3'"),
        ("[some.extension]: 1", "1:1: extension 'some.extension' not found for message 'caffe.NetParameter'"),
    ];
    for (text, expected) in cases {
        match net(text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(found) => assert_eq!(found, format!("net.prototxt:{expected}"), "{text}"),
        }
    }
}

#[test]
fn columns_count_characters() {
    let error = net("name: 'é' nane: 'b'").unwrap_err();
    assert!(error.starts_with("net.prototxt:1:11: unknown field 'nane'"), "{error}");
}

#[test]
fn fields_can_be_found_in_the_text() {
    let text = "name: 'n'\nlayer { name: 'a' }\nlayer {\n  convolution_param {\n    kernel_size: 3 kernel_size: 5\n    \
        pad: [1,\n      2]\n  }\n}\n";
    let positions = net(text).unwrap().positions;
    let place = |path: &str| positions.get(path).map(|at| at.to_string());
    assert_eq!(place("name").as_deref(), Some("net.prototxt:1:1"));
    assert_eq!(place("layer[1]").as_deref(), Some("net.prototxt:3:1"));
    assert_eq!(place("layer[1].convolution_param.kernel_size[0]").as_deref(), Some("net.prototxt:5:5"));
    assert_eq!(place("layer[1].convolution_param.kernel_size[1]").as_deref(), Some("net.prototxt:5:20"));
    assert_eq!(place("layer[1].convolution_param.pad[1]").as_deref(), Some("net.prototxt:7:7"));
    assert_eq!(place("layer[0].convolution_param"), None);
    assert_eq!(positions.layer(1), positions.get("layer[1]"));
    assert_eq!(positions.layer(2), None);
    assert_eq!(positions.nearest("layer[0].convolution_param.pad").unwrap().line, 2);
    assert_eq!(positions.nearest("state.phase"), None);
}

#[test]
fn nets_inside_a_solver_keep_their_positions() {
    let text = "base_lr: 0.1\nnet_param {\n  layer { name: 'a' }\n  layer { name: 'b' }\n}\n\
        test_net_param { layer { } }\ntest_net_param {\n layer { name: 'c' } }";
    let solver: Parsed<SolverParameter> = parse(text.as_bytes(), Path::new("s.prototxt")).unwrap();
    let net = solver.positions.within("net_param");
    assert_eq!(net.layer(1).unwrap().to_string(), "s.prototxt:4:3");
    assert_eq!(net.get("layer[1].name").unwrap().to_string(), "s.prototxt:4:11");
    assert_eq!(solver.positions.within("test_net_param[1]").layer(0).unwrap().line, 8);
    assert_eq!(solver.positions.within("train_net_param").layer(0), None);
}

#[test]
fn numbers_that_make_no_sense_are_refused_where_they_stand() {
    let solver = |text: &str| {
        let parsed = lgm_proto::parse_solver(text.as_bytes(), Path::new("s.prototxt")).unwrap();
        lgm_proto::check_numbers(&parsed.message, &parsed.positions).map_err(|error| error.to_string())
    };
    let layer = |fields: &str| {
        let text = format!("layer {{\n{fields}\n}}");
        lgm_proto::parse_net(text.as_bytes(), Path::new("n.prototxt")).map(drop).map_err(|error| error.to_string())
    };
    for (text, what) in [
        ("base_lr: nan", "base_lr must be a finite number, found nan"),
        ("base_lr: 1e60", "base_lr must be a finite number, found inf"),
        ("base_lr: -0.1", "base_lr must not be negative, found -0.1"),
        ("momentum: 1", "momentum must be at least 0 and below 1, found 1"),
        ("momentum: -0.5", "momentum must be at least 0 and below 1, found -0.5"),
        ("momentum2: 1.5", "momentum2 must be"),
        ("rms_decay: 1", "rms_decay must be"),
        ("weight_decay: -1", "weight_decay must not be negative"),
        ("weight_decay: inf", "weight_decay must be a finite"),
        ("gamma: nan", "gamma must be"),
        ("power: -inf", "power must be"),
        ("delta: -1e-8", "delta must not be negative, found -1e-08"),
        ("stepsize: -3", "stepsize must not be negative, found -3"),
        ("stepvalue: 5 stepvalue: -1", "stepvalue must not be negative, found -1"),
        ("clip_gradients: nan", "clip_gradients must be"),
        ("net_param { layer { batch_norm_param { eps: -1 } } }", "eps must not be negative, found -1"),
    ] {
        let column = if text.starts_with("stepvalue") {
            14
        } else if text.starts_with("net") {
            40
        } else {
            1
        };
        let error = solver(&format!("# rates\n{text}")).unwrap_err();
        assert!(error.starts_with(&format!("s.prototxt:2:{column}: {what}")), "{error}");
    }
    for (text, what) in [
        ("batch_norm_param { eps: -1e-5 }", "eps must not be negative"),
        ("batch_norm_param { moving_average_fraction: 1.5 }", "moving_average_fraction must be from 0 to 1, found 1.5"),
        ("dropout_param { dropout_ratio: 1 }", "dropout_ratio must be at least 0 and below 1, found 1"),
        ("dropout_param { dropout_ratio: -0.1 }", "dropout_ratio must be"),
        ("param { lr_mult: nan }", "lr_mult must be a finite number"),
        ("param { decay_mult: -1 }", "decay_mult must not be negative"),
        ("loss_weight: inf", "loss_weight must be a finite number, found inf"),
        ("convolution_param { weight_filler { std: nan } }", "std must be"),
        ("lgm_loss_param { margin_mul { value: nan } }", "value must be"),
        ("lgm_loss_param { center_coef: -1 }", "center_coef must not be negative"),
    ] {
        let error = layer(text).unwrap_err();
        let place = text.find(what.split(' ').next().unwrap()).unwrap() + 1;
        assert!(error.starts_with(&format!("n.prototxt:2:{place}: {what}")), "{error}");
    }
    solver("base_lr: 0 momentum: 0 delta: 0 clip_gradients: -1 power: -1 gamma: 2").unwrap();
    layer("clip_param { min: -inf max: inf } lgm_loss_param { margin_add { max: inf } } param { lr_mult: -1 }")
        .unwrap();
}
