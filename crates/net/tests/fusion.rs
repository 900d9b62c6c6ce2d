//! Fused nets compute what unfused ones do, and fuse only where nobody can see it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{gaussian, gradients, registry, step};
use lgm_core::Phase;
use lgm_net::{Keep, Net, Options};

fn convolution(name: &str, bottom: &str) -> String {
    format!(
        r#"layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"
           convolution_param {{ num_output: 5 kernel_size: 3 pad: 1 bias_term: false weight_filler {{ type: "msra" }} }} }}"#
    )
}

fn normalised(from: &str, mid: &str, to: &str) -> String {
    format!(
        r#"layer {{ name: "{from}/bn" type: "BatchNorm" bottom: "{from}" top: "{mid}" batch_norm_param {{ eps: 0.1 }} }}
           layer {{ name: "{from}/scale" type: "Scale" bottom: "{mid}" top: "{to}" scale_param {{ bias_term: true }} }}"#
    )
}

const SUM: &str = r#"layer { name: "sum" type: "Reduction" bottom: "joined" top: "sum" reduction_param { operation: SUMSQ } }
    layer { name: "product" type: "Power" bottom: "sum" top: "loss" power_param { power: 2 scale: 0.01 } loss_weight: 1 }"#;

/// Normalised convolutions: one with blobs in place and a ReLU, one with names of their own and none, and a residual block
/// whose shortcut passes by two.
fn text() -> String {
    let parts = [
        gaussian("x", &[6, 3, 7, 5]),
        convolution("a", "x"),
        normalised("a", "a", "a"),
        r#"layer { name: "a/relu" type: "ReLU" bottom: "a" top: "a" }"#.into(),
        convolution("b", "a"),
        normalised("b", "b_norm", "b_scaled"),
        convolution("c", "b_scaled"),
        normalised("c", "c", "c"),
        r#"layer { name: "c/relu" type: "ReLU" bottom: "c" top: "c" }"#.into(),
        convolution("d", "c"),
        normalised("d", "d", "d"),
        r#"layer { name: "joined" type: "Eltwise" bottom: "b_scaled" bottom: "d" top: "joined" }
           layer { name: "joined/relu" type: "ReLU" bottom: "joined" top: "joined" }"#
            .into(),
        SUM.into(),
    ];
    parts.join("\n")
}

fn net(phase: Phase, fuse: bool, keep: Keep) -> Net {
    net_of(&text(), phase, fuse, keep)
}

fn net_of(text: &str, phase: Phase, fuse: bool, keep: Keep) -> Net {
    let parsed = lgm_proto::parse_net(text.as_bytes(), std::path::Path::new("net.prototxt")).unwrap();
    let options = Options { fuse, keep, ..Options::new(phase, 3) };
    Net::new(&parsed.message, &parsed.positions, &registry(), &options).unwrap()
}

fn fused_layers(net: &Net) -> Vec<String> {
    let reports = (0..net.layers().len()).map(|i| net.layer_report(i));
    reports.filter(|r| r.fused).map(|r| r.name.to_string()).collect()
}

fn assert_near(found: &[f32], want: &[f32]) {
    let scale = want.iter().fold(1e-3f32, |m, w| m.max(w.abs()));
    assert_eq!(found.len(), want.len());
    for (f, w) in found.iter().zip(want) {
        assert!((f - w).abs() <= 2e-4 * scale, "{f} against {w}, of at most {scale}");
    }
}

#[test]
fn fused_and_unfused_agree() {
    let (mut fused, mut plain) = (net(Phase::Train, true, Keep::Outputs), net(Phase::Train, false, Keep::Outputs));
    assert_eq!(fused_layers(&fused), ["a/bn", "a/scale", "b/bn", "c/bn", "c/scale", "d/bn", "d/scale", "joined"]);
    assert!(fused_layers(&plain).is_empty());
    for batch in 0..2 {
        let run = |net: &mut Net| {
            net.clear_param_diffs().unwrap();
            let loss = net.forward(&step(batch)).unwrap();
            net.backward(&step(batch)).unwrap();
            (loss as f32, gradients(net))
        };
        let (f, p) = (run(&mut fused), run(&mut plain));
        assert_near(&[f.0], &[p.0]);
        assert_near(&f.1, &p.1);
    }
    for layer in ["a/bn", "b/bn", "d/bn"] {
        let params = |net: &Net| -> Vec<f32> {
            net.layer_params(layer).unwrap().into_iter().flat_map(|(_, v)| v).map(|x| x as f32).collect()
        };
        assert_near(&params(&fused), &params(&plain));
    }
}

