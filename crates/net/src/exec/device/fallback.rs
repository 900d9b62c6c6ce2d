//! Layers without a device half: they run on the host, between copies.

use lgm_core::{Error, Node, Result, Step};

use super::DeviceExec;
use crate::exec::views::{host_bytes, host_bytes_mut, host_call};
use crate::graph::Graph;

impl DeviceExec {
    /// Runs layer `i` forward on the host, from copies of what it reads, and copies back what it wrote.
    pub(super) fn forward_on_host(&mut self, graph: &mut Graph, i: usize, step: &Step) -> Result<()> {
        let layer = &graph.layers[i];
        let name = |e: Error| layer.in_layer(e);
        for &bottom in &layer.bottoms {
            let from = self.bound.value(graph, bottom).addr();
            let to = host_bytes_mut(self.host.value_mut(graph, bottom));
            self.gpu.download(from, to).map_err(name)?;
        }
        for &p in &layer.exec_params {
            let from = self.bound.param(graph, p).addr();
            self.gpu.download(from, host_bytes_mut(self.host.param_mut(graph, p).0)).map_err(name)?;
        }
        let Graph { layers, values, .. } = graph;
        let layer = &mut layers[i];
        if let Node::Sink(sink) = &mut layer.node {
            let stored = sink.store(&self.host.bottoms(values, &layer.bottoms));
            return stored.map_err(|e| layer.in_layer(e));
        }
        let layer = &graph.layers[i];
        if let Some(compute) = layer.compute() {
            let ran = compute.forward(self.host.forward(graph, i, host_call(graph, i, step)));
            ran.map_err(|e| layer.in_layer(e))?;
        }
        let name = |e: Error| layer.in_layer(e);
        for (t, &top) in layer.tops.iter().enumerate() {
            if !self.bound.plan().top_is_view[i][t] {
                let to = self.bound.value(graph, top).addr();
                self.gpu.upload(host_bytes(self.host.value(graph, top)), to).map_err(name)?;
            }
        }
        for (k, &p) in layer.exec_params.iter().enumerate() {
            if layer.plan.params.get(k).is_none_or(|planned| planned.state) {
                let to = self.bound.param(graph, p).addr();
                self.gpu.upload(host_bytes(self.host.param(graph, p)), to).map_err(name)?;
            }
        }
        Ok(())
    }

    /// As [`DeviceExec::forward_on_host`], backward; blobs and saved memory are as forward left them.
    pub(super) fn backward_on_host(&mut self, graph: &Graph, i: usize, step: &Step) -> Result<()> {
        let layer = &graph.layers[i];
        let name = |e: Error| layer.in_layer(e);
        for &top in &layer.tops {
            if let (Some(from), Some(to)) = (self.bound.diff(graph, top), self.host.diff_mut(graph, top)) {
                self.gpu.download(from.addr(), host_bytes_mut(to)).map_err(name)?;
            }
        }
        let learned: Vec<usize> = layer.exec_params.iter().copied().filter(|&p| graph.params[p].backward).collect();
        for &p in &learned {
            if let (Some(from), Some(to)) = (self.bound.param_diff(graph, p), self.host.param_mut(graph, p).1) {
                self.gpu.download(from.addr(), host_bytes_mut(to)).map_err(name)?;
            }
        }
        if let Some(compute) = layer.compute() {
            compute.backward(self.host.backward(graph, i, host_call(graph, i, step))).map_err(name)?;
        }
        for (b, &bottom) in layer.bottoms.iter().enumerate().filter(|(b, _)| layer.bottom_backward[*b]) {
            let (Some(from), Some(to)) = (self.host.diff(graph, bottom), self.bound.diff(graph, bottom)) else {
                return Err(Error::internal(format!("the gradient of bottom {b} has no memory")));
            };
            self.gpu.upload(host_bytes(from), to.addr()).map_err(name)?;
        }
        for &p in &learned {
            if let (Some(from), Some(to)) = (self.host.param_diff(graph, p), self.bound.param_diff(graph, p)) {
                self.gpu.upload(host_bytes(from), to.addr()).map_err(name)?;
            }
        }
        Ok(())
    }
}
