//! From a graph to a net on a device: where each layer runs, in which formats, and the memory for all of it.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use lgm_core::{DType, DevicePtr, Element, Error, Host, Node, Registry, Result, Storage, count};
use lgm_cuda::{Block, Gpu};
use tracing::info;

use super::fit::{self, Needs};
use super::{CLOCK, DeviceExec, SOLVER_WORDS, Shared, convolutions, varying};
use crate::exec::rows::VaryingRows;
use crate::exec::views::{Bound, ParamMemory, Span};
use crate::graph::{Graph, LayerNode, ValueId};
use crate::options::{Options, Placement};
use crate::passes::formats::{self, Conversions};
use crate::passes::memory::{MemoryPlan, Role, host_part, plan};
use crate::passes::pack::{DEVICE_ALIGN, round_up};

/// Where each layer runs.
fn roles(graph: &Graph) -> Vec<Role> {
    let role = |layer: &LayerNode| match (&layer.node, layer.compute()) {
        (Node::Source(_), _) => Role::Feed,
        (Node::Sink(_), _) => Role::Host,
        (_, Some(compute)) if compute.device().is_some() => Role::Here,
        (_, Some(_)) if layer.bottoms.is_empty() => Role::Feed,
        (_, Some(_)) => Role::Host,
        _ => Role::Here,
    };
    graph.layers.iter().map(role).collect()
}

/// Lets every layer that runs on the device change its plan for it, and says which do not.
fn prepare(graph: &mut Graph, roles: &[Role], gpu: &(dyn Gpu + 'static)) -> Result<()> {
    for (layer, role) in graph.layers.iter_mut().zip(roles) {
        if *role == Role::Host && matches!(layer.node, Node::Compute(_)) {
            let (name, kind) = (layer.name(), layer.kind());
            info!("layer '{name}' ({kind}) has no GPU form: it runs on the CPU, between copies");
        }
        let LayerNode { node, plan, fused_into, .. } = layer;
        let Node::Compute(compute) = node else { continue };
        if *role != Role::Here || fused_into.is_some() {
            continue;
        }
        if let Some(run) = compute.device_mut() {
            let prepared = run.prepare(gpu, plan);
            prepared.map_err(|e| layer.in_layer(e))?;
        }
    }
    convolutions::warn_refusals(graph, gpu);
    Ok(())
}

impl DeviceExec {
    /// Decides where each layer runs, prepares those on the device and gives all their memory.
    ///
    /// # Errors
    /// When the device cannot run a layer or has no room, or blobs are not in single precision.
    pub fn lay_out(
        graph: &mut Graph,
        registry: &Registry,
        options: &Options,
        at: &Placement,
        shared: Option<Shared>,
    ) -> Result<DeviceExec> {
        if options.dtype != DType::F32 {
            return Err(Error::config(format!("nets of {} run on the CPU only", options.dtype)));
        }
        let storage = formats::storage(at.gpu.storage())?;
        let conversions = formats::assign(graph, registry, &roles(graph), storage)?;
        log_conversions(storage, &conversions);
        // Conversions are among the layers now.
        let roles = roles(graph);
        let before = at.gpu.free_bytes()?.0;
        prepare(graph, &roles, at.gpu.as_ref())?;
        let varying = varying::make_room(graph, &roles, at.gpu.as_ref())?;
        let libraries = before.saturating_sub(at.gpu.free_bytes()?.0);
        let memory = plan(graph, &options.keep, &roles, DEVICE_ALIGN);
        let on_host = |i: usize| roles[i] != Role::Here;
        let used = |learnable: usize| {
            let uses = |l: &LayerNode| l.exec_params.iter().any(|&p| graph.params[p].learnable == learnable);
            graph.layers.iter().enumerate().any(|(i, layer)| on_host(i) && uses(layer))
        };
        let host = Bound::host(graph, host_part(graph, &roles), options.backward, &on_host, &used)?;
        let mut device = DeviceExec::new(graph, memory, (host, roles, varying), options, (at, libraries), shared)?;
        device.conversions = conversions;
        Ok(device)
    }

    fn new(
        graph: &Graph,
        plan: MemoryPlan,
        (host, roles, varying): (Bound<Host>, Vec<Role>, VaryingRows),
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
        let copies = at.histories.saturating_add(usize::from(options.backward));
        // Two batches are on their way while one is computed.
        let batches = room.saturating_mul(2);
        let arena = plan.bytes.saturating_add(batches);
        let params = bytes.saturating_mul(copies).saturating_add(own);
        fit::check(graph, gpu.as_ref(), &Needs { arena, params, libraries })?;
        let data = Rc::new(Block::new(&gpu, own)?);
        let diff = options.backward.then(|| Block::new(&gpu, bytes)).transpose()?;
        let arena = Block::new(&gpu, plan.bytes)?;
        let mut words = CLOCK + SOLVER_WORDS;
        let dynamic = graph.layers.iter().map(|layer| {
            let start = words;
            words = layer.compute().and_then(|c| c.device()).map_or(words, |c| words.saturating_add(c.dynamic().len()));
            start..words
        });
        let dynamic: Vec<Range<usize>> = dynamic.collect();
        let mut constants = HashMap::new();
        for (i, layer) in graph.layers.iter().enumerate() {
            let numbers = layer.compute().and_then(|c| c.device()).map(|c| c.constants()).unwrap_or_default();
            if !numbers.is_empty() {
                let words: Vec<u32> = numbers.iter().map(|v| v.to_bits()).collect();
                constants.insert(i, Block::of_words(&gpu, &words).map_err(|e| layer.in_layer(e))?);
            }
        }
        let step = Block::new(&gpu, count(&[4, words]))?;
        let faults = Block::new(&gpu, count(&[16, graph.layers.len()]))?;
        let (mut sum_at, mut cells) = (Vec::new(), 1);
        for v in graph.outputs() {
            sum_at.push((v, cells));
            cells = graph.values[v].spec.shape.count().saturating_add(cells);
        }
        let sums = Block::new(&gpu, count(&[8, cells]))?;
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
        let mut device = DeviceExec {
            gpu,
            bound,
            host,
            roles,
            record: varying.is_empty() && std::env::var_os("LGM_GRAPH").is_none_or(|v| v != "0"),
            varying,
            recordings: HashMap::new(),
            conversions: Conversions::default(),
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
            constants,
            faults,
            feeder,
            slot: 0,
        };
        device.write_dynamic(graph);
        Ok(device)
    }
}

fn log_conversions(storage: Storage, made: &Conversions) {
    if storage.element != Element::F32 || made.forward > 0 {
        info!("Blobs between layers in {}", made.summary(storage));
    }
}
