//! What a net on a device has to do with the host: layers that bring data in, and those that have no device half and
//! run between copies.

use lgm_core::{Error, Host, Node, Result, Step};

use crate::bind::{Bound, host_bytes, host_bytes_mut, host_call};
use crate::device::{FeedPart, OnDevice};
use crate::graph::{Graph, LayerNode};
use crate::plan::Role;

impl OnDevice {
    /// Fills the tops of every layer that brings data in, on the host, and sends them over beside the computation.
    pub fn feed_all(&mut self, graph: &mut Graph, mirror: &mut Bound<Host>, step: &Step) -> Result<()> {
        for i in 0..graph.layers.len() {
            if self.roles[i] == Role::Feed {
                self.load(graph, mirror, i, step)?;
            }
        }
        let Some((feeder, parts)) = &mut self.feeder else {
            let feeds = graph.layers.iter().zip(&self.roles).filter(|(_, role)| **role == Role::Feed);
            return feeds.map(|(layer, _)| layer).try_for_each(|layer| self.send(graph, mirror, layer));
        };
        self.turn = 1 - self.turn;
        let host = feeder.host(self.turn)?;
        for &(v, offset, bytes) in parts.iter() {
            host[offset..offset + bytes].copy_from_slice(host_bytes(mirror.value(graph, v)));
        }
        feeder.send(self.turn)?;
        let to = |&(v, offset, bytes): &FeedPart| (offset, self.bound.value(graph, v).addr(), bytes);
        let parts: Vec<_> = parts.iter().map(to).collect();
        feeder.deliver(self.turn, &parts)
    }

    /// Fills the tops of layer `i`, which brings data in, on the host, and sends them over.
    pub fn feed(&self, graph: &mut Graph, mirror: &mut Bound<Host>, i: usize, step: &Step) -> Result<()> {
        self.load(graph, mirror, i, step)?;
        self.send(graph, mirror, &graph.layers[i])
    }

    fn send(&self, graph: &Graph, mirror: &Bound<Host>, layer: &LayerNode) -> Result<()> {
        for &top in &layer.tops {
            let to = self.bound.value(graph, top).addr();
            self.gpu.upload(host_bytes(mirror.value(graph, top)), to).map_err(|e| layer.blame(e))?;
        }
        Ok(())
    }

    fn load(&self, graph: &mut Graph, mirror: &mut Bound<Host>, i: usize, step: &Step) -> Result<()> {
        let Graph { layers, values, .. } = graph;
        let layer = &mut layers[i];
        if let Node::Source(source) = &mut layer.node {
            let loaded = source.load(step, &mut mirror.tops(values, &layer.tops));
            loaded.map_err(|e| layer.blame(e))?;
        }
        let layer = &graph.layers[i];
        if let Some(compute) = layer.compute() {
            let ran = compute.forward(mirror.forward(graph, i, host_call(graph, i, step)));
            ran.map_err(|e| layer.blame(e))?;
        }
        Ok(())
    }

    /// Runs layer `i` forward on the host, from copies of what it reads, and copies back what it wrote.
    pub(crate) fn forward_away(
        &self,
        graph: &mut Graph,
        mirror: &mut Bound<Host>,
        i: usize,
        step: &Step,
    ) -> Result<()> {
        let layer = &graph.layers[i];
        let blame = |e: Error| layer.blame(e);
        for &bottom in &layer.bottoms {
            let from = self.bound.value(graph, bottom).addr();
            let to = host_bytes_mut(mirror.value_mut(graph, bottom));
            self.gpu.download(from, to).map_err(blame)?;
        }
        for &p in &layer.exec_params {
            let from = self.bound.param(graph, p).addr();
            self.gpu.download(from, host_bytes_mut(mirror.param_mut(graph, p).0)).map_err(blame)?;
        }
        let Graph { layers, values, .. } = graph;
        let layer = &mut layers[i];
        if let Node::Sink(sink) = &mut layer.node {
            let stored = sink.store(&mirror.bottoms(values, &layer.bottoms));
            return stored.map_err(|e| layer.blame(e));
        }
        let layer = &graph.layers[i];
        if let Some(compute) = layer.compute() {
            let ran = compute.forward(mirror.forward(graph, i, host_call(graph, i, step)));
            ran.map_err(|e| layer.blame(e))?;
        }
        let blame = |e: Error| layer.blame(e);
        for (t, &top) in layer.tops.iter().enumerate() {
            if !self.bound.plan().top_is_view[i][t] {
                let to = self.bound.value(graph, top).addr();
                self.gpu.upload(host_bytes(mirror.value(graph, top)), to).map_err(blame)?;
            }
        }
        for (k, &p) in layer.exec_params.iter().enumerate() {
            if layer.plan.params.get(k).is_none_or(|planned| planned.state) {
                let to = self.bound.param(graph, p).addr();
                self.gpu.upload(host_bytes(mirror.param(graph, p)), to).map_err(blame)?;
            }
        }
        Ok(())
    }

    /// As [`OnDevice::forward_away`], backward; blobs and saved memory are as forward left them.
    pub(crate) fn backward_away(&self, graph: &Graph, mirror: &mut Bound<Host>, i: usize, step: &Step) -> Result<()> {
        let layer = &graph.layers[i];
        let blame = |e: Error| layer.blame(e);
        for &top in &layer.tops {
            if let (Some(from), Some(to)) = (self.bound.diff(graph, top), mirror.diff_mut(graph, top)) {
                self.gpu.download(from.addr(), host_bytes_mut(to)).map_err(blame)?;
            }
        }
        let learned: Vec<usize> = layer.exec_params.iter().copied().filter(|&p| graph.params[p].backward).collect();
        for &p in &learned {
            if let (Some(from), Some(to)) = (self.bound.param_diff(graph, p), mirror.param_mut(graph, p).1) {
                self.gpu.download(from.addr(), host_bytes_mut(to)).map_err(blame)?;
            }
        }
        if let Some(compute) = layer.compute() {
            compute.backward(mirror.backward(graph, i, host_call(graph, i, step))).map_err(blame)?;
        }
        for (b, &bottom) in layer.bottoms.iter().enumerate().filter(|(b, _)| layer.bottom_backward[*b]) {
            let (Some(from), Some(to)) = (mirror.diff(graph, bottom), self.bound.diff(graph, bottom)) else {
                return Err(Error::internal(format!("the gradient of bottom {b} has no memory")));
            };
            self.gpu.upload(host_bytes(from), to.addr()).map_err(blame)?;
        }
        for &p in &learned {
            if let (Some(from), Some(to)) = (mirror.param_diff(graph, p), self.bound.param_diff(graph, p)) {
                self.gpu.upload(host_bytes(from), to.addr()).map_err(blame)?;
            }
        }
        Ok(())
    }
}
