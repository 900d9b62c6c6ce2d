//! Execution on a device: one arena, one block of parameters and one of their gradients, the block of numbers that change
//! from step to step, and the layers that have to run on the host.

pub(crate) mod convolutions;
mod fallback;
mod feed;
mod fit;
mod layout;
mod recording;
mod shared;
mod varying;

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use lgm_core::{
    Device, DeviceCall, DevicePtr, DeviceQueue, Error, Grid, Host, Result, Step, View, args, kernel, memory,
};
use lgm_cuda::{Block, Feeder, Gpu, Launch, bytes_of, doubles_of, float_bytes};
use tracing::warn;

use super::rows::VaryingRows;
use super::views::Bound;
use super::{Executor, Numbers, Op, Params, Pass, Sums};
use crate::graph::{Graph, ValueId};
use crate::passes::formats::Conversions;
use crate::passes::memory::{MemoryPlan, Role};
use recording::Recording;
pub(crate) use shared::Shared;

/// Words of the step block before the layers' numbers: the clock's six, and the solver's.
const CLOCK: usize = 6;
/// Words of the step block that are a solver's; see [`DeviceUpdate::words`].
pub const SOLVER_WORDS: usize = 10;

/// Where a net's parameters lie on a device: values in one block, gradients in another, at the same offsets.
#[derive(Clone, Debug)]
pub struct DeviceParams {
    /// The first byte of the values.
    pub data: DevicePtr,
    /// The first byte of the gradients.
    pub diff: DevicePtr,
    /// Bytes of each block.
    pub bytes: usize,
    /// By learnable parameter: its bytes in each block.
    pub spans: Vec<Range<usize>>,
}

/// A solver's update of the parameters on a device: work that follows a pass, and numbers that reach the device with it.
#[derive(Clone, Copy)]
pub struct DeviceUpdate<'a> {
    /// Launches in order. The same for every pass of a kind, since they are recorded with it.
    pub launches: &'a [Launch],
    /// What changes from update to update; where they lie is [`crate::OnDevice::solver_words`].
    pub words: [u32; SOLVER_WORDS],
}

/// A value of a feed, and where it lies in a batch: offset and bytes.
type FeedPart = (ValueId, usize, usize);

/// A net in a device's memory.
pub(crate) struct DeviceExec {
    gpu: Rc<dyn Gpu>,
    bound: Bound<Device>,
    /// What the layers that run on the host see.
    host: Bound<Host>,
    roles: Vec<Role>,
    varying: VaryingRows,
    /// By pass, and whether launches follow it.
    recordings: HashMap<(Pass, bool), Recording>,
    record: bool,
    /// What its passes convert.
    conversions: Conversions,
    data: Rc<Block>,
    /// Parameters that are another net's.
    shared: Option<Shared>,
    diff: Option<Block>,
    spans: Vec<Range<usize>>,
    _arena: Block,
    /// Bytes of the two batches on their way.
    batches: usize,
    /// The loss, in double precision, then the outputs' sums.
    sums: Block,
    /// By output value: its place among `sums`.
    sum_at: Vec<(usize, usize)>,
    step: Block,
    words: Vec<u32>,
    dynamic: Vec<Range<usize>>,
    /// By layer that has any: its constants.
    constants: HashMap<usize, Block>,
    faults: Block,
    /// Two batches on their way, and where each value of a feed lies in one.
    feeder: Option<(Box<dyn Feeder>, Vec<FeedPart>)>,
    /// The slot of the feeder that the next batch goes to.
    slot: usize,
}

impl DeviceExec {
    /// The device.
    pub fn gpu(&self) -> &Rc<dyn Gpu> {
        &self.gpu
    }

    /// What its passes convert.
    pub fn conversions(&self) -> Conversions {
        self.conversions
    }

    /// Bytes of the two batches on their way.
    pub fn batch_bytes(&self) -> usize {
        self.batches
    }

