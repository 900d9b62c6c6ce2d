//! From a list of layers to a graph of values: every layer built and planned, every blob version a value with one
//! producer and at most one consumer, every parameter with its owner.

pub(crate) mod backward;
pub(crate) mod filter;

use std::collections::{HashMap, HashSet};

use lgm_core::{
    Arity, BlobSpec, BuildCx, Compute, DType, Element, Error, Format, Node, ParamSpec as PlannedParam, Phase, Plan,
    Position, Registry, Result, ensure,
};
use lgm_proto::LayerParameter;
use lgm_proto::param_spec::DimCheckMode;
use tracing::info;

use filter::Placed;

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
    /// Its weight in the loss.
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
    /// What tells this layer from every other of the net; see [`keys`].
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
    /// Another layer computes this one too.
    pub absorbed: bool,
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
            Node::Compute(layer) if !self.absorbed => Some(layer),
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
    /// Builds and plans every layer.
    ///
    /// # Errors
    /// For whatever a layer refuses, named after the layer and its place in the prototxt.
    pub fn build(layers: Vec<Placed>, registry: &Registry, cx: BuildCx) -> Result<Graph> {
        let mut graph = Graph::default();
        let mut names = HashMap::new();
        let mut data_bytes = 0;
        let keys = keys(layers.iter().map(|(l, _)| (l.name(), l.r#type())));
        for ((param, at), key) in layers.into_iter().zip(keys) {
            let (name, kind) = (param.name().to_string(), param.r#type().to_string());
            let blame = |e: Error| e.in_layer(&name, &kind, at.as_ref());
            let phase = param.phase.map_or(cx.phase, |_| param.phase());
            info!("Creating Layer {name}");
            // Layers name their random draws after themselves, so no two may go by one name.
            let keyed = LayerParameter { name: Some(key.clone()), ..param.clone() };
            let node = registry.build(&keyed, &BuildCx { phase, ..cx }).map_err(blame)?;
            graph.add(key, param, at.clone(), node, cx.dtype, &mut names).map_err(blame)?;
            let Some(layer) = graph.layers.last() else { continue };
            info!("Setting up {name}");
            for &top in &layer.tops {
                let value = &graph.values[top];
                info!("Top shape: {}", value.spec.shape.caffe());
                if value.loss_weight != 0.0 {
                    info!("    with loss weight {}", value.loss_weight);
                }
                data_bytes = value.spec.bytes().saturating_add(data_bytes);
            }
            info!("Memory required for data: {data_bytes}");
        }
        Ok(graph)
    }

    fn add(
        &mut self,
        key: String,
        mut param: LayerParameter,
        at: Option<Position>,
        mut node: Node,
        dtype: DType,
        names: &mut HashMap<String, usize>,
    ) -> Result<()> {
        ensure!(
            param.propagate_down.is_empty() || param.propagate_down.len() == param.bottom.len(),
            "propagate_down must be given never or once a bottom: expected {} values, found {}",
            param.bottom.len(),
            param.propagate_down.len()
        );
        let id = self.layers.len();
        let mut bottoms = Vec::with_capacity(param.bottom.len());
        for (j, blob) in param.bottom.iter().enumerate() {
            let Some(&value) = self.by_name.get(blob).filter(|&&v| self.values[v].consumer.is_none()) else {
                return Err(Error::config(format!("Unknown bottom blob '{blob}' (bottom index {j})")));
            };
            info!("{} <- {blob}", param.name());
            self.values[value].consumer = Some((id, j));
            bottoms.push(value);
        }
        let arity = match &node {
            Node::Compute(layer) => layer.arity(),
            Node::Source(_) => Arity::range(0..=0, 1..=usize::MAX),
            Node::Sink(_) => Arity::range(1..=usize::MAX, 0..=0),
        };
        let tops = check_arity(&arity, bottoms.len(), param.top.len())?;
        let specs: Vec<BlobSpec> = bottoms.iter().map(|&v| self.values[v].spec.clone()).collect();
        if let Some((j, spec)) = specs.iter().enumerate().find(|(_, s)| s.shape.count() == 0) {
            return Err(Error::config(format!("bottom {j} ('{}') is empty: shape {}", param.bottom[j], spec.shape)));
        }
        let plan = match &mut node {
            Node::Compute(layer) => layer.plan(&specs, tops)?,
            Node::Source(source) => {
                let shapes = source.open(tops)?;
                Plan::new(shapes.into_iter().map(|shape| BlobSpec { shape, dtype }).collect())
            }
            Node::Sink(sink) => {
                sink.open(&specs)?;
                Plan::default()
            }
        };
        ensure!(
            plan.tops.len() == tops,
            "{tops} tops are named, but this layer makes {} from what it is given",
            plan.tops.len()
        );
        check_sizes(&plan, dtype)?;
        let weights = loss_weights(&param, &plan)?;
        let mut top_ids = Vec::with_capacity(tops);
        for (j, spec) in plan.tops.iter().enumerate() {
            let blob = param.top.get(j).map_or("(automatic)", String::as_str);
            let in_place = param.bottom.get(j).is_some_and(|b| b == blob);
            ensure!(
                in_place || !self.by_name.contains_key(blob) || j >= param.top.len(),
                "Top blob '{blob}' produced by multiple sources: give this top another name"
            );
            info!("{} -> {blob}{}", param.name(), if in_place { " (in-place)" } else { "" });
            let value = self.values.len();
            self.values.push(Value {
                name: blob.into(),
                spec: spec.clone(),
                format: Format::PLAIN,
                producer: (id, j),
                consumer: None,
                loss_weight: weights[j],
            });
            if j < param.top.len() {
                self.by_name.insert(blob.into(), value);
            }
            top_ids.push(value);
        }
        let params = self.add_params(id, &mut param, &plan.params, dtype, names)?;
        param.blobs.clear();
        let bottom_backward = vec![false; bottoms.len()];
        self.layers.push(LayerNode {
            key,
            param,
            at,
            node,
            plan,
            bottoms,
            tops: top_ids,
            exec_params: params.clone(),
            params,
            absorbed: false,
            internal: false,
            backward: false,
            bottom_backward,
        });
        Ok(())
    }

    fn add_params(
        &mut self,
        layer: usize,
        param: &mut LayerParameter,
        planned: &[PlannedParam],
        dtype: DType,
        names: &mut HashMap<String, usize>,
    ) -> Result<Vec<usize>> {
        ensure!(
            param.param.len() <= planned.len(),
            "too many param entries: the layer has {} parameters, found {} entries",
            planned.len(),
            param.param.len()
        );
        if planned.iter().any(|p| p.state) {
            // As Caffe does, so that saved nets say what holds: the solver leaves these alone.
            param.param.resize_with(planned.len(), Default::default);
        }
        let mut ids = Vec::with_capacity(planned.len());
        for (index, planned) in planned.iter().enumerate() {
            let default = lgm_proto::ParamSpec::default();
            let given = match param.param.get_mut(index) {
                Some(spec) => {
                    if planned.state {
                        ensure!(
                            spec.lr_mult.is_none_or(|m| m == 0.0),
                            "parameter {index} holds statistics that the layer keeps itself: its lr_mult must be 0"
                        );
                        (spec.lr_mult, spec.decay_mult) = (Some(0.0), Some(0.0));
                    }
                    &*spec
                }
                None => &default,
            };
            let (lr_mult, decay_mult) = match planned.fixed {
                true => (Some(0.0), Some(0.0)),
                false => (given.lr_mult, given.decay_mult),
            };
            let spec = BlobSpec { shape: planned.shape.clone(), dtype };
            let name = given.name().to_string();
            let id = self.params.len();
            let owner = names.get(&name).copied().filter(|_| !name.is_empty());
            let learnable = match owner {
                Some(owner) => {
                    info!(
                        "Sharing parameters '{name}' owned by layer '{}', param index {}",
                        self.layers
                            .get(self.params[owner].layer)
                            .map_or(param.r#name.as_deref().unwrap_or_default(), |l| l.name()),
                        self.params[owner].index
                    );
                    let theirs = &self.params[owner].spec;
                    let agree = match given.share_mode() {
                        DimCheckMode::Permissive => theirs.shape.count() == spec.shape.count(),
                        DimCheckMode::Strict => theirs.shape == spec.shape,
                    };
                    if !agree {
                        return Err(Error::Shape {
                            what: format!(
                                "cannot share parameter '{name}' (share_mode: PERMISSIVE compares counts only)"
                            ),
                            expected: theirs.shape.clone(),
                            found: spec.shape,
                        });
                    }
                    let learnable = self.params[owner].learnable;
                    let target = &mut self.learnables[learnable];
                    merge(&mut target.lr_mult, lr_mult, &name, "lr_mult")?;
                    merge(&mut target.decay_mult, decay_mult, &name, "decay_mult")?;
                    learnable
                }
                None => {
                    if !name.is_empty() {
                        names.insert(name.clone(), id);
                    }
                    self.learnables.push(Learnable {
                        owner: id,
                        lr_mult: (lr_mult.unwrap_or(default.lr_mult()), lr_mult.is_some()),
                        decay_mult: (decay_mult.unwrap_or(default.decay_mult()), decay_mult.is_some()),
                        filler: planned.filler.clone(),
                    });
                    self.learnables.len() - 1
                }
            };
            let display = if name.is_empty() { index.to_string() } else { name };
            let backward = lr_mult.unwrap_or(default.lr_mult()) != 0.0;
            let state = planned.state;
            self.params.push(NetParam { layer, index, spec, owner, learnable, display, backward, state });
            ids.push(id);
        }
        Ok(ids)
    }

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
            assert!(!layer.absorbed || idle, "{} is computed twice", layer.name());
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

/// What tells each layer from the others, given their names and types in order: its name, or for a layer without a name
/// or with that of an earlier one, the name, type and number of such layers before it, as in `conv#ReLU0`. The same
/// layers have the same keys in the training net, a test net and a file of weights.
pub fn keys<'a>(layers: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut count: HashMap<(&str, &str), usize> = HashMap::new();
    let each = |(name, kind): (&'a str, &'a str)| {
        let mut key = name.to_string();
        while key.is_empty() || !taken.insert(key.clone()) {
            let n = count.entry((name, kind)).or_default();
            key = format!("{name}#{kind}{n}");
            *n += 1;
        }
        key
    };
    layers.map(each).collect()
}

fn merge(target: &mut (f32, bool), given: Option<f32>, name: &str, field: &str) -> Result<()> {
    if let Some(value) = given {
        ensure!(
            !target.1 || target.0 == value,
            "shared parameter '{name}' has mismatched {field}: {} where it was first named, {value} here",
            target.0
        );
        *target = (value, true);
    }
    Ok(())
}

fn check_arity(arity: &Arity, bottoms: usize, tops: usize) -> Result<usize> {
    let say = |range: &std::ops::RangeInclusive<usize>| match (*range.start(), *range.end()) {
        (a, b) if a == b => format!("exactly {a}"),
        (a, usize::MAX) => format!("at least {a}"),
        (a, b) => format!("{a} to {b}"),
    };
    ensure!(arity.bottoms.contains(&bottoms), "takes {} bottom blob(s), found {bottoms}", say(&arity.bottoms));
    let wanted = if arity.auto_tops { tops.max(*arity.tops.start()) } else { tops };
    ensure!(arity.tops.contains(&wanted), "makes {} top blob(s), found {tops}", say(&arity.tops));
    ensure!(!arity.equal || bottoms == wanted, "makes one top a bottom: expected {bottoms} tops, found {tops}");
    Ok(wanted)
}

/// Fails for a plan with a blob that no memory can hold. A bottom has been a top, so no layer sees a count that is none.
pub fn check_sizes(plan: &Plan, dtype: DType) -> Result<()> {
    let numbered = |what: &'static str, specs: &[BlobSpec]| -> Result<()> {
        specs.iter().enumerate().try_for_each(|(i, spec)| spec.check(&format!("{what} {i}")))
    };
    let params: Vec<BlobSpec> = plan.params.iter().map(|p| BlobSpec { shape: p.shape.clone(), dtype }).collect();
    numbered("top", &plan.tops)?;
    numbered("parameter", &params)?;
    numbered("saved blob", &plan.saved)?;
    numbered("scratch", &plan.scratch)
}

fn loss_weights(param: &LayerParameter, plan: &Plan) -> Result<Vec<f32>> {
    let tops = plan.tops.len();
    if param.loss_weight.is_empty() {
        return Ok((0..tops).map(|j| if plan.losses.contains(&j) { 1.0 } else { 0.0 }).collect());
    }
    ensure!(
        param.loss_weight.len() == tops,
        "loss_weight must be given never or once a top: expected {tops} values, found {}",
        param.loss_weight.len()
    );
    Ok(param.loss_weight.clone())
}

/// The phase named by a net's or layer's prototxt, as text.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Train => "TRAIN",
        Phase::Test => "TEST",
    }
}
