//! A net ready to run: graph, memory and the passes over them.

use std::collections::BTreeMap;

use lgm_core::filler::fill_shared;
use lgm_core::rng::{Philox, stream_id};
use lgm_core::{BlobSpec, BuildCx, Error, Float, Node, Registry, Result, State, Step};
use lgm_cpu::for_each_block;
use lgm_proto::{NetParameter, Positions};
use tracing::info;

use crate::exec::{DeviceExec, DeviceUpdate, Executor, HostExec, NamedValues, Numbers, Op, Pass};
use crate::graph::{self, Graph};
use crate::on_device::OnDevice;
use crate::options::Options;
use crate::passes::fuse;
use crate::passes::memory::Keep;

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
    let kept = graph::filter::filter(param, positions, &options.state)?;
    let layers = graph::filter::placed(param, &kept, positions, registry, phase)?;
    graph::known::check(&layers, &kept, positions, registry)?;
    let filtered = NetParameter {
        state: Some(options.state.clone()),
        layer: layers.iter().map(|(l, _)| l.clone()).collect(),
        ..param.clone()
    };
    info!("Initializing net from parameters: \n{}", lgm_proto::to_text(&filtered));
    let layers = graph::filter::insert_splits(layers)?;
    let cx = BuildCx { phase, dtype: options.dtype, seed: options.seed };
    let mut graph = Graph::build(layers, registry, cx)?;
    if options.fuse && options.keep != Keep::Apart && !param.debug_info() {
        fuse::fuse(&mut graph, registry, cx, &options.keep, options.device.is_some())?;
    }
    if options.backward {
        graph::backward::mark(&mut graph, param.force_backward())?;
    }
    for layer in &graph.layers {
        graph::check_sizes(&layer.plan, options.dtype).map_err(|e| layer.in_layer(e))?;
    }
    Ok(graph)
}

/// A net in the memory of the host or of a device.
pub struct Net {
    name: String,
    debug_info: bool,
    pub(crate) graph: Graph,
    pub(crate) exec: Box<dyn Executor>,
}