    /// Where the loss is added up: one double-precision number.
    pub fn loss_cell(&self) -> DevicePtr {
        self.sums.at()
    }

    /// Where layers report faults, four words each.
    pub fn faults(&self) -> DevicePtr {
        self.faults.at()
    }

    /// Where [`DeviceUpdate::words`] are.
    pub fn solver_words(&self) -> DevicePtr {
        self.step.at().offset(4 * CLOCK)
    }

    fn write_dynamic(&mut self, graph: &Graph) {
        for (layer, range) in graph.layers.iter().zip(&self.dynamic) {
            let values = layer.compute().and_then(|c| c.device()).map(|c| c.dynamic()).unwrap_or_default();
            self.words[range.clone()].iter_mut().zip(values).for_each(|(w, v)| *w = v.to_bits());
        }
    }

    /// Sends the step and what schedules have changed to the device.
    fn write_step(&mut self, graph: &Graph, step: &Step) -> Result<()> {
        let clock = [step.seed, step.iter, step.batch].map(|x| [x as u32, (x >> 32) as u32]);
        self.words[..CLOCK].copy_from_slice(clock.as_flattened());
        self.write_dynamic(graph);
        self.step.upload(&bytes_of(&self.words))
    }

    /// What layer `i` is called with.
    fn call<'a>(&self, graph: &'a Graph, i: usize, queue: &'a dyn DeviceQueue) -> DeviceCall<'a> {
        let numbers = &self.dynamic[i];
        DeviceCall {
            queue,
            formats: &graph.layers[i].plan.formats,
            clock: self.step.at(),
            dynamic: if numbers.is_empty() { DevicePtr::NULL } else { self.step.at().offset(4 * numbers.start) },
            constants: self.constants.get(&i).map_or(DevicePtr::NULL, Block::at),
            fault: self.faults.at().offset(16 * i),
        }
    }

    /// Runs layer `i` forward where it runs, and adds its part to the loss. Layers that bring data in have done so.
    fn forward(&mut self, graph: &mut Graph, i: usize, step: &Step) -> Result<()> {
        self.follow_rows(graph, i)?;
        if self.idles(graph, i) {
            return Ok(());
        }
        if self.roles[i] == Role::Host {
            self.forward_on_host(graph, i, step)?;
        }
        let layer = &graph.layers[i];
        let run = layer.compute().filter(|_| self.roles[i] == Role::Here).and_then(|c| c.device());
        if let Some(run) = run {
            let gpu = self.gpu.clone();
            let call = self.call(graph, i, gpu.as_ref());
            run.forward(self.bound.forward(graph, i, call)).map_err(|e| layer.in_layer(e))?;
        }
        for &top in &layer.tops {
            let weight = graph.values[top].loss_weight;
            if weight != 0.0 {
                let n = graph.values[top].spec.shape.count();
                let x = self.bound.value(graph, top).addr();
                let sum = args![self.loss_cell(), x, n as i64, weight];
                self.gpu.launch("net_loss_add", Grid::rows(1, 256), sum).map_err(|e| layer.in_layer(e))?;
            }
        }
        Ok(())
    }

    /// Adds the outputs to their sums.
    fn accumulate(&self, graph: &Graph) -> Result<()> {
        for &(v, at) in &self.sum_at {
            let n = graph.values[v].spec.shape.count();
            let sum = self.sums.at().offset(8 * at);
            let add = args![sum, self.bound.value(graph, v).addr(), n as i64];
            self.gpu.launch("net_accumulate", Grid::elements(n), add)?;
        }
        Ok(())
    }

