//! A net in a device's memory: one arena, one block of parameters and one of their gradients, the block of numbers that
//! change from step to step, and the layers that have to run on the host.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use lgm_core::{
    DType, Device, DeviceCall, DevicePtr, DeviceQueue, Element, Error, Grid, Host, Node, Result, Step, Storage, args,
    kernel,
};
use tracing::{info, warn};

use crate::bind::{Bound, ParamMemory, Span};
use crate::convolutions;
use crate::fit::{self, Needs};
use crate::formats::{self, Conversions};
use crate::gpu::{Block, Feeder, Gpu, bytes_of, doubles_of};
use crate::graph::{Graph, LayerNode, ValueId};
use crate::memory::{DEVICE_ALIGN, round_up};
use crate::net::Options;
use crate::plan::{MemoryPlan, Role, mirror, plan};
use crate::share::Shared;
use crate::tape::Tape;
use crate::values::NamedValues;

/// The device that a net runs on.
#[derive(Clone)]
pub struct Placement {
    /// The device.
    pub gpu: Rc<dyn Gpu>,
    /// Arrays of the parameters' size that whoever trains the net will want besides, for the check that all fits.
    pub histories: usize,
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Placement on {} with {} histories", self.gpu.label(), self.histories)
    }
}

/// Words of the step block before the layers' numbers: the clock's six, and the solver's.
const CLOCK: usize = 6;
/// Words of the step block that a solver may set; see [`crate::Net::set_solver_words`].
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

/// A value of a feed, and where it lies in a batch: offset and bytes.
pub(crate) type FeedPart = (ValueId, usize, usize);

/// The device half of a net.
pub(crate) struct OnDevice {
    pub gpu: Rc<dyn Gpu>,
    pub bound: Bound<Device>,
    pub roles: Vec<Role>,
    pub tapes: HashMap<crate::tape::Pass, Tape>,
    pub record: bool,
    /// What its passes convert.
    pub conversions: Conversions,
    data: Rc<Block>,
    /// Parameters that are another net's.
    shared: Option<Shared>,
    diff: Option<Block>,
    spans: Vec<Range<usize>>,
    _arena: Block,
    /// Bytes of the two batches on their way.
    pub(crate) batches: usize,
    /// The loss, in double precision, then the outputs' sums.
    sums: Block,
    /// By output value: its place among `sums`.
    sum_at: Vec<(usize, usize)>,
    step: Block,
    words: Vec<u32>,
    dynamic: Vec<Range<usize>>,
    faults: Block,
    /// Two batches on their way, and where each value of a feed lies in one.
    pub(crate) feeder: Option<(Box<dyn Feeder>, Vec<FeedPart>)>,
    pub(crate) turn: usize,
}

/// Where each layer runs.
pub(crate) fn roles(graph: &Graph) -> Vec<Role> {
    let role = |layer: &LayerNode| match (&layer.node, layer.compute()) {
        (Node::Source(_), _) => Role::Feed,
        (Node::Sink(_), _) => Role::Away,
        (_, Some(_)) if layer.bottoms.is_empty() => Role::Feed,
        (_, Some(compute)) if compute.device().is_none() => Role::Away,
        _ => Role::Here,
    };
    graph.layers.iter().map(role).collect()
}

