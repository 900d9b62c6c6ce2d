//! From offsets to views: the one place where a net's arena and parameters become the inputs and outputs of a layer.
//!
//! Safety rests on [`verify`], run once when a net is built: within one call no exclusive range meets any other range,
//! and every range lies inside its memory. [`Bound`] then hands out views for one call at a time from a net that is
//! borrowed exclusively for that call.

use lgm_core::{BlobSpec, Bwd, Error, Fwd, Host, Result, Step, View, ViewMut, Views, ViewsMut};

use crate::graph::{Graph, LayerNode, ValueId};
use crate::memory::Memory;
use crate::plan::MemoryPlan;

/// The memory behind one learnable parameter.
pub struct ParamMemory {
    /// Values.
    pub data: Memory,
    /// Gradients; absent in a net that runs no backward.
    pub diff: Option<Memory>,
}

/// A net's memory, bound to its graph.
pub struct Bound {
    plan: MemoryPlan,
    arena: Memory,
    /// By learnable parameter.
    pub params: Vec<ParamMemory>,
}

/// A range of the arena that one call touches: offset, length in bytes, exclusive.
type Range = (usize, usize, bool);

impl Bound {
    /// Allocates what a plan asks for and checks it.
    ///
    /// # Errors
    /// When the plan would let a layer's outputs overlap anything else it uses: a defect of the planner.
    pub fn new(graph: &Graph, plan: MemoryPlan, backward: bool) -> Result<Bound> {
        let params = graph
            .learnables
            .iter()
            .map(|l| {
                let bytes = graph.params[l.owner].spec.bytes();
                ParamMemory { data: Memory::new(bytes), diff: backward.then(|| Memory::new(bytes)) }
            })
            .collect();
        let bound = Bound { arena: Memory::new(plan.bytes), plan, params };
        for (i, layer) in graph.layers.iter().enumerate() {
            bound.verify(graph, i).map_err(|e| layer.blame(e))?;
        }
        Ok(bound)
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.plan.bytes
    }

    /// Whether top `t` of layer `i` is a view of a bottom.
    pub fn is_view(&self, i: usize, t: usize) -> bool {
        self.plan.top_is_view[i][t]
    }

    fn verify(&self, graph: &Graph, i: usize) -> Result<()> {
        let layer = &graph.layers[i];
        for (k, &p) in layer.exec_params.iter().enumerate() {
            let learnable = graph.params[p].learnable;
            if layer.exec_params[..k].iter().any(|&q| graph.params[q].learnable == learnable) {
                return Err(Error::config(format!(
                    "two parameters of one layer share the name '{}': give each its own",
                    graph.params[p].display
                )));
            }
        }
        let bytes = |v: ValueId| graph.values[v].spec.bytes();
        let written = layer.tops.iter().zip(&self.plan.top_is_view[i]).filter(|(_, view)| !**view);
        let mut ranges: Vec<Range> = written.map(|(&t, _)| (self.plan.data[t], bytes(t), true)).collect();
        let read = layer.bottoms.iter().zip(&self.plan.bottom_shared[i]).filter(|(_, shared)| !**shared);
        ranges.extend(read.map(|(&b, _)| (self.plan.data[b], bytes(b), false)));
        let local = |offsets: &[usize], specs: &[BlobSpec], exclusive| -> Vec<Range> {
            offsets.iter().zip(specs).map(|(&o, s)| (o, s.bytes(), exclusive)).collect()
        };
        ranges.extend(local(&self.plan.saved[i], &layer.plan.saved, true));
        ranges.extend(local(&self.plan.forward_scratch[i], &layer.plan.scratch, true));
        disjoint(&ranges, self.arena.len())?;
        if !layer.backward {
            return Ok(());
        }
        let mut ranges: Vec<Range> = Vec::new();
        for &b in &layer.plan.backward_bottoms {
            if let Some(&v) = layer.bottoms.get(b) {
                ranges.push((self.plan.data[v], bytes(v), false));
            }
        }
        for &t in &layer.plan.backward_tops {
            if let Some(&v) = layer.tops.get(t) {
                ranges.push((self.plan.data[v], bytes(v), false));
            }
        }
        for (t, &v) in layer.tops.iter().enumerate() {
            if !self.plan.diff_shared[i].contains(&Some(t)) {
                ranges.push((self.diff_offset(v)?, bytes(v), false));
            }
        }
        for (b, &v) in layer.bottoms.iter().enumerate() {
            if layer.bottom_backward[b] {
                ranges.push((self.diff_offset(v)?, bytes(v), true));
            }
        }
        ranges.extend(local(&self.plan.saved[i], &layer.plan.saved, false));
        ranges.extend(local(&self.plan.backward_scratch[i], &layer.plan.scratch, true));
        disjoint(&ranges, self.arena.len())
    }