    /// Runs layer `i` backward where it runs, if it has one to run.
    fn backward(&mut self, graph: &Graph, i: usize, step: &Step) -> Result<()> {
        let layer = &graph.layers[i];
        if !layer.backward || self.idles(graph, i) {
            return Ok(());
        }
        for &top in layer.tops.iter().filter(|&&top| !graph.diff_written(top)) {
            if let Some(diff) = self.bound.diff(graph, top) {
                let n = diff.shape().count();
                let seed = args![diff.addr(), n as i64, graph.values[top].loss_weight];
                let seeding = kernel!(graph.values[top].format.element, "net_seed");
                self.gpu.launch(seeding, Grid::elements(n), seed).map_err(|e| layer.in_layer(e))?;
            }
        }
        if self.roles[i] == Role::Host {
            return self.backward_on_host(graph, i, step);
        }
        let Some(run) = layer.compute().and_then(|c| c.device()) else { return Ok(()) };
        let gpu = self.gpu.clone();
        let call = self.call(graph, i, gpu.as_ref());
        run.backward(self.bound.backward(graph, i, call)).map_err(|e| layer.in_layer(e))
    }

    /// Data or gradient of a value, which is stored in its format.
    fn download(&self, graph: &Graph, view: View<'_, Device>, v: ValueId) -> Result<Vec<f64>> {
        let format = graph.values[v].format;
        let mut bytes =
            memory::zeros(format.bytes(view.shape()), format_args!("a copy of '{}'", graph.values[v].name))?;
        self.gpu.download(view.addr(), &mut bytes)?;
        Ok(format.decode(view.shape(), &bytes).into_iter().map(f64::from).collect())
    }
}

impl Executor for DeviceExec {
    fn begin(&mut self, graph: &mut Graph, pass: Pass, step: &Step, update: Option<&DeviceUpdate<'_>>) -> Result<()> {
        if let Some(update) = update {
            self.words[CLOCK..CLOCK + SOLVER_WORDS].copy_from_slice(&update.words);
        }
        self.write_step(graph, step)?;
        if pass.forward { self.feed_all(graph, step) } else { Ok(()) }
    }

    fn run(&mut self, graph: &mut Graph, op: Op, step: &Step) -> Result<()> {
        match op {
            Op::Clear => self.clear_sums().and_then(|()| self.clear_gradients(graph)),
            Op::Forward(i) => self.forward(graph, i, step),
            Op::Accumulate => self.accumulate(graph),
            Op::Backward(i) => self.backward(graph, i, step),
        }
    }

    fn update(&mut self, update: &DeviceUpdate<'_>) -> Result<()> {
        update.launches.iter().try_for_each(|launch| launch.queue(self.gpu.as_ref()))
    }

    fn pass(&mut self, graph: &mut Graph, pass: Pass, step: &Step, update: Option<&DeviceUpdate<'_>>) -> Result<()> {
        self.begin(graph, pass, step, update)?;
        self.run_recorded(graph, pass, step, update)
    }

    fn forward_layer(&mut self, graph: &mut Graph, i: usize, step: &Step) -> Result<()> {
        if i == 0 {
            self.write_step(graph, step)?;
        }
        if self.roles[i] == Role::Feed {
            self.feed(graph, i, step)?;
        }
        self.forward(graph, i, step)
    }

    fn clear_sums(&mut self) -> Result<()> {
        self.gpu.zero(self.sums.at(), self.sums.bytes())
    }

    fn sums(&self) -> Result<Sums> {
        let all = doubles_of(&self.sums.download()?);
        let ends = self.sum_at.iter().skip(1).map(|s| s.1).chain([all.len()]);
        let each = self.sum_at.iter().zip(ends).map(|(&(v, start), end)| (v, all[start..end].to_vec()));
        Ok(Sums { loss: all[0], outputs: each.collect() })
    }

    fn clear_gradients(&mut self, _graph: &Graph) -> Result<()> {
        self.diff.as_ref().map_or(Ok(()), |d| self.gpu.zero(d.at(), d.bytes()))
    }

