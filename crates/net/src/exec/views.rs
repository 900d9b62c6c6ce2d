//! From offsets to views: the one place where a net's arena and parameters become the inputs and outputs of a layer, in
//! whichever memory space they live.
//!
//! Safety rests on [`Bound::verify`], run once when a net is built: within one call no exclusive range meets any other
//! range, and every range lies inside its memory; extents that vary from pass to pass stay within those verified
//! ([`super::rows`]). [`Bound`] then hands out views for one call at a time from a net that
//! is borrowed exclusively for that call.

use lgm_core::{
    BlobSpec, Bwd, DType, Device, DevicePtr, Error, Fwd, Host, HostCall, Result, Space, Step, View, ViewMut, Views,
    ViewsMut, memory,
};

use super::arena::Memory;
use crate::graph::{Graph, LayerNode, ValueId};
use crate::passes::memory::MemoryPlan;

/// A space that nets can live in: how its memory is held.
pub trait MemorySpace: Space {
    /// A run of bytes.
    type Memory;
    /// The address of the byte at `offset`, which must not lie beyond the end.
    fn addr(memory: &Self::Memory, offset: usize) -> Self::Addr;
    /// The length in bytes.
    fn len(memory: &Self::Memory) -> usize;
}

impl MemorySpace for Host {
    type Memory = Memory;

    fn addr(memory: &Memory, offset: usize) -> *mut u8 {
        memory.addr(offset)
    }

    fn len(memory: &Memory) -> usize {
        memory.len()
    }
}

/// A run of bytes on a device, within a block that somebody else holds.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The first byte.
    pub at: DevicePtr,
    /// The length.
    pub bytes: usize,
}

impl MemorySpace for Device {
    type Memory = Span;

    fn addr(memory: &Span, offset: usize) -> DevicePtr {
        memory.at.offset(offset)
    }

    fn len(memory: &Span) -> usize {
        memory.bytes
    }
}

/// The memory behind one learnable parameter.
pub struct ParamMemory<S: MemorySpace> {
    /// Values.
    pub data: S::Memory,
    /// Gradients; absent in a net that runs no backward.
    pub diff: Option<S::Memory>,
}

/// A net's memory in one space, bound to its graph.
pub struct Bound<S: MemorySpace> {
    plan: MemoryPlan,
    arena: S::Memory,
    /// By learnable parameter.
    pub params: Vec<ParamMemory<S>>,
}

/// A range of the arena that one call touches: offset, length in bytes, exclusive.
type Touched = (usize, usize, bool);

impl Bound<Host> {
    /// Allocates what a plan asks for, for layers that `here` says run in this memory, and checks it. `params` tells
    /// which learnable parameters get memory.
    ///
    /// # Errors
    /// When there is less memory, with the layer that takes the most, and see [`Bound::bind`].
    pub fn host(
        graph: &Graph,
        plan: MemoryPlan,
        backward: bool,
        here: &dyn Fn(usize) -> bool,
        params: &dyn Fn(usize) -> bool,
    ) -> Result<Bound<Host>> {
        let bytes = |l: usize| if params(l) { graph.params[graph.learnables[l].owner].spec.bytes() } else { 0 };
        let copies = 1 + usize::from(backward);
        let wanted = (0..graph.learnables.len()).map(|l| Memory::size(bytes(l)).saturating_mul(copies));
        let wanted = wanted.fold(0, usize::saturating_add);
        let say = |bytes: usize| memory::in_units(bytes as u64);
        let (among, and) = if backward { (", gradients", " and their gradients") } else { ("", "") };
        let what = format!(
            "the net, of which this layer is the largest ({} for blobs{among} and scratch, {} for parameters{and}),",
            say(plan.bytes),
            say(wanted),
        );
        let name = |e: Error| match graph.largest(backward) {
            Some(layer) => layer.in_layer(e),
            None => e,
        };
        memory::check(Memory::size(plan.bytes).saturating_add(wanted), &what).map_err(name)?;
        let each = |l: usize| {
            let learnable = &graph.params[graph.learnables[l].owner];
            let what = format!("parameter {}", learnable.display);
            let memory = || Memory::new(bytes(l), &what).map_err(|e| graph.layers[learnable.layer].in_layer(e));
            Ok(ParamMemory { data: memory()?, diff: backward.then(memory).transpose()? })
        };
        let params = (0..graph.learnables.len()).map(each).collect::<Result<_>>()?;
        let arena = Memory::new(plan.bytes, &what).map_err(name)?;
        Bound::bind(graph, arena, plan, params, here)
    }

    /// Fills the arena with NaN.
    pub fn poison_all(&mut self) {
        self.arena.bytes_mut().fill(POISON);
    }

    /// Fills what nobody reads after a layer's forward or backward with NaN.
    pub fn poison_released(&mut self, time: usize) {
        for &(offset, bytes) in &self.plan.released[time] {
            self.arena.bytes_mut()[offset..offset + bytes].fill(POISON);
        }
    }
}

/// Every byte of a NaN, in single and in double precision.
const POISON: u8 = 0xff;

