//! A net ready to run: graph, memory and the passes over them.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use lgm_core::filler::fill;
use lgm_core::rng::{Philox, stream_id};
use lgm_core::{BlobSpec, BuildCx, DType, Error, Host, Node, Phase, Registry, Result, State, Step, with_float};
use lgm_cpu::with_scratch;
use lgm_proto::{NetParameter, NetState, Positions};
use tracing::info;

use crate::bind::{Bound, host_call};
use crate::device::{OnDevice, Placement};
use crate::graph::{Graph, check_sizes};
use crate::plan::{Keep, Role, plan};
use crate::values::Numbers;
use crate::{backward, filter, fuse};

/// What a net is built for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Phase, level and stages, which choose layers.
    pub state: NetState,
    /// Whether backward will run; without it no memory is given to gradients.
    pub backward: bool,
    /// Element type of every blob.
    pub dtype: DType,
    /// Seed of every random choice.
    pub seed: u64,
    /// Blobs that stay readable after a pass.
    pub keep: Keep,
    /// Whether layers may be computed together where nobody can see it.
    pub fuse: bool,
    /// Whether a net on the host fills memory with NaN as soon as nothing is to read it, so that a use of it shows: for
    /// tests.
    pub poison: bool,
    /// The device to run on; the host if none.
    pub device: Option<Placement>,
}

impl Options {
    /// Single precision, outputs kept only; backward in the TRAIN phase; fusion unless the environment says
    /// `LGM_FUSE=0`.
    pub fn new(phase: Phase, seed: u64) -> Self {
        let state = NetState { phase: Some(phase as i32), ..Default::default() };
        Options {
            state,
            backward: phase == Phase::Train,
            dtype: DType::F32,
            seed,
            keep: Keep::Outputs,
            fuse: std::env::var_os("LGM_FUSE").is_none_or(|v| v != "0"),
            poison: false,
            device: None,
        }
    }
}

/// The layers of a net that `options` choose, planned, fused and marked for backward.
///
/// # Errors
/// As [`Net::new`], but for the lack of memory.
pub(crate) fn build_graph(
    param: &NetParameter,
    positions: &Positions,
    registry: &Registry,
    options: &Options,
) -> Result<Graph> {
    let phase = options.state.phase();
    let layers = filter::filter(param, positions, &options.state)?;
    let filtered = NetParameter {
        state: Some(options.state.clone()),
        layer: layers.iter().map(|(l, _)| l.clone()).collect(),
        ..param.clone()
    };
    info!("Initializing net from parameters: \n{}", lgm_proto::to_text(&filtered));
    let layers = filter::insert_splits(layers)?;
    let cx = BuildCx { phase, dtype: options.dtype, seed: options.seed };
    let mut graph = Graph::build(layers, registry, cx)?;
    if options.fuse && options.keep != Keep::Apart && !param.debug_info() {
        fuse::fuse(&mut graph, cx, &options.keep, options.device.is_some())?;
    }
    if options.backward {
        backward::mark(&mut graph, param.force_backward())?;
    }
    for layer in &graph.layers {
        check_sizes(&layer.plan, options.dtype).map_err(|e| layer.blame(e))?;
    }
    Ok(graph)
}

/// A seed for runs that name none.
pub fn fresh_seed() -> u64 {
    // The standard library keys each RandomState from the system's entropy.
    RandomState::new().build_hasher().finish()
}

/// A net in the memory of the host or of a device.
pub struct Net {
    name: String,
    debug_info: bool,
    poison: bool,
    pub(crate) graph: Graph,
    /// All memory of a net on the host; of one on a device, what its layers on the host see.
    pub(crate) bound: Bound<Host>,
    pub(crate) device: Option<OnDevice>,
}

impl Net {
    /// Builds a net: filters layers by `options.state` (merged over the prototxt's own `state`), inserts splits, plans
    /// shapes and memory, fills parameters. `positions` says where each of `param`'s layers stands, for errors.
    ///
    /// # Errors
    /// Whatever is wrong with the prototxt or the data it names, with the layer and its place.
    pub fn new(param: &NetParameter, positions: &Positions, registry: &Registry, options: &Options) -> Result<Net> {
        Net::build(param, positions, registry, options, None)
    }

    /// As [`Net::new`], on a device with the parameters of another net there.
    pub(crate) fn build(
        param: &NetParameter,
        positions: &Positions,
        registry: &Registry,
        options: &Options,
        with: Option<&Net>,
    ) -> Result<Net> {
        let mut graph = build_graph(param, positions, registry, options)?;
        let (bound, device) = match &options.device {
            None => {
                let here = vec![Role::Here; graph.layers.len()];
                let memory = plan(&graph, &options.keep, &here, crate::memory::ALIGN);
                (Bound::host(&graph, memory, options.backward, &|_| true, &|_| true)?, None)
            }
            Some(placement) => {
                let shared = with.map(|net| net.shared_with(&graph)).transpose()?.flatten();
                OnDevice::lay_out(&mut graph, options, placement, shared).map(|(m, d)| (m, Some(d)))?
            }
        };
        let name = param.name().to_string();
        let (debug_info, poison) = (param.debug_info(), options.poison && device.is_none());
        let mut net = Net { name, debug_info, poison, graph, bound, device };
        if poison {
            net.bound.poison_all();
        }
        net.fill(options.seed)?;
        for value in net.graph.outputs() {
            info!("This network produces output {}", net.graph.values[value].name);
        }
        info!("Network initialization done.");
        Ok(net)
    }

