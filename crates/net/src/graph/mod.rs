//! From a list of layers to a graph of values: every layer built and planned, every blob version a value with one
//! producer and at most one consumer, every parameter with its owner.

pub(crate) mod backward;
mod build;
pub(crate) mod filter;
pub(crate) mod known;
mod params;

use std::collections::HashMap;

use lgm_core::{BlobSpec, Compute, Element, Error, Format, Node, Phase, Plan, Position};
use lgm_proto::{BlobProto, LayerParameter};

pub(crate) use build::{check_sizes, keys};

/// Index of a value in [`Graph::values`].
pub type ValueId = usize;

/// One version of a blob: written by one layer, read by at most one.
#[derive(Debug)]
pub struct Value {
    /// The blob's name in the prototxt; in-place layers make a new version of the same name.
    pub name: String,
    /// Shape and element type.
    pub spec: BlobSpec,
    /// How a device stores it and its diff.
    pub format: Format,
    /// The layer that writes it and as which top.
    pub producer: (usize, usize),
    /// The layer that reads it and as which bottom.
    pub consumer: Option<(usize, usize)>,
    /// Its weight in the loss. Where the prototxt gives it, nothing else reads the value; where a layer gives it by default, what
    /// reads the value says its gradient, as in Caffe.
    pub loss_weight: f32,
}

impl Value {
    /// Bytes of the data, and of the diff.
    pub fn bytes(&self) -> usize {
        match self.format.element {
            Element::F32 => self.spec.bytes(),
            Element::Bf16 => self.format.bytes(&self.spec.shape),
        }
    }
}

/// A layer in its place in the graph.
pub struct LayerNode {
    /// Identifies the layer among all of the net; see [`keys`].
    pub key: String,
    /// The prototxt, without weights.
    pub param: LayerParameter,
    /// Where it stands in the prototxt.
    pub at: Option<Position>,
    /// The layer itself.
    pub node: Node,
    /// What it needs.
    pub plan: Plan,
    /// Values read.
    pub bottoms: Vec<ValueId>,
    /// Values written.
    pub tops: Vec<ValueId>,
    /// Its parameters, as indices into [`Graph::params`].
    pub params: Vec<usize>,
    /// The parameters it computes with: its own, and those of the layers it was fused with.
    pub exec_params: Vec<usize>,
    /// The layer that computes this one too.
    pub fused_into: Option<usize>,
    /// No prototxt names it, and no file holds it.
    pub internal: bool,
    /// Whether its backward runs.
    pub backward: bool,
    /// Whether its backward gives the gradient by each bottom.
    pub bottom_backward: Vec<bool>,
}

impl LayerNode {
    /// The layer's name.
    pub fn name(&self) -> &str {
        self.param.name()
    }

    /// The layer's type.
    pub fn kind(&self) -> &str {
        self.param.r#type()
    }

    /// Names this layer in an error.
    pub fn in_layer(&self, error: Error) -> Error {
        error.in_layer(self.name(), self.kind(), self.at.as_ref())
    }

    /// The layer as one that computes, if it does.
    pub fn compute(&self) -> Option<&Compute> {
        match &self.node {
            Node::Compute(layer) if self.fused_into.is_none() => Some(layer),
            _ => None,
        }
    }
}

/// A parameter of one layer.
#[derive(Debug)]
pub struct NetParam {
    /// The layer and which of its parameters this is.
    pub layer: usize,
    /// Index within the layer.
    pub index: usize,
    /// The shape this layer sees it in.
    pub spec: BlobSpec,
    /// The parameter whose memory this one shares.
    pub owner: Option<usize>,
    /// The learnable parameter that holds its memory.
    pub learnable: usize,
    /// Its name in the prototxt, else its index.
    pub display: String,
    /// Whether its gradient is wanted.
    pub backward: bool,
    /// Whether the layer's own forward sets it (see [`lgm_core::ParamSpec::state`]).
    pub state: bool,
    /// Whether it is this net's alone and in no file of weights (see [`lgm_core::ParamSpec::carried`]).
    pub carried: bool,
}