/// Lets every layer that runs on the device change its plan for it, and says which do not.
pub(crate) fn prepare(graph: &mut Graph, roles: &[Role], gpu: &(dyn Gpu + 'static)) -> Result<()> {
    for (layer, role) in graph.layers.iter_mut().zip(roles) {
        if *role == Role::Away && matches!(layer.node, Node::Compute(_)) {
            let (name, kind) = (layer.name(), layer.kind());
            info!("layer '{name}' ({kind}) has no GPU form: it runs on the CPU, between copies");
        }
        let LayerNode { node, plan, absorbed, .. } = layer;
        let Node::Compute(compute) = node else { continue };
        if *role != Role::Here || *absorbed {
            continue;
        }
        if let Some(run) = compute.device_mut() {
            let prepared = run.prepare(gpu, plan);
            prepared.map_err(|e| layer.blame(e))?;
        }
    }
    convolutions::tell_refusals(graph, gpu);
    Ok(())
}

impl OnDevice {
    /// Decides where each layer runs, prepares those on the device and gives all their memory; the first is what layers
    /// on the host see.
    ///
    /// # Errors
    /// When the device cannot run a layer or has no room, or blobs are not in single precision.
    pub fn lay_out(
        graph: &mut Graph,
        options: &Options,
        at: &Placement,
        shared: Option<Shared>,
    ) -> Result<(Bound<Host>, OnDevice)> {
        if options.dtype != DType::F32 {
            return Err(Error::config(format!("nets of {} run on the CPU only", options.dtype)));
        }
        let storage = formats::storage(at.gpu.storage())?;
        let conversions = formats::assign(graph, &roles(graph), storage)?;
        log_conversions(storage, &conversions);
        // Conversions are among the layers now.
        let roles = roles(graph);
        let before = at.gpu.free_bytes()?.0;
        prepare(graph, &roles, at.gpu.as_ref())?;
        let libraries = before.saturating_sub(at.gpu.free_bytes()?.0);
        let memory = plan(graph, &options.keep, &roles, DEVICE_ALIGN);
        let away = |i: usize| roles[i] != Role::Here;
        let used = |learnable: usize| {
            let uses = |l: &LayerNode| l.exec_params.iter().any(|&p| graph.params[p].learnable == learnable);
            graph.layers.iter().enumerate().any(|(i, layer)| away(i) && uses(layer))
        };
        let mirror = Bound::host(graph, mirror(graph, &roles), options.backward, &away, &used)?;
        let mut device = OnDevice::new(graph, memory, roles.clone(), options, (at, libraries), shared)?;
        device.conversions = conversions;
        Ok((mirror, device))
    }

    fn new(
        graph: &Graph,
        plan: MemoryPlan,
        roles: Vec<Role>,
        options: &Options,
        (at, libraries): (&Placement, u64),
        shared: Option<Shared>,
    ) -> Result<Self> {
        let gpu = at.gpu.clone();
        let mut bytes = 0;
        let spans: Vec<Range<usize>> = graph
            .learnables
            .iter()
            .map(|l| {
                let start = bytes;
                let len = graph.params[l.owner].spec.bytes();
                bytes = round_up(len).saturating_add(bytes);
                start..start.saturating_add(len)
            })
            .collect();
        let mut room = 0;
        let feeds = graph.layers.iter().zip(&roles).filter(|(_, role)| **role == Role::Feed);
        let part = |&v: &ValueId| {
            let (offset, bytes) = (room, graph.values[v].spec.bytes());
            room = round_up(bytes).saturating_add(room);
            (v, offset, bytes)
        };
        let parts: Vec<_> = feeds.flat_map(|(layer, _)| &layer.tops).map(part).collect();
        // Of what another net owns there is no copy of values.
        let theirs = |l: usize| shared.as_ref().and_then(|s| s.address(l));
        let mut own = 0;
        let mut take = |bytes: usize| {
            let at = own;
            own = round_up(bytes).saturating_add(own);
            at
        };
        let places: Vec<Result<DevicePtr, usize>> =
            spans.iter().enumerate().map(|(l, span)| theirs(l).ok_or_else(|| take(span.len()))).collect();
        let copies = usize::from(options.backward) + at.histories;
        // Two batches are on their way while one is computed.
        let batches = room.saturating_mul(2);
        let arena = plan.bytes.saturating_add(batches);
        let params = bytes.saturating_mul(copies).saturating_add(own);
        fit::check(graph, &roles, gpu.as_ref(), &Needs { arena, params, libraries })?;
        let data = Rc::new(Block::new(&gpu, own)?);
        let diff = options.backward.then(|| Block::new(&gpu, bytes)).transpose()?;
        let arena = Block::new(&gpu, plan.bytes)?;
        let mut words = CLOCK + SOLVER_WORDS;
        let dynamic = graph.layers.iter().map(|layer| {
            let start = words;
            words += layer.compute().and_then(|c| c.device()).map_or(0, |c| c.dynamic().len());
            start..words
        });
        let dynamic: Vec<Range<usize>> = dynamic.collect();
        let step = Block::new(&gpu, 4 * words)?;
        let faults = Block::new(&gpu, 16 * graph.layers.len())?;
        let (mut sum_at, mut cells) = (Vec::new(), 1);
        for v in graph.outputs() {
            sum_at.push((v, cells));
            cells += graph.values[v].spec.shape.count();
        }
        let sums = Block::new(&gpu, 8 * cells)?;
        let memory = |(range, place): (&Range<usize>, &Result<DevicePtr, usize>)| {
            let span = |at: DevicePtr| Span { at, bytes: range.len() };
            let values = place.unwrap_or_else(|offset| data.at().offset(offset));
            ParamMemory { data: span(values), diff: diff.as_ref().map(|d| span(d.at().offset(range.start))) }
        };
        let params = spans.iter().zip(&places).map(memory).collect();
        let here = |i: usize| roles[i] == Role::Here;
        let memory = Span { at: arena.at(), bytes: plan.bytes };
        let bound = Bound::bind(graph, memory, plan, params, &here)?;
        let feeder = if room > 0 { gpu.feeder(room)?.map(|feeder| (feeder, parts)) } else { None };
        let mut device = OnDevice {
            gpu,
            bound,
            roles,
            tapes: HashMap::new(),
            conversions: Conversions::default(),
            record: std::env::var_os("LGM_GRAPH").is_none_or(|v| v != "0"),
            data,
            shared,
            diff,
            spans,
            _arena: arena,
            batches,
            sums,
            sum_at,
            step,
            words: vec![0; words],
            dynamic,
            faults,
            feeder,
            turn: 0,
        };
        device.write_dynamic(graph);
        Ok(device)
    }

    fn queue(&self) -> &dyn DeviceQueue {
        self.gpu.as_ref()
    }

    /// Nothing where some of them are another net's.
    pub fn params(&self) -> Option<DeviceParams> {
        if self.shared.is_some() {
            return None;
        }
        let data = self.data.at();
        let diff = self.diff.as_ref().map_or(DevicePtr::NULL, |d| d.at());
        Some(DeviceParams { data, diff, bytes: self.data.bytes(), spans: self.spans.clone() })
    }

    /// Bytes allocated for values and gradients.
    pub fn param_bytes(&self) -> usize {
        self.data.bytes() + self.diff.as_ref().map_or(0, Block::bytes)
    }

    /// The blocks that values lie in.
    pub fn param_blocks(&self) -> Vec<Rc<Block>> {
        let others = self.shared.iter().flat_map(|s| s.blocks.clone());
        [self.data.clone()].into_iter().chain(others).collect()
    }

    /// Whether this net computes with another's parameters.
    pub fn shares_with(&self, other: &OnDevice) -> bool {
        self.shared.iter().flat_map(|s| &s.blocks).any(|block| Rc::ptr_eq(block, &other.data))
    }

    /// Whether a learnable parameter is another net's.
    pub fn is_shared(&self, learnable: usize) -> bool {
        self.shared.as_ref().is_some_and(|s| s.address(learnable).is_some())
    }

    /// Values, and gradients where there are any, of all parameters, each at its [`OnDevice::span`]: in two copies, unless
    /// some are another net's.
    pub fn download_params(&self, diff: bool) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
        let data = match &self.shared {
            None => self.data.download()?,
            Some(_) => {
                let mut all = vec![0; self.spans.last().map_or(0, |s| s.end)];
                for (memory, span) in self.bound.params.iter().zip(&self.spans) {
                    self.gpu.download(memory.data.at, &mut all[span.clone()])?;
                }
                all
            }
        };
        Ok((data, self.diff.as_ref().filter(|_| diff).map(Block::download).transpose()?))
    }

    pub fn span(&self, learnable: usize) -> Range<usize> {
        self.spans[learnable].clone()
    }

    pub fn clear_param_diffs(&self) -> Result<()> {
        self.diff.as_ref().map_or(Ok(()), |d| self.gpu.zero(d.at(), d.bytes()))
    }

    pub fn clear_sums(&self) -> Result<()> {
        self.gpu.zero(self.sums.at(), self.sums.bytes())
    }

    /// Where the loss is added up: one double-precision number.
    pub fn loss_cell(&self) -> DevicePtr {
        self.sums.at()
    }

    /// The loss, and each output value's sums.
    pub fn read_sums(&self) -> Result<(f64, Vec<NamedValues<ValueId>>)> {
        let all = doubles_of(&self.sums.download()?);
        let ends = self.sum_at.iter().skip(1).map(|s| s.1).chain([all.len()]);
        let each = self.sum_at.iter().zip(ends).map(|(&(v, start), end)| (v, all[start..end].to_vec()));
        Ok((all[0], each.collect()))
    }

    pub fn set_solver_words(&mut self, words: [u32; SOLVER_WORDS]) {
        self.words[CLOCK..CLOCK + SOLVER_WORDS].copy_from_slice(&words);
    }

    pub fn faults(&self) -> DevicePtr {
        self.faults.at()
    }

    pub fn solver_words(&self) -> DevicePtr {
        self.step.at().offset(4 * CLOCK)
    }

    fn write_dynamic(&mut self, graph: &Graph) {
        for (layer, range) in graph.layers.iter().zip(&self.dynamic) {
            let values = layer.compute().and_then(|c| c.device()).map(|c| c.dynamic()).unwrap_or_default();
            self.words[range.clone()].iter_mut().zip(values).for_each(|(w, v)| *w = v.to_bits());
        }
    }

    /// Tells the device when it is.
    pub fn write_step(&mut self, graph: &Graph, step: &Step) -> Result<()> {
        let clock = [step.seed, step.iter, step.batch].map(|x| [x as u32, (x >> 32) as u32]);
        self.words[..CLOCK].copy_from_slice(clock.as_flattened());
        self.write_dynamic(graph);
        self.step.upload(&bytes_of(&self.words))
    }

    /// Where layer `i` finds the clock, its dynamic numbers and its fault record.
    fn addresses(&self, i: usize) -> [DevicePtr; 3] {
        let numbers = &self.dynamic[i];
        let dynamic = if numbers.is_empty() { DevicePtr::NULL } else { self.step.at().offset(4 * numbers.start) };
        [self.step.at(), dynamic, self.faults.at().offset(16 * i)]
    }

    /// What kernels reported, the first layer's first.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let bytes = self.faults.download()?;
        let words: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        for (layer, fault) in graph.layers.iter().zip(words.as_chunks::<4>().0) {
            if let Some(run) = layer.compute().and_then(|c| c.device()).filter(|_| fault[0] != 0) {
                return Err(layer.blame(run.explain(*fault)));
            }
        }
        Ok(())
    }

    /// Runs layer `i` forward where it runs, and adds its part to the loss. Layers that bring data in have done so.
    pub fn forward(&mut self, graph: &mut Graph, mirror: &mut Bound<Host>, i: usize, step: &Step) -> Result<()> {
        if self.roles[i] == Role::Away {
            self.forward_away(graph, mirror, i, step)?;
        }
        let layer = &graph.layers[i];
        let run = layer.compute().filter(|_| self.roles[i] == Role::Here).and_then(|c| c.device());
        if let Some(run) = run {
            let [clock, dynamic, fault] = self.addresses(i);
            let call = DeviceCall { queue: self.gpu.as_ref(), formats: &layer.plan.formats, clock, dynamic, fault };
            run.forward(self.bound.forward(graph, i, call)).map_err(|e| layer.blame(e))?;
        }
        for &top in &layer.tops {
            let weight = graph.values[top].loss_weight;
            if weight != 0.0 {
                let n = graph.values[top].spec.shape.count();
                let x = self.bound.value(graph, top).addr();
                let sum = args![self.loss_cell(), x, n as i64, weight];
                self.queue().launch("net_loss_add", Grid::rows(1, 256), sum).map_err(|e| layer.blame(e))?;
            }
        }
        Ok(())
    }

    /// Adds the outputs to their sums.
    pub fn accumulate(&self, graph: &Graph) -> Result<()> {
        for &(v, at) in &self.sum_at {
            let n = graph.values[v].spec.shape.count();
            let sum = self.sums.at().offset(8 * at);
            let add = args![sum, self.bound.value(graph, v).addr(), n as i64];
            self.queue().launch("net_accumulate", Grid::elements(n), add)?;
        }
        Ok(())
    }

    /// Runs layer `i` backward where it runs, if it has one to run.
    pub fn backward(&mut self, graph: &Graph, mirror: &mut Bound<Host>, i: usize, step: &Step) -> Result<()> {
        let layer = &graph.layers[i];
        if !layer.backward {
            return Ok(());
        }
        for &top in &layer.tops {
            let (weight, written) = (graph.values[top].loss_weight, graph.diff_written(top));
            if written && weight == 0.0 {
                continue;
            }
            if let Some(diff) = self.bound.diff(graph, top) {
                let n = diff.shape().count();
                let seed = args![diff.addr(), n as i64, weight, i32::from(written)];
                let seeding = kernel!(graph.values[top].format.element, "net_seed");
                self.queue().launch(seeding, Grid::elements(n), seed).map_err(|e| layer.blame(e))?;
            }
        }
        if self.roles[i] == Role::Away {
            return self.backward_away(graph, mirror, i, step);
        }
        let Some(run) = layer.compute().and_then(|c| c.device()) else { return Ok(()) };
        let [clock, dynamic, fault] = self.addresses(i);
        let call = DeviceCall { queue: self.gpu.as_ref(), formats: &layer.plan.formats, clock, dynamic, fault };
        run.backward(self.bound.backward(graph, i, call)).map_err(|e| layer.blame(e))
    }
}

impl Drop for OnDevice {
    fn drop(&mut self) {
        if let Err(error) = self.gpu.finish() {
            warn!("work on {} had failed: {error}", self.gpu.label());
        }
    }
}

fn log_conversions(storage: Storage, made: &Conversions) {
    if storage.element != Element::F32 || made.forward > 0 {
        info!("Blobs between layers in {}", made.summary(storage));
    }
}
