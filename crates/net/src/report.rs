//! What a net says about itself: sizes, operations and bytes, layer by layer.

use lgm_core::Shape;

use crate::formats::Conversions;
use crate::graph::ValueId;
use crate::net::Net;

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
    /// Operations of one forward call, a multiply-add counting as two; 0 where the layer does not count them.
    pub flops: u64,
    /// Bytes that forward must read and write.
    pub forward_bytes: usize,
    /// Bytes that backward must read and write; 0 when it does not run.
    pub backward_bytes: usize,
    /// It is computed together with a later layer.
    pub absorbed: bool,
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
        let device = self.device.as_ref()?;
        Some(DeviceMemory {
            arena: device.bound.arena_bytes(),
            batches: device.batches,
            params: device.param_bytes(),
            history: device.params().map_or(0, |p| p.bytes),
        })
    }

    /// The sizes of layer `i`.
    pub fn layer_report(&self, i: usize) -> LayerReport<'_> {
        let graph = &self.graph;
        let layer = &graph.layers[i];
        let bytes = |values: &[ValueId], which: &dyn Fn(usize) -> bool| -> usize {
            let wanted = values.iter().enumerate().filter(|(k, _)| which(*k));
            wanted.map(|(_, &v)| graph.values[v].bytes()).sum()
        };
        let params: usize = layer.exec_params.iter().map(|&p| graph.params[p].spec.bytes()).sum();
        // What forward leaves for backward, which a net without one has no room for.
        let saved: usize = layer.plan.saved.iter().map(|spec| spec.bytes()).sum();
        let saved = if layer.backward { saved } else { 0 };
        // Views of a bottom are made without reading it.
        let reads = layer.tops.is_empty() || (0..layer.tops.len()).any(|t| !self.is_view(i, t));
        let written = bytes(&layer.tops, &|t| !self.is_view(i, t));
        let forward = bytes(&layer.bottoms, &|_| reads) + written + params + saved;
        let backward = bytes(&layer.tops, &|_| true)
            + bytes(&layer.bottoms, &|b| layer.bottom_backward[b])
            + bytes(&layer.bottoms, &|b| layer.plan.backward_bottoms.contains(&b))
            + bytes(&layer.tops, &|t| layer.plan.backward_tops.contains(&t))
            + 2 * params
            + saved;
        let owned = layer.params.iter().filter(|&&p| graph.params[p].owner.is_none());
        LayerReport {
            name: layer.name(),
            kind: layer.kind(),
            tops: layer.tops.iter().map(|&t| &graph.values[t].spec.shape).collect(),
            params: owned.map(|&p| graph.params[p].spec.shape.count()).sum(),
            flops: layer.plan.flops,
            forward_bytes: forward,
            backward_bytes: if layer.backward { backward } else { 0 },
            absorbed: layer.absorbed,
        }
    }

    /// Bytes of blobs, gradients, saved values and scratch, all in one arena: the net's peak besides its parameters.
    pub fn arena_bytes(&self) -> usize {
        self.device.as_ref().map_or(self.bound.arena_bytes(), |d| d.bound.arena_bytes())
    }

    /// The conversions between formats that the net's passes make; none on the host.
    pub fn conversions(&self) -> Conversions {
        self.device.as_ref().map_or_else(Conversions::default, |d| d.conversions)
    }

    fn is_view(&self, i: usize, t: usize) -> bool {
        self.device.as_ref().map_or(self.bound.is_view(i, t), |d| d.bound.is_view(i, t))
    }

    /// Bytes of parameters and, where backward runs, their gradients; without those that are another net's.
    pub fn param_bytes(&self) -> usize {
        if let Some(device) = &self.device {
            return device.param_bytes();
        }
        self.bound.params.iter().map(|p| p.data.len() + p.diff.as_ref().map_or(0, |d| d.len())).sum()
    }
}