/// The memory behind one or more parameters, as the solver sees it.
#[derive(Debug)]
pub struct Learnable {
    /// The owner in [`Graph::params`].
    pub owner: usize,
    /// Factor on the solver's learning rate, and whether the prototxt gives it.
    pub lr_mult: (f32, bool),
    /// Factor on the solver's weight decay, and whether the prototxt gives it.
    pub decay_mult: (f32, bool),
    /// How it starts.
    pub filler: lgm_proto::FillerParameter,
    /// The values it starts with instead, of the prototxt's `blobs`.
    pub given: Option<BlobProto>,
}

/// A net's layers, values and parameters, before any memory is given.
#[derive(Default)]
pub struct Graph {
    /// Layers in order of execution.
    pub layers: Vec<LayerNode>,
    /// Blob versions in order of creation.
    pub values: Vec<Value>,
    /// Parameters in layer order.
    pub params: Vec<NetParam>,
    /// Memory of parameters, in order of their owners.
    pub learnables: Vec<Learnable>,
    /// Last version of each blob name.
    pub by_name: HashMap<String, ValueId>,
}

impl Graph {
    /// The layer whose blobs, scratch and parameters take the most memory.
    pub fn largest(&self, backward: bool) -> Option<&LayerNode> {
        let bytes = |layer: &&LayerNode| {
            let tops = layer.tops.iter().map(|&v| self.values[v].bytes());
            let own = layer.plan.saved.iter().chain(&layer.plan.scratch).map(BlobSpec::bytes);
            let params = layer.params.iter().map(|&p| self.params[p].spec.bytes());
            let copied = params.map(|bytes| if backward { bytes.saturating_mul(2) } else { bytes });
            tops.chain(own).chain(copied).fold(0, usize::saturating_add)
        };
        self.layers.iter().rev().max_by_key(bytes)
    }

    /// The parameters of a layer that files of weights hold and other nets share: the first ones.
    pub fn shown<'a>(&self, layer: &'a LayerNode) -> &'a [usize] {
        let carried = layer.params.iter().rev().take_while(|&&p| self.params[p].carried).count();
        &layer.params[..layer.params.len() - carried]
    }

    /// Values that no layer reads: the net's outputs, in alphabetical order of their names as Caffe lists them.
    pub fn outputs(&self) -> Vec<ValueId> {
        let mut outputs: Vec<ValueId> =
            self.by_name.values().copied().filter(|&v| self.values[v].consumer.is_none()).collect();
        outputs.sort_by(|&a, &b| self.values[a].name.cmp(&self.values[b].name));
        outputs
    }

    /// Whether a parameter holds statistics that another layer updates too.
    pub fn shares_state(&self, p: usize) -> bool {
        let learnable = self.params[p].learnable;
        self.params[p].state && self.params.iter().filter(|q| q.learnable == learnable).count() > 1
    }

    /// Asserts what every pass over the graph must keep: values and layers name each other, a layer that another computes
    /// has nothing left to do, and every parameter is computed with by one layer.
    pub fn check(&self) {
        let mut computed = vec![0; self.params.len()];
        for (i, layer) in self.layers.iter().enumerate() {
            for (t, &top) in layer.tops.iter().enumerate() {
                assert_eq!(self.values[top].producer, (i, t), "top {t} of {} is another layer's", layer.name());
            }
            for (b, &bottom) in layer.bottoms.iter().enumerate() {
                assert_eq!(self.values[bottom].consumer, Some((i, b)), "bottom {b} of {} is not its own", layer.name());
                assert!(self.values[bottom].producer.0 < i, "{} reads what comes later", layer.name());
            }
            assert_eq!(layer.bottom_backward.len(), layer.bottoms.len(), "{}", layer.name());
            let idle = layer.bottoms.is_empty() && layer.tops.is_empty() && layer.exec_params.is_empty();
            assert!(layer.fused_into.is_none() || idle, "{} is computed twice", layer.name());
            layer.exec_params.iter().for_each(|&p| computed[p] += 1);
        }
        for (param, times) in self.params.iter().zip(computed) {
            let layer = self.layers[param.layer].name();
            assert_eq!(times, 1, "layers that compute with parameter {} of {layer}", param.index);
        }
    }

    /// Whether backward of the value's consumer writes its diff.
    pub fn diff_written(&self, value: ValueId) -> bool {
        self.values[value].consumer.is_some_and(|(l, b)| self.layers[l].backward && self.layers[l].bottom_backward[b])
    }
}

/// The phase named by a net's or layer's prototxt, as text.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Train => "TRAIN",
        Phase::Test => "TEST",
    }
}