    fn check(&self, graph: &Graph) -> Result<()> {
        let bytes = self.faults.download()?;
        let words: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        for (layer, fault) in graph.layers.iter().zip(words.as_chunks::<4>().0) {
            if let Some(run) = layer.compute().and_then(|c| c.device()).filter(|_| fault[0] != 0) {
                return Err(layer.in_layer(run.explain(*fault)));
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        self.gpu.finish()
    }

    fn value(&self, graph: &Graph, v: ValueId) -> Result<Vec<f64>> {
        self.download(graph, self.bound.value(graph, v), v)
    }

    fn gradient(&self, graph: &Graph, v: ValueId) -> Result<Option<Vec<f64>>> {
        self.bound.diff(graph, v).map(|d| self.download(graph, d, v)).transpose()
    }

    fn set_value(&mut self, graph: &Graph, v: ValueId, data: &[f64]) -> Result<()> {
        let value = &graph.values[v];
        // What a layer brings in on the host is sent over by every pass, from there.
        if self.roles[value.producer.0] == Role::Feed {
            return self.host.value_mut(graph, v).write_f64(data);
        }
        let view = self.bound.value(graph, v);
        if data.len() != view.shape().count() {
            let (found, shape) = (data.len(), view.shape());
            return Err(Error::internal(format!("{found} elements do not fill a blob of shape {shape}")));
        }
        let data: Vec<f32> = data.iter().map(|&x| x as f32).collect();
        self.gpu.upload(&value.format.encode(view.shape(), &data), view.addr())
    }

    fn params(&self, diff: bool) -> Result<Params<'_>> {
        let data = match &self.shared {
            None => self.data.download()?,
            // Some are another net's: each is copied by itself.
            Some(_) => {
                let bytes = self.spans.last().map_or(0, |s| s.end);
                let mut all = memory::zeros(bytes, "a copy of the parameters")?;
                for (memory, span) in self.bound.params.iter().zip(&self.spans) {
                    self.gpu.download(memory.data.at, &mut all[span.clone()])?;
                }
                all
            }
        };
        let diff = self.diff.as_ref().filter(|_| diff).map(Block::download).transpose()?;
        Ok(Params::Copied { data, diff, spans: &self.spans })
    }

    fn fill_param(&mut self, graph: &Graph, p: usize, read: &mut dyn FnMut(Numbers<'_>) -> Result<()>) -> Result<()> {
        let param = &graph.params[p];
        if self.shared.as_ref().is_some_and(|s| s.address(param.learnable).is_some()) {
            return Ok(());
        }
        let mut values = memory::zeros(param.spec.shape.count(), "a parameter on its way to the device")?;
        read(Numbers::F32(&mut values))?;
        self.gpu.upload(&float_bytes(values), self.bound.param(graph, p).addr())
    }

    fn lends_always(&self, other: &dyn Executor) -> Result<bool> {
        let shares =
            |other: &DeviceExec| other.shared.iter().flat_map(|s| &s.blocks).any(|block| Rc::ptr_eq(block, &self.data));
        match other.as_device() {
            Some(other) if shares(other) => Ok(true),
            _ => Err(Error::internal("these nets do not share parameters, or live in different memory")),
        }
    }

    fn exchange_params(&mut self, _other: &mut dyn Executor, _pairs: &[(usize, usize)]) -> Result<()> {
        Err(Error::internal("parameters on a device stay where they are"))
    }

    /// Both have the address of what they share.
    fn copy_param(&mut self, _from: usize, _to: usize) {}

    fn plan(&self) -> &MemoryPlan {
        self.bound.plan()
    }

    fn param_bytes(&self) -> usize {
        self.data.bytes() + self.diff.as_ref().map_or(0, Block::bytes)
    }

    fn as_device(&self) -> Option<&DeviceExec> {
        Some(self)
    }
}

impl Drop for DeviceExec {
    fn drop(&mut self) {
        if let Err(error) = self.gpu.finish() {
            warn!("work on {} had failed: {error}", self.gpu.name());
        }
    }
}
