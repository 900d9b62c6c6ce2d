//! Nets, devices and comparisons for the tests of this folder.

use std::rc::Rc;

use lgm_core::{Node, Result};
use lgm_cuda::Gpu;
use lgm_net::{Net, Options, Pass, Placement};
use lgm_testkit::HostOnly;

use crate::common::{self, gaussian, step};

pub const PASSES: u64 = 4;

/// A net from text, with [`HostOnly`] among the types known.
pub fn try_net(text: &str, options: &Options) -> Result<Net> {
    let mut registry = common::registry();
    registry.add("HostOnly", |_, _| Node::host_only(HostOnly));
    let parsed = lgm_proto::parse_net(text.as_bytes(), std::path::Path::new(common::FILE))?;
    Net::new(&parsed.message, &parsed.positions, &registry, options)
}

/// As [`try_net`], with the parameters of another net.
pub fn sharing(train: &Net, text: &str, options: &Options) -> Result<Net> {
    let parsed = lgm_proto::parse_net(text.as_bytes(), std::path::Path::new(common::FILE))?;
    train.sharing(&parsed.message, &parsed.positions, &common::registry(), options)
}

pub fn on(gpu: &Rc<dyn Gpu>, options: Options) -> Options {
    Options { device: Some(Placement { gpu: gpu.clone(), histories: 1 }), ..options }
}

pub fn labels(rows: usize) -> String {
    format!("layer {{ name: 'label' type: 'Input' top: 'label' input_param {{ shape {{ dim: {rows} }} }} }} ")
}

pub fn conv(name: &str, bottom: &str, outputs: usize, more: &str) -> String {
    format!(
        "layer {{ name: '{name}' type: 'Convolution' bottom: '{bottom}' top: '{name}' convolution_param {{ \
         num_output: {outputs} kernel_size: 3 pad: 1 weight_filler {{ type: 'msra' }} {more} }} }} "
    )
}

pub fn product(name: &str, bottom: &str, outputs: usize, more: &str) -> String {
    format!(
        "layer {{ name: '{name}' type: 'InnerProduct' bottom: '{bottom}' top: '{name}' {more} inner_product_param {{ \
         num_output: {outputs} weight_filler {{ type: 'xavier' }} }} }} "
    )
}

pub fn layer(name: &str, kind: &str, bottoms: &[&str], tops: &[&str], more: &str) -> String {
    let list = |what: &str, blobs: &[&str]| blobs.iter().map(|b| format!("{what}: '{b}' ")).collect::<String>();
    format!("layer {{ name: '{name}' type: '{kind}' {}{}{more} }} ", list("bottom", bottoms), list("top", tops))
}

