//! What a net says about itself: sizes, operations and bytes, layer by layer.

pub(crate) mod convolutions;
mod debug;
mod finite;

use lgm_core::{BlobSpec, Registry, Result, Shape};
use lgm_proto::{NetParameter, Positions};

use crate::exec::{Executor, Memory};
use crate::graph::{Graph, ValueId};
use crate::net::{Net, build_graph};
use crate::options::Options;
use crate::passes::formats::Conversions;
use crate::passes::memory::{MemoryPlan, Role, plan};
use crate::passes::pack::ALIGN;

/// One layer's sizes.
#[derive(Clone, Debug)]
pub struct LayerReport<'a> {
    /// Name in the prototxt.
    pub name: &'a str,
    /// Type in the prototxt.
    pub kind: &'a str,
    /// Shapes of the tops; none for a layer that another computes.
    pub tops: Vec<&'a Shape>,
    /// Elements of the parameters it owns.
    pub params: usize,
    /// Those of them that are statistics, which the layer sets by itself.
    pub statistics: usize,
    /// Operations of one forward call, a multiply-add counting as two; 0 where the layer does not count them.
    pub flops: u64,
    /// The same of one backward call: a layer with weights makes a product of forward's size for them, if they are learned,
    /// and one for its bottoms, if anything asks for their gradients.
    pub backward_flops: u64,
    /// Bytes that forward must read and write.
    pub forward_bytes: usize,
    /// Bytes that backward must read and write; 0 when it does not run.
    pub backward_bytes: usize,
    /// It is computed together with a later layer.
    pub fused: bool,
    /// No prototxt names it: a conversion between formats.
    pub internal: bool,
}

/// What a net takes on its device, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    /// Blobs, their gradients, saved values and scratch, in one arena.
    pub arena: usize,
    /// Two batches on their way while one is computed.
    pub batches: usize,
    /// Parameters and, where backward runs, their gradients.
    pub params: usize,
    /// An array like the parameters: a solver keeps none, one or two of them.
    pub history: usize,
}

impl DeviceMemory {
    /// All of it, with so many histories.
    pub fn total(&self, histories: usize) -> usize {
        self.arena + self.batches + self.params + histories * self.history
    }
}

impl Net {
    /// What the net takes on its device; nothing on the host.
    pub fn device_memory(&self) -> Option<DeviceMemory> {
        let device = self.exec.as_device()?;
        Some(DeviceMemory {
            arena: device.plan().bytes,
            batches: device.batch_bytes(),
            params: device.param_bytes(),
            history: device.device_params().map_or(0, |p| p.bytes),
        })
    }

    /// The sizes of layer `i`.
    pub fn layer_report(&self, i: usize) -> LayerReport<'_> {
        self.graph.report(self.exec.plan(), i)
    }

    /// Bytes of blobs, gradients, saved values and scratch, all in one arena: the net's peak besides its parameters.
    pub fn arena_bytes(&self) -> usize {
        self.exec.plan().bytes
    }

    /// The conversions between formats that the net's passes make; none on the host.
    pub fn conversions(&self) -> Conversions {
        self.exec.as_device().map_or_else(Conversions::default, |d| d.conversions())
    }

    /// Bytes of parameters and, where backward runs, their gradients; without those that are another net's.
    pub fn param_bytes(&self) -> usize {
        self.exec.param_bytes()
    }
}

/// A net on the host without its memory: what it takes is computed without taking it, so it may be larger than the machine.
pub struct Outline {
    graph: Graph,
    plan: MemoryPlan,
    backward: bool,
}

impl Outline {
    /// Plans a net as [`Net::new`] does.
    ///
    /// # Errors
    /// As [`Net::new`], but for the lack of memory.
    pub fn new(param: &NetParameter, positions: &Positions, registry: &Registry, options: &Options) -> Result<Self> {
        let graph = build_graph(param, positions, registry, options)?;
        let here = vec![Role::Here; graph.layers.len()];
        let plan = plan(&graph, &options.keep, &here, ALIGN);
        Ok(Outline { graph, plan, backward: options.backward })
    }

    /// The sizes of each layer, in order.
    pub fn layer_reports(&self) -> Vec<LayerReport<'_>> {
        (0..self.graph.layers.len()).map(|i| self.graph.report(&self.plan, i)).collect()
    }

    /// As [`Net::arena_bytes`]; `usize::MAX` for any greater number.
    pub fn arena_bytes(&self) -> usize {
        self.plan.bytes
    }

    /// As [`Net::param_bytes`]; `usize::MAX` for any greater number.
    pub fn param_bytes(&self) -> usize {
        let each = self.graph.learnables.iter().map(|l| Memory::size(self.graph.params[l.owner].spec.bytes()));
        total(each).saturating_mul(1 + usize::from(self.backward))
    }
}

fn total(bytes: impl Iterator<Item = usize>) -> usize {
    bytes.fold(0, usize::saturating_add)
}

impl Graph {
    fn report(&self, plan: &MemoryPlan, i: usize) -> LayerReport<'_> {
        let layer = &self.layers[i];
        let is_view = |t: usize| plan.top_is_view[i][t];
        let bytes = |values: &[ValueId], which: &dyn Fn(usize) -> bool| -> usize {
            let wanted = values.iter().enumerate().filter(|(k, _)| which(*k));
            total(wanted.map(|(_, &v)| self.values[v].bytes()))
        };
        let params = total(layer.exec_params.iter().map(|&p| self.params[p].spec.bytes()));
        // What forward leaves for backward, which a net without one has no room for.
        let saved = if layer.backward { total(layer.plan.saved.iter().map(BlobSpec::bytes)) } else { 0 };
        // Views of a bottom take no reading.
        let read = layer.tops.is_empty() || (0..layer.tops.len()).any(|t| !is_view(t));
        let forward = [bytes(&layer.bottoms, &|_| read), bytes(&layer.tops, &|t| !is_view(t)), params, saved];
        let learned = layer.exec_params.iter().any(|&p| self.params[p].backward);
        let products = match layer.exec_params.is_empty() {
            true => 1,
            false => u64::from(learned) + u64::from(layer.bottom_backward.contains(&true)),
        };
        let backward = [
            bytes(&layer.tops, &|_| true),
            bytes(&layer.bottoms, &|b| layer.bottom_backward[b]),
            bytes(&layer.bottoms, &|b| layer.plan.backward_bottoms.contains(&b)),
            bytes(&layer.tops, &|t| layer.plan.backward_tops.contains(&t)),
            params,
            params,
            saved,
        ];
        let owned = || self.shown(layer).iter().map(|&p| &self.params[p]).filter(|p| p.owner.is_none());
        LayerReport {
            name: layer.name(),
            kind: layer.kind(),
            tops: layer.tops.iter().map(|&t| &self.values[t].spec.shape).collect(),
            params: total(owned().map(|p| p.spec.shape.count())),
            statistics: total(owned().filter(|p| p.state).map(|p| p.spec.shape.count())),
            flops: layer.plan.flops,
            backward_flops: if layer.backward { layer.plan.flops.saturating_mul(products) } else { 0 },
            forward_bytes: total(forward.into_iter()),
            backward_bytes: if layer.backward { total(backward.into_iter()) } else { 0 },
            fused: layer.fused_into.is_some(),
            internal: layer.internal,
        }
    }
}