impl<S: MemorySpace> Bound<S> {
    /// Puts a plan, memory and parameters together and checks them for the layers that `here` says run in this memory.
    ///
    /// # Errors
    /// When the plan would let a layer's outputs overlap anything else it uses: a defect of the planner.
    pub fn bind(
        graph: &Graph,
        arena: S::Memory,
        plan: MemoryPlan,
        params: Vec<ParamMemory<S>>,
        here: &dyn Fn(usize) -> bool,
    ) -> Result<Bound<S>> {
        let bound = Bound { plan, arena, params };
        for (i, layer) in graph.layers.iter().enumerate().filter(|(i, _)| here(*i)) {
            bound.verify(graph, i).map_err(|e| layer.in_layer(e))?;
        }
        Ok(bound)
    }

    /// Where everything lies.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
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
        let bytes = |v: ValueId| graph.values[v].bytes();
        let written = layer.tops.iter().zip(&self.plan.top_is_view[i]).filter(|(_, view)| !**view);
        let mut ranges: Vec<Touched> = written.map(|(&t, _)| (self.plan.data[t], bytes(t), true)).collect();
        let read = layer.bottoms.iter().zip(&self.plan.bottom_shared[i]).filter(|(_, shared)| !**shared);
        ranges.extend(read.map(|(&b, _)| (self.plan.data[b], bytes(b), false)));
        let local = |offsets: &[usize], specs: &[BlobSpec], exclusive| -> Vec<Touched> {
            offsets.iter().zip(specs).map(|(&o, s)| (o, s.bytes(), exclusive)).collect()
        };
        ranges.extend(local(&self.plan.saved[i], &layer.plan.saved, true));
        ranges.extend(local(&self.plan.forward_scratch[i], &layer.plan.scratch, true));
        disjoint(&ranges, S::len(&self.arena))?;
        if !layer.backward {
            return Ok(());
        }
        let mut ranges: Vec<Touched> = Vec::new();
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
        disjoint(&ranges, S::len(&self.arena))
    }

    fn diff_offset(&self, v: ValueId) -> Result<usize> {
        self.plan.diff[v].ok_or_else(|| Error::internal("a gradient has no memory"))
    }

    /// Data of a value, for reading.
    pub fn value<'a>(&'a self, graph: &'a Graph, v: ValueId) -> View<'a, S> {
        self.view(self.plan.data[v], &graph.values[v].spec)
    }

    /// Data of a value, for writing.
    pub fn value_mut<'a>(&'a mut self, graph: &'a Graph, v: ValueId) -> ViewMut<'a, S> {
        self.view_mut(self.plan.data[v], &graph.values[v].spec)
    }

    /// Diff of a value, if it has one, for reading.
    pub fn diff<'a>(&'a self, graph: &'a Graph, v: ValueId) -> Option<View<'a, S>> {
        self.plan.diff[v].map(|offset| self.view(offset, &graph.values[v].spec))
    }

    /// Diff of a value, if it has one, for writing.
    pub fn diff_mut<'a>(&'a mut self, graph: &'a Graph, v: ValueId) -> Option<ViewMut<'a, S>> {
        self.plan.diff[v].map(|offset| self.view_mut(offset, &graph.values[v].spec))
    }

    /// Values of a parameter in its layer's shape, for reading.
    pub fn param<'a>(&'a self, graph: &'a Graph, p: usize) -> View<'a, S> {
        let param = &graph.params[p];
        memory_view::<S>(&self.params[param.learnable].data, &param.spec)
    }

    /// Gradients of a parameter in its layer's shape, for reading.
    pub fn param_diff<'a>(&'a self, graph: &'a Graph, p: usize) -> Option<View<'a, S>> {
        let param = &graph.params[p];
        self.params[param.learnable].diff.as_ref().map(|m| memory_view::<S>(m, &param.spec))
    }

    /// Values and gradients of a parameter's memory, for writing.
    pub fn param_mut<'a>(&'a mut self, graph: &'a Graph, p: usize) -> (ViewMut<'a, S>, Option<ViewMut<'a, S>>) {
        let param = &graph.params[p];
        let memory = &self.params[param.learnable];
        let diff = memory.diff.as_ref().map(|m| memory_view_mut::<S>(m, &param.spec));
        (memory_view_mut::<S>(&memory.data, &param.spec), diff)
    }

    /// The tops of a layer, for a source to fill.
    pub fn tops<'a>(&'a mut self, graph_values: &'a [crate::graph::Value], tops: &[ValueId]) -> Vec<ViewMut<'a, S>> {
        tops.iter().map(|&t| self.view_mut(self.plan.data[t], &graph_values[t].spec)).collect()
    }

    /// The bottoms of a layer, for a sink to read.
    pub fn bottoms<'a>(&'a self, graph_values: &'a [crate::graph::Value], bottoms: &[ValueId]) -> Vec<View<'a, S>> {
        bottoms.iter().map(|&b| self.view(self.plan.data[b], &graph_values[b].spec)).collect()
    }

    /// The inputs and outputs of layer `i`'s forward.
    pub fn forward<'a>(&'a mut self, graph: &'a Graph, i: usize, call: S::Call<'a>) -> Fwd<'a, S> {
        let layer = &graph.layers[i];
        let spec = |v: ValueId| &graph.values[v].spec;
        let bottoms: Views<'a, S> = layer
            .bottoms
            .iter()
            .zip(&self.plan.bottom_shared[i])
            .map(|(&v, shared)| (!shared).then(|| self.view(self.plan.data[v], spec(v))))
            .collect();
        let tops = layer.tops.iter().zip(&self.plan.top_is_view[i]);
        Fwd {
            call,
            bottoms,
            tops: tops.map(|(&v, view)| (!view).then(|| self.view_mut(self.plan.data[v], spec(v)))).collect(),
            params: self.params_mut(graph, layer),
            saved: self.local_mut(&self.plan.saved[i], &layer.plan.saved),
            scratch: self.local_mut(&self.plan.forward_scratch[i], &layer.plan.scratch),
        }
    }

    /// The inputs and outputs of layer `i`'s backward.
    pub fn backward<'a>(&'a mut self, graph: &'a Graph, i: usize, call: S::Call<'a>) -> Bwd<'a, S> {
        let layer = &graph.layers[i];
        let spec = |v: ValueId| &graph.values[v].spec;
        let data = |ids: &[ValueId], wanted: &[usize]| -> Views<'a, S> {
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
            call,
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
                    memory.filter(|_| param(p).backward).map(|m| memory_view_mut::<S>(m, &param(p).spec))
                })
                .collect(),
            saved: self.local(&self.plan.saved[i], &layer.plan.saved),
            scratch: self.local_mut(&self.plan.backward_scratch[i], &layer.plan.scratch),
        }
    }

    fn params_mut<'a>(&'a self, graph: &'a Graph, layer: &'a LayerNode) -> ViewsMut<'a, S> {
        let each = |&p: &usize| {
            let param = &graph.params[p];
            Some(memory_view_mut::<S>(&self.params[param.learnable].data, &param.spec))
        };
        layer.exec_params.iter().map(each).collect()
    }

    fn local<'a>(&'a self, offsets: &[usize], specs: &'a [BlobSpec]) -> Views<'a, S> {
        offsets.iter().zip(specs).map(|(&o, s)| Some(self.view(o, s))).collect()
    }

    fn local_mut<'a>(&'a self, offsets: &[usize], specs: &'a [BlobSpec]) -> ViewsMut<'a, S> {
        offsets.iter().zip(specs).map(|(&o, s)| Some(self.view_mut(o, s))).collect()
    }

    fn view<'a>(&'a self, offset: usize, spec: &'a BlobSpec) -> View<'a, S> {
        // SAFETY: `verify` checked bounds and that nothing of the same call writes here; the arena starts zeroed and
        // any bytes are valid floats; offsets are multiples of the alignment.
        unsafe { View::from_addr(S::addr(&self.arena, offset), spec) }
    }

    // Callers hold the net exclusively (`&mut self` on every public path) and take each range once a call.
    fn view_mut<'a>(&'a self, offset: usize, spec: &'a BlobSpec) -> ViewMut<'a, S> {
        // SAFETY: as for `view`; `verify` checked that no other range of the same call meets this one.
        unsafe { ViewMut::from_addr(S::addr(&self.arena, offset), spec) }
    }
}

