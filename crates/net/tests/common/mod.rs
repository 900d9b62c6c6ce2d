//! What the tests of nets share: building one from text, and running it.

#![allow(dead_code)]

use std::path::Path;

use lgm_core::{Phase, Registry, Result, Step};
use lgm_net::{Keep, Net, Options};
use lgm_proto::NetState;

/// The prototxt's name in errors.
pub const FILE: &str = "net.prototxt";

pub fn registry() -> Registry {
    lgm_testkit::registry(&[lgm_layers::register])
}

pub fn try_net(text: &str, options: &Options) -> Result<Net> {
    let parsed = lgm_proto::parse_net(text.as_bytes(), Path::new(FILE))?;
    Net::new(&parsed.message, &parsed.positions, &registry(), options)
}

/// TRAIN, with every blob readable.
pub fn options() -> Options {
    Options { keep: Keep::All, ..Options::new(Phase::Train, 1) }
}

/// A TRAIN net with every blob readable.
pub fn net(text: &str) -> Net {
    try_net(text, &options()).unwrap()
}

/// The names of the layers of a net in a phase, level and stages.
pub fn names(text: &str, phase: Phase, level: i32, stages: &[&str]) -> Vec<String> {
    let stage = stages.iter().map(|s| s.to_string()).collect();
    let state = NetState { phase: Some(phase as i32), level: Some(level), stage };
    let net = try_net(text, &Options { state, ..Options::new(phase, 1) }).unwrap();
    net.layers().map(|(name, _)| name.to_string()).collect()
}

/// The error that building a TRAIN net gives.
pub fn error(text: &str) -> String {
    match try_net(text, &options()) {
        Ok(_) => panic!("this net was accepted:\n{text}"),
        Err(error) => error.to_string(),
    }
}

pub fn step(batch: u64) -> Step {
    Step { seed: 1, iter: batch, batch }
}

/// One forward and backward pass from zeroed gradients; the loss.
pub fn pass(net: &mut Net, batch: u64) -> f64 {
    net.clear_param_diffs().unwrap();
    let loss = net.forward(&step(batch)).unwrap();
    net.backward(&step(batch)).unwrap();
    loss
}

pub fn data(net: &Net, blob: &str) -> Vec<f64> {
    net.blob(blob).unwrap().1
}

pub fn diff(net: &Net, blob: &str) -> Vec<f64> {
    net.blob_diff(blob).unwrap().unwrap_or_else(|| panic!("no gradient of {blob}"))
}

/// Values and gradient of a learnable parameter.
pub fn learnable(net: &mut Net, i: usize) -> (Vec<f32>, Vec<f32>) {
    let (data, diff) = net.learnable::<f32>(i).unwrap();
    (data.to_vec(), diff.to_vec())
}

/// The gradients of all learnable parameters, one after another.
pub fn gradients(net: &mut Net) -> Vec<f32> {
    let count = net.learnables().len();
    (0..count).flat_map(|i| learnable(net, i).1).collect()
}

/// An Input layer.
pub fn input(top: &str, dims: &[usize]) -> String {
    let dims: String = dims.iter().map(|d| format!("dim: {d} ")).collect();
    format!("layer {{ name: '{top}_in' type: 'Input' top: '{top}' input_param {{ shape {{ {dims}}} }} }}\n")
}

/// A DummyData layer with gaussian values.
pub fn gaussian(top: &str, dims: &[usize]) -> String {
    let dims: String = dims.iter().map(|d| format!("dim: {d} ")).collect();
    format!(
        "layer {{ name: '{top}_in' type: 'DummyData' top: '{top}' dummy_data_param {{ shape {{ {dims}}} \
         data_filler {{ type: 'gaussian' }} }} }}\n"
    )
}

/// An InnerProduct layer with gaussian weights and bias.
pub fn product(name: &str, bottom: &str, top: &str, outputs: usize, more: &str) -> String {
    format!(
        "layer {{ name: '{name}' type: 'InnerProduct' bottom: '{bottom}' top: '{top}' {more} inner_product_param {{ \
         num_output: {outputs} weight_filler {{ type: 'gaussian' std: 0.5 }} \
         bias_filler {{ type: 'gaussian' }} }} }}\n"
    )
}