    fn fill(&mut self, seed: u64) -> Result<()> {
        for learnable in 0..self.graph.learnables.len() {
            let p = self.graph.learnables[learnable].owner;
            let (param, filler) = (&self.graph.params[p], self.graph.learnables[learnable].filler.clone());
            let (layer, shape) = (param.layer, param.spec.shape.clone());
            let stream = stream_id(&self.graph.layers[layer].key, &format!("fill {}", param.index));
            let mut rng = Philox::new(seed, stream).from(0);
            let filled = self.fill_param(p, &mut |values| match values {
                Numbers::F32(out) => fill(&filler, &shape, &mut rng, out),
                Numbers::F64(out) => fill(&filler, &shape, &mut rng, out),
            });
            filled.map_err(|e| self.graph.layers[layer].blame(e))?;
        }
        Ok(())
    }

    /// The net's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Layers in order, splits included: name and type.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.graph.layers.iter().map(|l| (l.name(), l.kind()))
    }

    /// Runs every layer forward and returns the loss. On a device this waits for it; [`Net::pass`] does not.
    ///
    /// # Errors
    /// What a layer or its data refuses, with the layer's name.
    pub fn forward(&mut self, step: &Step) -> Result<f64> {
        if self.device.is_some() {
            return self.forward_on_device(step);
        }
        let mut loss = 0.0;
        for i in 0..self.graph.layers.len() {
            loss += self.forward_layer(i, step)?;
            self.poison_released(i);
        }
        Ok(loss)
    }

    /// Runs every layer that needs it backward, last to first, adding to the parameters' gradients.
    ///
    /// # Errors
    /// What a layer refuses, with the layer's name.
    pub fn backward(&mut self, step: &Step) -> Result<()> {
        let layers = self.graph.layers.len();
        for i in (0..layers).rev() {
            self.backward_layer(i, step)?;
            self.poison_released(2 * layers - 1 - i);
        }
        if self.debug_info { self.log_params() } else { Ok(()) }
    }

    fn poison_released(&mut self, time: usize) {
        if self.poison {
            self.bound.poison_released(time);
        }
    }

    /// Runs layer `i` forward and returns its part of the loss; on a device, which adds the loss up by itself, 0.
    ///
    /// # Errors
    /// See [`Net::forward`].
    pub fn forward_layer(&mut self, i: usize, step: &Step) -> Result<f64> {
        if self.device.is_some() {
            return self.forward_layer_on_device(i, step).map(|()| 0.0);
        }
        let Graph { layers, values, .. } = &mut self.graph;
        let layer = &mut layers[i];
        let outside = match &mut layer.node {
            Node::Source(source) => Some(source.load(step, &mut self.bound.tops(values, &layer.tops))),
            Node::Sink(sink) => Some(sink.store(&self.bound.bottoms(values, &layer.bottoms))),
            Node::Compute(_) => None,
        };
        if let Some(result) = outside {
            result.map_err(|e| layer.blame(e))?;
        }
        let layer = &self.graph.layers[i];
        if let Some(compute) = layer.compute() {
            let io = self.bound.forward(&self.graph, i, host_call(&self.graph, i, step));
            with_scratch(|| compute.forward(io)).map_err(|e| layer.blame(e))?;
        }
        let mut loss = 0.0;
        for &top in &layer.tops {
            let weight = self.graph.values[top].loss_weight as f64;
            if weight != 0.0 {
                loss += weight * self.bound.value(&self.graph, top).to_f64().iter().sum::<f64>();
            }
        }
        if self.debug_info {
            self.log_forward(i)?;
        }
        Ok(loss)
    }

    /// Runs layer `i` backward, if it has one to run; says whether it did.
    ///
    /// # Errors
    /// See [`Net::backward`].
    pub fn backward_layer(&mut self, i: usize, step: &Step) -> Result<bool> {
        if !self.graph.layers[i].backward {
            return Ok(false);
        }
        if self.device.is_some() {
            return self.backward_layer_on_device(i, step).map(|()| true);
        }
        for &top in &self.graph.layers[i].tops {
            let weight = self.graph.values[top].loss_weight;
            let written = self.graph.diff_written(top);
            if written && weight == 0.0 {
                continue;
            }
            if let Some(mut diff) = self.bound.diff_mut(&self.graph, top) {
                with_float!(diff.dtype(), T => for d in diff.slice_mut::<T>()? {
                    *d = weight as T + if written { *d } else { 0.0 };
                });
            }
        }
        let layer = &self.graph.layers[i];
        if let Some(compute) = layer.compute() {
            let io = self.bound.backward(&self.graph, i, host_call(&self.graph, i, step));
            with_scratch(|| compute.backward(io)).map_err(|e| layer.blame(e))?;
        }
        if self.debug_info {
            self.log_backward(i)?;
        }
        Ok(true)
    }

    /// Lets every layer's schedules advance; call once before each training iteration. What layers have to say of it is
    /// logged.
    pub fn begin_iteration(&mut self, iter: u64) {
        for layer in &mut self.graph.layers {
            if let Node::Compute(compute) = &mut layer.node {
                compute.begin_iteration(iter).into_iter().for_each(|line| info!("{line}"));
            }
        }
    }

    /// Sets every parameter's gradient to zero.
    pub fn clear_param_diffs(&mut self) -> Result<()> {
        if let Some(device) = &self.device {
            return device.clear_param_diffs();
        }
        for l in 0..self.graph.learnables.len() {
            let p = self.graph.learnables[l].owner;
            if let (_, Some(mut diff)) = self.bound.param_mut(&self.graph, p) {
                with_float!(diff.dtype(), T => diff.slice_mut::<T>()?.fill(0.0));
            }
        }
        Ok(())
    }

    /// Names of the blobs no layer reads, in alphabetical order.
    pub fn outputs(&self) -> Vec<&str> {
        self.graph.outputs().into_iter().map(|v| self.graph.values[v].name.as_str()).collect()
    }

    /// A blob's weight in the loss.
    pub fn loss_weight(&self, blob: &str) -> f32 {
        self.graph.by_name.get(blob).map_or(0.0, |&v| self.graph.values[v].loss_weight)
    }

    /// What the solver updates: one entry for each parameter's memory.
    pub fn learnables(&self) -> impl ExactSizeIterator<Item = LearnableInfo<'_>> {
        self.graph.learnables.iter().map(|l| {
            let param = &self.graph.params[l.owner];
            LearnableInfo {
                layer: self.graph.layers[param.layer].name(),
                index: param.index,
                spec: &param.spec,
                state: param.state,
                lr_mult: l.lr_mult.0,
                decay_mult: l.decay_mult.0,
            }
        })
    }

    /// Values and gradient of learnable parameter `i`.
    ///
    /// # Errors
    /// When the net runs no backward, holds another element type or lives on a device.
    pub fn learnable<T: lgm_core::Float>(&mut self, i: usize) -> Result<(&mut [T], &mut [T])> {
        if self.device.is_some() {
            return Err(Error::internal("parameters on a device are not the host's to change"));
        }
        let owner = self.graph.learnables[i].owner;
        let (data, diff) = self.bound.param_mut(&self.graph, owner);
        let diff = diff.ok_or_else(|| Error::internal("a net without backward has no gradients"))?;
        Ok((data.into_slice()?, diff.into_slice()?))
    }

    /// What a snapshot must keep besides parameters: by layer name, for those with any.
    pub fn state(&self) -> BTreeMap<String, State> {
        let each = |l: &crate::graph::LayerNode| match &l.node {
            Node::Compute(layer) => layer.state(),
            Node::Source(source) => source.state(),
            Node::Sink(_) => State::new(),
        };
        let all = self.graph.layers.iter().map(|l| (&l.key, each(l)));
        all.filter(|(_, state)| !state.is_empty()).map(|(key, state)| (key.clone(), state)).collect()
    }

    /// Takes up a state written by [`Net::state`]; layers it does not mention stay as they are.
    ///
    /// # Errors
    /// When a layer cannot take its part.
    pub fn restore(&mut self, state: &BTreeMap<String, State>) -> Result<()> {
        for layer in &mut self.graph.layers {
            let Some(state) = state.get(&layer.key) else { continue };
            let result = match &mut layer.node {
                Node::Compute(compute) => compute.restore(state),
                Node::Source(source) => source.restore(state),
                Node::Sink(_) => Ok(()),
            };
            result.map_err(|e| layer.blame(e))?;
        }
        Ok(())
    }

    /// Whether the net logs every blob as it is computed (`debug_info`).
    pub fn debug_info(&self) -> bool {
        self.debug_info
    }

    /// Turns the logging of every blob on or off.
    pub fn set_debug_info(&mut self, on: bool) {
        self.debug_info = on;
    }
}

/// What the solver must know of one learnable parameter.
#[derive(Clone, Copy, Debug)]
pub struct LearnableInfo<'a> {
    /// Its layer's name.
    pub layer: &'a str,
    /// Its index within the layer.
    pub index: usize,
    /// Its shape and element type.
    pub spec: &'a BlobSpec,
    /// Whether the layer keeps it by itself (see [`lgm_core::ParamSpec::state`]).
    pub state: bool,
    /// Factor on the solver's learning rate.
    pub lr_mult: f32,
    /// Factor on the solver's weight decay.
    pub decay_mult: f32,
}
