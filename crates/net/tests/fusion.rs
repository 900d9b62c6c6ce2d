//! Fused nets compute what unfused ones do, and fuse only where nobody can see it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{gaussian, gradients, registry, step};
use lgm_core::Phase;
use lgm_net::{Keep, Net, Options};

/// Normalised convolutions: one with blobs in place and a ReLU, one with names of their own and none, and a residual block
/// whose shortcut passes by two.
fn text() -> String {
    let conv = |name: &str, bottom: &str| {
        format!(
            r#"layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"
               convolution_param {{ num_output: 5 kernel_size: 3 pad: 1 bias_term: false weight_filler {{ type: "msra" }} }} }}"#
        )
    };
    let norm = |from: &str, mid: &str, to: &str| {
        format!(
            r#"layer {{ name: "{from}/bn" type: "BatchNorm" bottom: "{from}" top: "{mid}" batch_norm_param {{ eps: 0.1 }} }}
               layer {{ name: "{from}/scale" type: "Scale" bottom: "{mid}" top: "{to}" scale_param {{ bias_term: true }} }}"#
        )
    };
    let parts = [
        gaussian("x", &[6, 3, 7, 5]),
        conv("a", "x"),
        norm("a", "a", "a"),
        r#"layer { name: "a/relu" type: "ReLU" bottom: "a" top: "a" }"#.into(),
        conv("b", "a"),
        norm("b", "b_norm", "b_scaled"),
        conv("c", "b_scaled"),
        norm("c", "c", "c"),
        r#"layer { name: "c/relu" type: "ReLU" bottom: "c" top: "c" }"#.into(),
        conv("d", "c"),
        norm("d", "d", "d"),
        r#"layer { name: "joined" type: "Eltwise" bottom: "b_scaled" bottom: "d" top: "joined" }
           layer { name: "joined/relu" type: "ReLU" bottom: "joined" top: "joined" }"#
            .into(),
        r#"layer { name: "sum" type: "Reduction" bottom: "joined" top: "sum" reduction_param { operation: SUMSQ } }
           layer { name: "product" type: "Power" bottom: "sum" top: "loss" power_param { power: 2 scale: 0.01 } loss_weight: 1 }"#
            .into(),
    ];
    parts.join("\n")
}

fn net(phase: Phase, fuse: bool, keep: Keep) -> Net {
    let parsed = lgm_proto::parse_net(text().as_bytes(), std::path::Path::new("net.prototxt")).unwrap();
    let options = Options { fuse, keep, ..Options::new(phase, 3) };
    Net::new(&parsed.message, &parsed.positions, &registry(), &options).unwrap()
}

fn absorbed(net: &Net) -> Vec<String> {
    let reports = (0..net.layers().len()).map(|i| net.layer_report(i));
    reports.filter(|r| r.absorbed).map(|r| r.name.to_string()).collect()
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
    assert_eq!(absorbed(&fused), ["a/bn", "a/scale", "b/bn", "c/bn", "c/scale", "d/bn", "d/scale", "joined"]);
    assert!(absorbed(&plain).is_empty());
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
    let with_kept = |name: &str| absorbed(&net(Phase::Train, true, keep(name)));
    assert_eq!(with_kept("b_norm"), ["a/bn", "a/scale", "c/bn", "c/scale", "d/bn", "d/scale", "joined"]);
    assert_eq!(with_kept("d"), ["a/bn", "a/scale", "b/bn", "c/bn", "c/scale", "d/bn"]);
    let mut kept = net(Phase::Train, true, keep("b_norm"));
    kept.forward(&step(0)).unwrap();
    let (shape, values) = kept.blob("b_norm").unwrap();
    let mean = values.iter().sum::<f64>() / shape.count() as f64;
    assert!(mean.abs() < 1e-5, "{mean}");
    assert!(net(Phase::Train, true, Keep::Outputs).blob("b_norm").is_none());
}

#[test]
fn the_test_phase_fuses_too() {
    let (mut fused, mut plain) = (net(Phase::Test, true, Keep::Outputs), net(Phase::Test, false, Keep::Outputs));
    assert_eq!(absorbed(&fused).len(), 8);
    let (f, p) = (fused.forward(&step(0)).unwrap(), plain.forward(&step(0)).unwrap());
    assert_near(&[f as f32], &[p as f32]);
}