fn memory_view<'a, S: MemorySpace>(memory: &'a S::Memory, spec: &'a BlobSpec) -> View<'a, S> {
    // SAFETY: parameters of one memory have equal counts (checked when they are shared), and it starts zeroed.
    unsafe { View::from_addr(S::addr(memory, 0), spec) }
}

fn memory_view_mut<'a, S: MemorySpace>(memory: &'a S::Memory, spec: &'a BlobSpec) -> ViewMut<'a, S> {
    // SAFETY: as for `memory_view`; callers hold the net exclusively, and `verify` refuses a layer that names one
    // memory twice.
    unsafe { ViewMut::from_addr(S::addr(memory, 0), spec) }
}

/// What layer `i` is called with on the host.
pub fn host_call<'a>(graph: &Graph, i: usize, step: &'a Step) -> HostCall<'a> {
    let layer = &graph.layers[i];
    let first = layer.tops.first().or(layer.bottoms.first());
    HostCall { step, dtype: first.map_or(DType::F32, |&v| graph.values[v].spec.dtype) }
}

fn disjoint(ranges: &[Touched], len: usize) -> Result<()> {
    for (k, a) in ranges.iter().enumerate() {
        if a.0.saturating_add(a.1) > len {
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

/// The bytes of a blob.
pub fn host_bytes(view: View<'_, Host>) -> &[u8] {
    // SAFETY: whoever made the view vouched for address, count and lifetime; any bytes are valid as bytes.
    unsafe { std::slice::from_raw_parts(view.addr(), view.shape().count() * view.dtype().size()) }
}

/// The bytes of a blob, for writing.
pub fn host_bytes_mut(view: ViewMut<'_, Host>) -> &mut [u8] {
    // SAFETY: as for `host_bytes`, and exclusiveness; any bytes are valid floats.
    unsafe { std::slice::from_raw_parts_mut(view.addr(), view.shape().count() * view.dtype().size()) }
}