impl Net {
    /// Builds a net: filters layers by `options.state`, into which the caller has merged the prototxt's own, inserts splits, plans
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
        let exec: Box<dyn Executor> = match &options.device {
            None => Box::new(HostExec::new(&graph, options)?),
            Some(placement) => {
                let shared = with.map(|net| net.shared_with(&graph)).transpose()?.flatten();
                Box::new(DeviceExec::lay_out(&mut graph, registry, options, placement, shared)?)
            }
        };
        let mut net = Net { name: param.name().to_string(), debug_info: param.debug_info(), graph, exec };
        net.fill(options.seed)?;
        for value in net.graph.outputs() {
            info!("This network produces output {}", net.graph.values[value].name);
        }
        info!("Network initialization done.");
        Ok(net)
    }

    fn fill(&mut self, seed: u64) -> Result<()> {
        let Net { graph, exec, .. } = self;
        for learnable in &graph.learnables {
            let param = &graph.params[learnable.owner];
            let layer = &graph.layers[param.layer];
            let stream = stream_id(&layer.key, &format!("fill {}", param.index));
            let draws = (Philox::new(seed, stream), 0);
            let (filler, shape) = (&learnable.filler, &param.spec.shape);
            let given = learnable.given.as_ref();
            let filled = exec.fill_param(graph, learnable.owner, &mut |values| match (values, given) {
                (Numbers::F32(out), Some(given)) => Ok(given.copy_to_f32(out)?),
                (Numbers::F64(out), Some(given)) => Ok(given.copy_to_f64(out)?),
                (Numbers::F32(out), None) => {
                    fill_shared(filler, shape, draws, out, |out, task| for_each_block(out, task))
                }
                (Numbers::F64(out), None) => {
                    fill_shared(filler, shape, draws, out, |out, task| for_each_block(out, task))
                }
            });
            filled.map_err(|e| layer.in_layer(e))?;
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

    /// What a solver must know of the net if it lives on a device.
    pub fn on_device(&self) -> Option<OnDevice<'_>> {
        self.exec.as_device().map(|exec| OnDevice { exec, layers: self.graph.layers.len() })
    }

    /// Makes a pass. On a device it is queued, with `update` behind it, and not waited for: what kernels find wrong is
    /// reported when something is read.
    ///
    /// # Errors
    /// What a layer or its data refuses, with the layer's name; when an update is given to a net on the host.
    pub fn pass(&mut self, pass: Pass, step: &Step, update: Option<&DeviceUpdate<'_>>) -> Result<()> {
        if self.debug_info {
            return self.pass_logged(pass, step, update);
        }
        self.exec.pass(&mut self.graph, pass, step, update)
    }

    /// A pass step by step, each logged.
    fn pass_logged(&mut self, pass: Pass, step: &Step, update: Option<&DeviceUpdate<'_>>) -> Result<()> {
        self.exec.begin(&mut self.graph, pass, step, update)?;
        for op in pass.ops(self.graph.layers.len()) {
            self.exec.run(&mut self.graph, op, step)?;
            match op {
                Op::Forward(i) => self.log_forward(i)?,
                Op::Backward(i) if self.graph.layers[i].backward => self.log_backward(i)?,
                _ => {}
            }
        }
        if pass.backward {
            self.log_params()?;
        }
        update.map_or(Ok(()), |update| self.exec.update(update))
    }

    /// Runs every layer forward and returns the loss of this pass. On a device this waits for it; [`Net::pass`] does not.
    ///
    /// # Errors
    /// What a layer or its data refuses, with the layer's name.
    pub fn forward(&mut self, step: &Step) -> Result<f64> {
        self.exec.clear_sums()?;
        self.pass(Pass::FORWARD, step, None)?;
        self.loss()
    }

    /// Runs every layer that needs it backward, last to first, adding to the parameters' gradients.
    ///
    /// # Errors
    /// What a layer refuses, with the layer's name.
    pub fn backward(&mut self, step: &Step) -> Result<()> {
        self.pass(Pass::BACKWARD, step, None)
    }

    /// Runs layer `i` forward by itself.
    ///
    /// # Errors
    /// See [`Net::forward`].
    pub fn forward_layer(&mut self, i: usize, step: &Step) -> Result<()> {
        self.exec.forward_layer(&mut self.graph, i, step)
    }

    /// Runs layer `i` backward by itself, if it has a backward to run; says whether it did.
    ///
    /// # Errors
    /// See [`Net::backward`].
    pub fn backward_layer(&mut self, i: usize, step: &Step) -> Result<bool> {
        self.exec.run(&mut self.graph, Op::Backward(i), step)?;
        Ok(self.graph.layers[i].backward)
    }

    /// The loss added up by passes since the last that cleared it. Waits for a device.
    ///
    /// # Errors
    /// What kernels found wrong, with the layer's name; when a device failed.
    pub fn loss(&self) -> Result<f64> {
        let sums = self.exec.sums()?;
        self.check()?;
        Ok(sums.loss)
    }

    /// The loss as [`Net::loss`], and the sums of every output over the passes with [`Pass::accumulate`], by name in the
    /// order of [`Net::outputs`]. Waits for a device.
    ///
    /// # Errors
    /// As for [`Net::loss`].
    pub fn sums(&self) -> Result<(f64, Vec<NamedValues>)> {
        let sums = self.exec.sums()?;
        self.check()?;
        let name = |(v, sum): NamedValues<usize>| (self.graph.values[v].name.clone(), sum);
        Ok((sums.loss, sums.outputs.into_iter().map(name).collect()))
    }

    /// Waits for a device, and reports what its kernels found wrong.
    ///
    /// # Errors
    /// What they found, with the layer's name; when the device failed.
    pub fn check(&self) -> Result<()> {
        self.exec.check(&self.graph)
    }

    /// Waits for a device.
    ///
    /// # Errors
    /// When work on it failed.
    pub fn finish(&self) -> Result<()> {
        self.exec.finish()
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
    ///
    /// # Errors
    /// When a device refuses.
    pub fn clear_param_diffs(&mut self) -> Result<()> {
        self.exec.clear_gradients(&self.graph)
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
                carried: param.carried,
                lr_mult: l.lr_mult.0,
                decay_mult: l.decay_mult.0,
            }
        })
    }

    /// Values and gradient of learnable parameter `i`.
    ///
    /// # Errors
    /// When the net runs no backward, holds another element type or lives on a device.
    pub fn learnable<T: Float>(&mut self, i: usize) -> Result<(&mut [T], &mut [T])> {
        match self.exec.as_host() {
            Some(host) => host.learnable(&self.graph, i),
            None => Err(Error::internal("parameters on a device are not the host's to change")),
        }
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

    /// [`Net::state`] with what layers carry from pass to pass.
    ///
    /// # Errors
    /// When that cannot be read from a device.
    pub fn whole_state(&self) -> Result<BTreeMap<String, State>> {
        let mut state = self.state();
        if self.graph.params.iter().any(|p| p.carried) {
            self.weights(false)?.add_carried(&mut state);
        }
        Ok(state)
    }

    /// Takes up a state written by [`Net::state`] or [`Net::whole_state`]; layers it does not mention stay as they are.
    ///
    /// # Errors
    /// When a layer cannot take its part.
    pub fn restore(&mut self, state: &BTreeMap<String, State>) -> Result<()> {
        self.restore_carried(state)?;
        for layer in &mut self.graph.layers {
            let Some(state) = state.get(&layer.key) else { continue };
            let result = match &mut layer.node {
                Node::Compute(compute) => compute.restore(state),
                Node::Source(source) => source.restore(state),
                Node::Sink(_) => Ok(()),
            };
            result.map_err(|e| layer.in_layer(e))?;
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
    /// Whether no file of weights or histories holds it (see [`lgm_core::ParamSpec::carried`]).
    pub carried: bool,
    /// Factor on the solver's learning rate.
    pub lr_mult: f32,
    /// Factor on the solver's weight decay.
    pub decay_mult: f32,
}