    fn diff_offset(&self, v: ValueId) -> Result<usize> {
        self.plan.diff[v].ok_or_else(|| Error::internal("a gradient has no memory"))
    }

    /// Data of a value, for reading.
    pub fn value<'a>(&'a self, graph: &'a Graph, v: ValueId) -> View<'a, Host> {
        self.view(self.plan.data[v], &graph.values[v].spec)
    }

    /// Data of a value, for writing.
    pub fn value_mut<'a>(&'a mut self, graph: &'a Graph, v: ValueId) -> ViewMut<'a, Host> {
        self.view_mut(self.plan.data[v], &graph.values[v].spec)
    }

    /// Diff of a value, if it has one, for reading.
    pub fn diff<'a>(&'a self, graph: &'a Graph, v: ValueId) -> Option<View<'a, Host>> {
        self.plan.diff[v].map(|offset| self.view(offset, &graph.values[v].spec))
    }

    /// Diff of a value, if it has one, for writing.
    pub fn diff_mut<'a>(&'a mut self, graph: &'a Graph, v: ValueId) -> Option<ViewMut<'a, Host>> {
        self.plan.diff[v].map(|offset| self.view_mut(offset, &graph.values[v].spec))
    }

    /// Values of a parameter in its layer's shape, for reading.
    pub fn param<'a>(&'a self, graph: &'a Graph, p: usize) -> View<'a, Host> {
        let param = &graph.params[p];
        memory_view(&self.params[param.learnable].data, &param.spec)
    }

    /// Gradients of a parameter in its layer's shape, for reading.
    pub fn param_diff<'a>(&'a self, graph: &'a Graph, p: usize) -> Option<View<'a, Host>> {
        let param = &graph.params[p];
        self.params[param.learnable].diff.as_ref().map(|m| memory_view(m, &param.spec))
    }