/// A residual block whose shortcut is normalised too: both branches could take the sum, and one does.
#[test]
fn of_two_branches_into_a_sum_one_takes_it() {
    let parts = [
        gaussian("x", &[6, 3, 7, 5]),
        convolution("a", "x"),
        normalised("a", "a", "a"),
        convolution("b", "x"),
        normalised("b", "b", "b"),
        r#"layer { name: "joined" type: "Eltwise" bottom: "a" bottom: "b" top: "joined" }
           layer { name: "joined/relu" type: "ReLU" bottom: "joined" top: "joined" }"#
            .into(),
        SUM.into(),
    ];
    let net = |fuse| net_of(&parts.join("\n"), Phase::Train, fuse, Keep::Outputs);
    let (mut fused, mut plain) = (net(true), net(false));
    assert_eq!(fused_layers(&fused), ["a/bn", "a/scale", "b/bn", "joined"]);
    let run = |net: &mut Net| {
        let loss = net.forward(&step(0)).unwrap();
        net.backward(&step(0)).unwrap();
        (loss as f32, gradients(net))
    };
    let (f, p) = (run(&mut fused), run(&mut plain));
    assert_near(&[f.0], &[p.0]);
    assert_near(&f.1, &p.1);
}

#[test]
fn weights_are_saved_under_the_names_of_the_prototxt() {
    let names = |net: &Net| -> Vec<(String, usize)> {
        net.to_proto(false).unwrap().layer.iter().map(|l| (l.name().to_string(), l.blobs.len())).collect()
    };
    let fused = net(Phase::Train, true, Keep::Outputs);
    assert_eq!(names(&fused), names(&net(Phase::Train, false, Keep::Outputs)));
    assert!(names(&fused).contains(&("a/bn".into(), 3)));
}

#[test]
fn a_kept_blob_between_stays() {
    let keep = |name: &str| Keep::Named(vec![name.into()]);
    let with_kept = |name: &str| fused_layers(&net(Phase::Train, true, keep(name)));
    assert_eq!(with_kept("b_norm"), ["a/bn", "a/scale", "c/bn", "c/scale", "d/bn", "d/scale", "joined"]);
    assert_eq!(with_kept("d"), ["a/bn", "a/scale", "b/bn", "c/bn", "c/scale", "d/bn"]);
    let mut kept = net(Phase::Train, true, keep("b_norm"));
    kept.forward(&step(0)).unwrap();
    let (shape, values) = kept.blob("b_norm").unwrap();
    let mean = values.iter().sum::<f64>() / shape.count() as f64;
    assert!(mean.abs() < 1e-5, "{mean}");
    assert!(net(Phase::Train, true, Keep::Outputs).blob("b_norm").is_err());
}

#[test]
fn the_test_phase_fuses_too() {
    let (mut fused, mut plain) = (net(Phase::Test, true, Keep::Outputs), net(Phase::Test, false, Keep::Outputs));
    assert_eq!(fused_layers(&fused).len(), 8);
    let (f, p) = (fused.forward(&step(0)).unwrap(), plain.forward(&step(0)).unwrap());
    assert_near(&[f as f32], &[p as f32]);
}