/// Nets of every shape that matters here: LeNet's, normalisation in place, classes by distance, indices, blobs read
/// twice, layers that rectify what they make, and parameters and layers shared.
pub fn nets() -> Vec<(&'static str, String)> {
    let pool = "pooling_param { pool: MAX kernel_size: 2 stride: 2 }";
    let lenet = gaussian("x", &[3, 1, 8, 8])
        + &labels(3)
        + &conv("c1", "x", 4, "")
        + &layer("p1", "Pooling", &["c1"], &["p1"], pool)
        + &conv("c2", "p1", 5, "stride: 2")
        + &product("ip1", "c2", 7, "")
        + &layer("relu", "ReLU", &["ip1"], &["ip1"], "")
        + &layer("drop", "Dropout", &["ip1"], &["ip1"], "")
        + &product("ip2", "ip1", 4, "")
        + &layer("acc", "Accuracy", &["ip2", "label"], &["acc"], "")
        + &layer("loss", "SoftmaxWithLoss", &["ip2", "label"], &["loss"], "loss_weight: 0.5");
    let norm = gaussian("x", &[4, 2, 5, 5])
        + &conv("c", "x", 6, "bias_term: false")
        + &layer("bn", "BatchNorm", &["c"], &["c"], "")
        + &layer("scale", "Scale", &["c"], &["c"], "scale_param { bias_term: true }")
        + &layer("relu", "ReLU", &["c"], &["c"], "")
        + &conv("d", "c", 6, "")
        + &layer("sum", "Eltwise", &["c", "d"], &["sum"], "")
        + &layer(
            "mean",
            "Reduction",
            &["sum"],
            &["loss"],
            "reduction_param { operation: SUMSQ coeff: 0.01 } loss_weight: 2",
        );
    let distance = gaussian("x", &[5, 6])
        + &labels(5)
        + &product("ip", "x", 4, "")
        + &layer(
            "dist",
            "ClassDistance",
            &["ip", "label"],
            &["logits"],
            "class_distance_param { num_output: 3 weight_filler { type: 'gaussian' } bias_filler { value: 1 } center_coef: 0.1 margin_mul { policy: ADDUP value: 0.1 gamma: 0.1 step: 1 } }",
        )
        + &layer("loss", "SoftmaxWithLoss", &["logits", "label"], &["loss"], "");
    let shared = gaussian("x", &[3, 4])
        + &gaussian("y", &[3, 4])
        + &product("one", "x", 4, "param { name: 'w' } param { name: 'b' }")
        + &product("two", "y", 4, "param { name: 'w' } param { name: 'b' }")
        + &layer("cat", "Concat", &["one", "two"], &["cat"], "concat_param { axis: 0 }")
        + &layer("flat", "Flatten", &["cat"], &["flat"], "")
        + &layer("cut", "Slice", &["flat"], &["low", "high"], "slice_param { axis: 0 }")
        + &layer("loss", "EuclideanLoss", &["low", "high"], &["loss"], "");
    let between = gaussian("x", &[3, 4])
        + &product("ip", "x", 4, "")
        + &layer("in place", "HostOnly", &["ip"], &["ip"], "")
        + &layer("relu", "ReLU", &["ip"], &["ip"], "")
        + &layer("apart", "HostOnly", &["ip"], &["y"], "")
        + &layer("sum", "Eltwise", &["ip", "y"], &["sum"], "")
        + &layer("last", "HostOnly", &["sum"], &["sum"], "")
        + &layer("loss", "Reduction", &["sum"], &["loss"], "reduction_param { operation: SUMSQ } loss_weight: 0.1");
    let volume = "convolution_param { num_output: 3 kernel_size: 2 pad: 1 weight_filler { type: 'msra' } }";
    let rectified = gaussian("x", &[3, 8, 6, 6])
        + &conv("c", "x", 8, "group: 8")
        + &layer("cr", "ReLU", &["c"], &["c"], "")
        + &conv("d", "c", 16, "bias_term: false")
        + &layer("dr", "ReLU", &["d"], &["dr"], "")
        + &conv("e", "dr", 8, "bias_filler { type: 'gaussian' }")
        + &layer("sum", "Eltwise", &["e", "c"], &["sum"], "eltwise_param { coeff: [1, -1] }")
        + &layer("sr", "ReLU", &["sum"], &["sum"], "")
        + &layer("cube", "Reshape", &["sum"], &["cube"], "reshape_param { shape { dim: 3 dim: 8 dim: 4 dim: 3 dim: 3 } }")
        + &layer("v", "Convolution", &["cube"], &["v"], volume)
        + &layer("vr", "ReLU", &["v"], &["v"], "")
        + &layer("more", "Reshape", &["v"], &["more"], "reshape_param { shape { dim: 3 dim: 3 dim: 5 dim: 4 dim: 2 dim: 2 } }")
        // More axes than a device has kernels for.
        + &layer("w", "Convolution", &["more"], &["w"], volume)
        + &layer("wr", "ReLU", &["w"], &["w"], "")
        + &product("ip", "w", 4, "")
        + &layer("ipr", "ReLU", &["ip"], &["ipr"], "")
        + &layer("loss", "Reduction", &["ipr"], &["loss"], "reduction_param { operation: SUMSQ } loss_weight: 0.1");
    let embed = "embed_param { input_dim: 3 num_output: 9 weight_filler { type: 'gaussian' } }";
    let words = labels(5)
        + &layer("words", "Embed", &["label"], &["words"], embed)
        + &product("ip", "words", 3, "")
        + &layer("loss", "SoftmaxWithLoss", &["ip", "label"], &["loss"], "");
    vec![
        ("rectified", rectified),
        ("between", between),
        ("words", words),
        ("lenet", lenet),
        ("norm", norm),
        ("distance", distance),
        ("shared", shared),
    ]
}

pub struct Found {
    pub losses: Vec<f64>,
    pub blobs: Vec<f64>,
    pub params: Vec<f64>,
    pub gradients: Vec<f64>,
}

impl Found {
    pub fn all(&self) -> [&Vec<f64>; 4] {
        [&self.losses, &self.blobs, &self.params, &self.gradients]
    }
}

/// Several passes, each from zeroed gradients: what can be seen after them.
pub fn run(text: &str, options: &Options) -> Option<Found> {
    let mut net = match try_net(text, options) {
        Ok(net) => net,
        Err(error) => panic!("{error}\n{text}"),
    };
    let rows = net.blob("label").map_or(0, |(shape, _)| shape.count());
    let mut losses = Vec::new();
    for batch in 0..PASSES {
        if rows > 0 {
            let labels: Vec<f64> = (0..rows).map(|i| ((i as u64 + batch) % 3) as f64).collect();
            net.set_blob("label", &labels).unwrap();
        }
        let step = step(batch);
        net.begin_iteration(batch);
        if options.device.is_some() {
            let pass = Pass { clear: true, forward: true, backward: true, ..Default::default() };
            net.pass(pass, &step, None).unwrap();
            losses.push(net.loss().unwrap());
        } else {
            net.clear_param_diffs().unwrap();
            losses.push(net.forward(&step).unwrap());
            net.backward(&step).unwrap();
        }
    }
    let blobs = net.output_values().unwrap().into_iter().flat_map(|(_, values)| values).collect();
    let saved = net.to_proto(true).unwrap();
    let each = |diff: bool| -> Vec<f64> {
        let blobs = saved.layer.iter().flat_map(|l| &l.blobs);
        blobs.flat_map(|b| if diff { b.diff.clone() } else { b.data.clone() }).map(f64::from).collect()
    };
    Some(Found { losses, blobs, params: each(false), gradients: each(true) })
}

pub fn near(name: &str, found: &[f64], want: &[f64]) {
    within(2e-4, name, found, want);
}

pub fn within(tolerance: f64, name: &str, found: &[f64], want: &[f64]) {
    assert_eq!(found.len(), want.len(), "{name}");
    let scale = want.iter().fold(1e-3, |m: f64, w| m.max(w.abs()));
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        assert!((f - w).abs() <= tolerance * scale, "{name} {i}: {f} against {w}, of at most {scale}");
    }
}