    /// Values and gradients of a parameter's memory, for writing.
    pub fn param_mut<'a>(&'a mut self, graph: &'a Graph, p: usize) -> (ViewMut<'a, Host>, Option<ViewMut<'a, Host>>) {
        let param = &graph.params[p];
        let memory = &self.params[param.learnable];
        let diff = memory.diff.as_ref().map(|m| memory_view_mut(m, &param.spec));
        (memory_view_mut(&memory.data, &param.spec), diff)
    }

    /// The tops of a layer, for a source to fill.
    pub fn tops<'a>(&'a mut self, graph_values: &'a [crate::graph::Value], tops: &[ValueId]) -> Vec<ViewMut<'a, Host>> {
        tops.iter().map(|&t| self.view_mut(self.plan.data[t], &graph_values[t].spec)).collect()
    }

    /// The bottoms of a layer, for a sink to read.
    pub fn bottoms<'a>(&'a self, graph_values: &'a [crate::graph::Value], bottoms: &[ValueId]) -> Vec<View<'a, Host>> {
        bottoms.iter().map(|&b| self.view(self.plan.data[b], &graph_values[b].spec)).collect()
    }

    /// The inputs and outputs of layer `i`'s forward.
    pub fn forward<'a>(&'a mut self, graph: &'a Graph, i: usize, step: &'a Step) -> Fwd<'a, Host> {
        let layer = &graph.layers[i];
        let spec = |v: ValueId| &graph.values[v].spec;
        let bottoms: Views<'a, Host> = layer
            .bottoms
            .iter()
            .zip(&self.plan.bottom_shared[i])
            .map(|(&v, shared)| (!shared).then(|| self.view(self.plan.data[v], spec(v))))
            .collect();
        let tops = layer.tops.iter().zip(&self.plan.top_is_view[i]);
        Fwd {
            step,
            dtype: dtype(graph, layer),
            bottoms,
            tops: tops.map(|(&v, view)| (!view).then(|| self.view_mut(self.plan.data[v], spec(v)))).collect(),
            params: self.params_mut(graph, layer),
            saved: self.local_mut(&self.plan.saved[i], &layer.plan.saved),
            scratch: self.local_mut(&self.plan.forward_scratch[i], &layer.plan.scratch),
            clock: None,
            dynamic: None,
            fault: None,
        }
    }

    /// The inputs and outputs of layer `i`'s backward.
    pub fn backward<'a>(&'a mut self, graph: &'a Graph, i: usize, step: &'a Step) -> Bwd<'a, Host> {
        let layer = &graph.layers[i];
        let spec = |v: ValueId| &graph.values[v].spec;
        let data = |ids: &[ValueId], wanted: &[usize]| -> Views<'a, Host> {
            let each = |(k, &v): (usize, &ValueId)| wanted.contains(&k).then(|| self.view(self.plan.data[v], spec(v)));
            ids.iter().enumerate().map(each).collect()
        };
        let diff = |v: ValueId| self.plan.diff[v];
        let shared = &self.plan.diff_shared[i];
        let top_diffs = layer
            .tops
            .iter()
            .enumerate()
            .map(|(t, &v)| diff(v).filter(|_| !shared.contains(&Some(t))).map(|o| self.view(o, spec(v))));
        let bottom_diffs = layer
            .bottoms
            .iter()
            .enumerate()
            .map(|(b, &v)| diff(v).filter(|_| layer.bottom_backward[b]).map(|o| self.view_mut(o, spec(v))));
        let param = |p: usize| &graph.params[p];
        Bwd {
            step,
            dtype: dtype(graph, layer),
            bottoms: data(&layer.bottoms, &layer.plan.backward_bottoms),
            tops: data(&layer.tops, &layer.plan.backward_tops),
            top_diffs: top_diffs.collect(),
            bottom_diffs: bottom_diffs.collect(),
            params: layer.exec_params.iter().map(|&p| Some(self.param(graph, p))).collect(),
            param_diffs: layer
                .exec_params
                .iter()
                .map(|&p| {
                    let memory = self.params[param(p).learnable].diff.as_ref();
                    memory.filter(|_| param(p).backward).map(|m| memory_view_mut(m, &param(p).spec))
                })
                .collect(),
            saved: self.local(&self.plan.saved[i], &layer.plan.saved),
            scratch: self.local_mut(&self.plan.backward_scratch[i], &layer.plan.scratch),
            clock: None,
            dynamic: None,
            fault: None,
        }
    }

    fn params_mut<'a>(&'a self, graph: &'a Graph, layer: &'a LayerNode) -> ViewsMut<'a, Host> {
        let each = |&p: &usize| {
            let param = &graph.params[p];
            Some(memory_view_mut(&self.params[param.learnable].data, &param.spec))
        };
        layer.exec_params.iter().map(each).collect()
    }

    fn local<'a>(&'a self, offsets: &[usize], specs: &'a [BlobSpec]) -> Views<'a, Host> {
        offsets.iter().zip(specs).map(|(&o, s)| Some(self.view(o, s))).collect()
    }

    fn local_mut<'a>(&'a self, offsets: &[usize], specs: &'a [BlobSpec]) -> ViewsMut<'a, Host> {
        offsets.iter().zip(specs).map(|(&o, s)| Some(self.view_mut(o, s))).collect()
    }

    fn view<'a>(&'a self, offset: usize, spec: &'a BlobSpec) -> View<'a, Host> {
        // SAFETY: `verify` checked bounds and that nothing of the same call writes here; the arena starts zeroed and
        // any bytes are valid floats; offsets are multiples of the alignment.
        unsafe { View::from_addr(self.arena.addr(offset), spec) }
    }

    // Callers hold the net exclusively (`&mut self` on every public path) and take each range once a call.
    fn view_mut<'a>(&'a self, offset: usize, spec: &'a BlobSpec) -> ViewMut<'a, Host> {
        // SAFETY: as for `view`; `verify` checked that no other range of the same call meets this one.
        unsafe { ViewMut::from_addr(self.arena.addr(offset), spec) }
    }
}

fn memory_view<'a>(memory: &'a Memory, spec: &'a BlobSpec) -> View<'a, Host> {
    // SAFETY: parameters of one memory have equal counts (checked when they are shared), and it starts zeroed.
    unsafe { View::from_addr(memory.addr(0), spec) }
}

fn memory_view_mut<'a>(memory: &'a Memory, spec: &'a BlobSpec) -> ViewMut<'a, Host> {
    // SAFETY: as for `memory_view`; callers hold the net exclusively, and `verify` refuses a layer that names one
    // memory twice.
    unsafe { ViewMut::from_addr(memory.addr(0), spec) }
}

fn dtype(graph: &Graph, layer: &LayerNode) -> lgm_core::DType {
    let first = layer.tops.first().or(layer.bottoms.first());
    first.map_or(lgm_core::DType::F32, |&v| graph.values[v].spec.dtype)
}

fn disjoint(ranges: &[Range], len: usize) -> Result<()> {
    for (k, a) in ranges.iter().enumerate() {
        if a.0 + a.1 > len {
            return Err(Error::internal("a blob lies outside the arena"));
        }
        for b in &ranges[k + 1..] {
            if (a.2 || b.2) && a.0 < b.0 + b.1 && b.0 < a.0 + a.1 {
                return Err(Error::internal("the memory plan lets an output overlap another blob of its layer"));
            }
        }
    }
    Ok(())
}