/// Layers that can rectify what they make, each with a ReLU behind it, and such as may not or cannot: a blob read twice, a
/// slope, a maximum, a loss.
fn rectifying() -> String {
    let conv = |name: &str, bottom: &str, more: &str| {
        format!(
            r#"layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ num_output: 4
               kernel_size: 3 pad: 1 weight_filler {{ type: "msra" }} bias_filler {{ type: "gaussian" }} {more} }} }}"#
        )
    };
    let relu =
        |from: &str, to: &str| format!(r#"layer {{ name: "{from}/relu" type: "ReLU" bottom: "{from}" top: "{to}" }}"#);
    let parts = [
        gaussian("x", &[3, 4, 6, 5]),
        conv("a", "x", r#"group: 4"#),
        relu("a", "a"),
        conv("b", "a", "bias_term: false"),
        relu("b", "b_rectified"),
        conv("twice", "b_rectified", ""),
        relu("twice", "twice_rectified"),
        conv("leaky", "twice_rectified", ""),
        r#"layer { name: "leaky/relu" type: "ReLU" bottom: "leaky" top: "leaky" relu_param { negative_slope: 0.1 } }"#
            .into(),
        r#"layer { name: "sum" type: "Eltwise" bottom: "leaky" bottom: "twice" bottom: "x" top: "sum"
           eltwise_param { coeff: 1 coeff: -0.5 coeff: 1 } }"#
            .into(),
        relu("sum", "sum"),
        r#"layer { name: "most" type: "Eltwise" bottom: "sum" bottom: "x" top: "most" eltwise_param { operation: MAX } }"#
            .into(),
        relu("most", "most"),
        // The same weights twice: with a ReLU, and without.
        common::product("ip", "most", "ip", 5, "param { name: 'w' } param { name: 'b' }"),
        relu("ip", "ip"),
        common::product("again", "x", "again", 5, "param { name: 'w' } param { name: 'b' }"),
        common::product("seen", "ip", "seen", 5, "").replace("top: 'seen'", "top: 'seen' loss_weight: 0.1"),
        relu("seen", "seen_rectified"),
        r#"layer { name: "loss" type: "EuclideanLoss" bottom: "seen_rectified" bottom: "again" top: "loss" }"#.into(),
    ];
    parts.join("\n")
}

/// The ReLUs of a net that have nothing to do forward.
fn views(net: &Net) -> Vec<String> {
    let reports = (0..net.layers().len()).map(|i| net.layer_report(i));
    reports.filter(|r| r.kind == "ReLU" && r.forward_bytes == 0).map(|r| r.name.to_string()).collect()
}

#[test]
fn a_relu_is_computed_by_the_layer_before_it() {
    for phase in [Phase::Train, Phase::Test] {
        let net = |fuse: bool, keep: Keep| net_of(&rectifying(), phase, fuse, keep);
        let (mut fused, mut plain) = (net(true, Keep::Outputs), net(false, Keep::Outputs));
        assert_eq!(views(&fused), ["a/relu", "b/relu", "sum/relu", "ip/relu"]);
        assert!(views(&plain).is_empty() && fused_layers(&fused).is_empty());
        for batch in 0..2 {
            let run = |net: &mut Net| {
                let loss = net.forward(&step(batch)).unwrap();
                if phase == Phase::Test {
                    return (loss.to_bits(), Vec::new());
                }
                net.clear_param_diffs().unwrap();
                net.backward(&step(batch)).unwrap();
                (loss.to_bits(), gradients(net).iter().map(|g| g.to_bits()).collect())
            };
            let (f, p) = (run(&mut fused), run(&mut plain));
            assert!(f == p, "{phase:?}: not the same bits");
        }
        // A blob in place is the rectified one; of two, the one between is gone, or keeps the ReLU where it is.
        assert!(fused.blob("b").is_err());
        let mut kept = net(true, Keep::Named(vec!["b".into(), "a".into()]));
        assert_eq!(views(&kept), ["a/relu", "sum/relu", "ip/relu"]);
        kept.forward(&step(0)).unwrap();
        let least = |blob: &str| common::data(&kept, blob).into_iter().fold(f64::INFINITY, f64::min);
        assert!(least("a") == 0.0 && least("b") < 0.0, "{} and {}", least("a"), least("b"));
        assert!(fused.arena_bytes() <= plain.arena_bytes());
    }
}

/// What a run computes together has its last layer's name, which may be a ReLU's: nobody else may rectify for it.
#[test]
fn a_run_that_ends_in_a_relu_is_not_taken_for_one() {
    assert!(views(&net(Phase::Train, true, Keep::Outputs)).is_empty());
    let kept = net(Phase::Train, true, Keep::Named(vec!["d".into()]));
    assert_eq!(views(&kept), ["joined/relu"]);
}
