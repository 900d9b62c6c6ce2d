//! Batches on their way to a device: layers that bring data in run on the host, and their tops are copied over.

use lgm_core::{Node, Result, Step};

use super::{DeviceExec, FeedPart};
use crate::exec::views::{host_bytes, host_call};
use crate::graph::Graph;
use crate::passes::memory::Role;

impl DeviceExec {
    /// Runs every layer that brings data in, and copies their tops over beside the computation.
    pub(super) fn feed_all(&mut self, graph: &mut Graph, step: &Step) -> Result<()> {
        let feeds: Vec<usize> = (0..graph.layers.len()).filter(|&i| self.roles[i] == Role::Feed).collect();
        feeds.iter().try_for_each(|&i| self.load(graph, i, step))?;
        let Some((feeder, parts)) = &mut self.feeder else {
            return feeds.iter().try_for_each(|&i| self.send(graph, i));
        };
        self.slot = 1 - self.slot;
        let batch = feeder.host(self.slot)?;
        for &(v, offset, bytes) in parts.iter() {
            batch[offset..offset + bytes].copy_from_slice(host_bytes(self.host.value(graph, v)));
        }
        feeder.send(self.slot)?;
        let to = |&(v, offset, bytes): &FeedPart| (offset, self.bound.value(graph, v).addr(), bytes);
        let parts: Vec<_> = parts.iter().map(to).collect();
        feeder.deliver(self.slot, &parts)
    }

    /// Runs layer `i`, which brings data in, and copies its tops over.
    pub(super) fn feed(&mut self, graph: &mut Graph, i: usize, step: &Step) -> Result<()> {
        self.load(graph, i, step)?;
        self.send(graph, i)
    }

    fn send(&self, graph: &Graph, i: usize) -> Result<()> {
        let layer = &graph.layers[i];
        for &top in &layer.tops {
            let to = self.bound.value(graph, top).addr();
            self.gpu.upload(host_bytes(self.host.value(graph, top)), to).map_err(|e| layer.in_layer(e))?;
        }
        Ok(())
    }

    fn load(&mut self, graph: &mut Graph, i: usize, step: &Step) -> Result<()> {
        let Graph { layers, values, .. } = &mut *graph;
        let layer = &mut layers[i];
        if let Node::Source(source) = &mut layer.node {
            let loaded = source.load(step, &mut self.host.tops(values, &layer.tops));
            loaded.map_err(|e| layer.in_layer(e))?;
        }
        let layer = &graph.layers[i];
        if let Some(compute) = layer.compute() {
            let ran = compute.forward(self.host.forward(graph, i, host_call(graph, i, step)));
            ran.map_err(|e| layer.in_layer(e))?;
        }
        Ok(())
    }
}
