//! The memory plan: which values share storage, and where everything lies in the net's one arena.
//!
//! # Invariants
//!
//! - A value's bytes are its own from its producer's forward until the last read of it: by its consumer's forward, by the
//!   backward passes that say they read it, or by whoever looks after the pass if it is an output or kept.
//! - A value takes over its bottom's bytes only where the layer says that it can and nobody reads the bottom, or what else
//!   lies there, later; a view leaves them as they are. Values have one producer and at most one consumer
//!   ([`Graph::check`]), so that these reads are all there are.
//!
//! [`crate::Options::poison`] has a net on the host write NaN over bytes as soon as they are nobody's, and
//! [`Keep::Apart`] gives a plan to compare with in which no two things share any.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use lgm_core::{BlobSpec, Node, Sharing};

use super::pack::{Region, pack, round_up};
use crate::graph::{Graph, LayerNode, ValueId};

/// Which blobs stay readable after a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// The net's outputs only; everything else may be overwritten once it is no longer needed.
    #[default]
    Outputs,
    /// The outputs and the named blobs.
    Named(Vec<String>),
    /// Every blob.
    All,
    /// Every blob before and after each layer in place, and every gradient, each in memory of its own. No layers are
    /// computed together: what other plans can be compared with.
    Apart,
}

impl Keep {
    pub(crate) fn holds(&self, name: &str) -> bool {
        match self {
            Keep::Outputs => false,
            Keep::Named(names) => names.iter().any(|n| n == name),
            Keep::All | Keep::Apart => true,
        }
    }
}

/// Offsets into the arena, in bytes.
#[derive(Clone, Debug, Default)]
pub struct MemoryPlan {
    /// Of each value's data; nowhere (the greatest number) for a value between fused layers.
    pub data: Vec<usize>,
    /// Of each value's diff, for those that have one.
    pub diff: Vec<Option<usize>>,
    /// Of each layer's saved memory; empty for a layer that runs no backward.
    pub saved: Vec<Vec<usize>>,
    /// Of each layer's scratch in forward.
    pub forward_scratch: Vec<Vec<usize>>,
    /// Of each layer's scratch in backward.
    pub backward_scratch: Vec<Vec<usize>>,
    /// For each layer and bottom: whether a top shares its data memory.
    pub bottom_shared: Vec<Vec<bool>>,
    /// For each layer and top: whether it is a view of a bottom, so that forward has nothing to write.
    pub top_is_view: Vec<Vec<bool>>,
    /// For each layer and bottom: the top that shares its diff memory.
    pub diff_shared: Vec<Vec<Option<usize>>>,
    /// The arena's length.
    pub bytes: usize,
    /// By time, a layer's forward or backward: the offset and length of what nobody reads after it.
    pub released: Vec<Vec<(usize, usize)>>,
}

/// Where a layer of a net on a device runs, as far as memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In the memory that is planned.
    Here,
    /// On the host, between copies: only its blobs lie here.
    Host,
    /// In other memory before the pass: its tops hold from the beginning.
    Feed,
}

struct Planner<'a> {
    graph: &'a Graph,
    keep: &'a Keep,
    roles: &'a [Role],
    regions: Vec<Region>,
    end: usize,
}

impl Planner<'_> {
    fn region(&mut self, bytes: usize, start: usize, end: usize) -> usize {
        let (start, end) = if self.apart() { (0, self.end) } else { (start, end) };
        self.regions.push(Region { bytes, start, end });
        self.regions.len().saturating_sub(1)
    }

    fn apart(&self) -> bool {
        *self.keep == Keep::Apart
    }

    /// What a layer reads of its own in backward, and keeps, in this memory.
    fn own<'b>(&self, layer: usize, list: &'b [usize]) -> &'b [usize] {
        if self.roles[layer] == Role::Here { list } else { &[] }
    }

    fn backward_time(&self, layer: usize) -> usize {
        self.end.saturating_sub(layer).saturating_sub(1)
    }

    /// Whether `layer` may write over the memory of its bottom `b`, which `members` share: nobody reads any of them
    /// later, nor does the layer itself through another bottom.
    fn may_overwrite(&self, members: &[ValueId], layer: &LayerNode, b: usize) -> bool {
        let bottom = layer.bottoms[b];
        members.iter().all(|&m| {
            let other = m != bottom && layer.bottoms.contains(&m);
            !other && self.graph.values[bottom].consumer.is_some_and(|(i, _)| self.last_read(m) <= i)
        })
    }

    /// The last time a value's data is read, its producer's and consumer's backward included.
    fn last_read(&self, value: ValueId) -> usize {
        let v = &self.graph.values[value];
        let (producer, top) = v.producer;
        let mut last = producer;
        let kept = self.keep.holds(&v.name) && self.graph.by_name.get(&v.name) == Some(&value);
        if kept || v.consumer.is_none() {
            last = self.end;
        }
        if self.graph.layers[producer].backward
            && self.own(producer, &self.graph.layers[producer].plan.backward_tops).contains(&top)
        {
            last = last.max(self.backward_time(producer));
        }
        if let Some((consumer, bottom)) = v.consumer {
            let layer = &self.graph.layers[consumer];
            last = last.max(consumer);
            if layer.backward && self.own(consumer, &layer.plan.backward_bottoms).contains(&bottom) {
                last = last.max(self.backward_time(consumer));
            }
        }
        last
    }
}

/// Plans the memory of a graph whose backward marks are set; `roles` by layer, every offset a multiple of `align`.
pub fn plan(graph: &Graph, keep: &Keep, roles: &[Role], align: usize) -> MemoryPlan {
    let n = graph.layers.len();
    let mut p = Planner { graph, keep, roles, regions: Vec::new(), end: n.saturating_mul(2) };
    let mut out = MemoryPlan::default();
    let mut storage = vec![usize::MAX; graph.values.len()];
    let mut members: Vec<Vec<ValueId>> = Vec::new();
    let mut storage_region: Vec<usize> = Vec::new();
    for (i, layer) in graph.layers.iter().enumerate() {
        let mut shared = vec![false; layer.bottoms.len()];
        let mut is_view = vec![false; layer.tops.len()];
        for (j, &top) in layer.tops.iter().enumerate() {
            let last = p.last_read(top);
            // Of the bottoms this top may share with, the first whose memory nobody needs unchanged later.
            let found = layer.plan.share_data.iter().find(|&&(t, b, how)| {
                let group = storage[layer.bottoms[b]];
                let same_size = graph.values[layer.bottoms[b]].bytes() == graph.values[top].bytes();
                t == j
                    && same_size
                    && !p.apart()
                    && (!shared[b] || how == Sharing::View)
                    && (how == Sharing::View || p.may_overwrite(&members[group], layer, b))
            });
            match found {
                Some(&(_, b, how)) => {
                    shared[b] = true;
                    is_view[j] = how == Sharing::View;
                    storage[top] = storage[layer.bottoms[b]];
                    members[storage[top]].push(top);
                    let region = storage_region[storage[top]];
                    p.regions[region].end = p.regions[region].end.max(last);
                }
                None => {
                    storage[top] = members.len();
                    members.push(vec![top]);
                    let start = if roles[i] == Role::Feed { 0 } else { i };
                    let region = p.region(graph.values[top].bytes(), start, last);
                    storage_region.push(region);
                }
            }
        }
        out.bottom_shared.push(shared);
        out.top_is_view.push(is_view);
    }
    let mut diff_region: Vec<Option<usize>> = vec![None; graph.values.len()];
    out.diff_shared = graph.layers.iter().map(|l| vec![None; l.bottoms.len()]).collect();
    for (i, layer) in graph.layers.iter().enumerate().rev() {
        if !layer.backward || !matches!(layer.node, Node::Compute(_)) {
            continue;
        }
        let now = p.backward_time(i);
        for &top in &layer.tops {
            if diff_region[top].is_none() {
                diff_region[top] = Some(p.region(graph.values[top].bytes(), now, now));
            }
        }
        for (b, &bottom) in layer.bottoms.iter().enumerate() {
            if !layer.bottom_backward[b] {
                continue;
            }
            let kept = keep.holds(&graph.values[bottom].name);
            let until = if kept { p.end } else { p.backward_time(graph.values[bottom].producer.0) };
            let partner = layer.plan.share_diff.iter().find(|&&(t, bb)| {
                bb == b
                    && !p.apart()
                    && !keep.holds(&graph.values[layer.tops[t]].name)
                    && !out.diff_shared[i].contains(&Some(t))
                    && graph.values[layer.tops[t]].bytes() == graph.values[bottom].bytes()
            });
            diff_region[bottom] = match partner {
                Some(&(t, _)) => {
                    out.diff_shared[i][b] = Some(t);
                    let region = diff_region[layer.tops[t]];
                    if let Some(r) = region {
                        p.regions[r].end = p.regions[r].end.max(until);
                    }
                    region
                }
                None => Some(p.region(graph.values[bottom].bytes(), now, until)),
            };
        }
    }
    let (mut saved, mut forward, mut backward) = (Vec::new(), Vec::new(), Vec::new());
    for (i, layer) in graph.layers.iter().enumerate() {
        let back = p.backward_time(i);
        let each = |p: &mut Planner, specs: &[BlobSpec], on: bool, start, end| -> Vec<usize> {
            let on = on && roles[i] == Role::Here;
            specs.iter().filter(|_| on).map(|s| p.region(s.bytes(), start, end)).collect()
        };
        saved.push(each(&mut p, &layer.plan.saved, layer.backward, i, back));
        forward.push(each(&mut p, &layer.plan.scratch, true, i, i));
        backward.push(each(&mut p, &layer.plan.scratch, layer.backward, back, back));
    }
    let (offsets, bytes) = pack(&p.regions, align);
    let at = |ids: Vec<Vec<usize>>| ids.into_iter().map(|v| v.into_iter().map(|r| offsets[r]).collect()).collect();
    out.saved = at(saved);
    out.forward_scratch = at(forward);
    out.backward_scratch = at(backward);
    out.data = storage.iter().map(|&s| storage_region.get(s).map_or(usize::MAX, |&r| offsets[r])).collect();
    out.diff = diff_region.iter().map(|r| r.map(|r| offsets[r])).collect();
    out.bytes = bytes;
    out.released = vec![Vec::new(); p.end];
    for (region, &offset) in p.regions.iter().zip(&offsets).filter(|(region, _)| region.end < p.end) {
        out.released[region.end].push((offset, region.bytes));
    }
    out
}

/// Plans the memory of those layers of a graph that run elsewhere than the rest: every blob of theirs, and what they
/// keep, by itself for good, so that what forward left there is there in backward.
pub fn host_part(graph: &Graph, roles: &[Role]) -> MemoryPlan {
    let mut bytes = 0;
    let mut take = |spec: &BlobSpec| {
        let at = bytes;
        bytes = round_up(spec.bytes()).saturating_add(bytes);
        at
    };
    let mut out = MemoryPlan {
        data: vec![usize::MAX; graph.values.len()],
        diff: vec![None; graph.values.len()],
        bottom_shared: graph.layers.iter().map(|l| vec![false; l.bottoms.len()]).collect(),
        top_is_view: graph.layers.iter().map(|l| vec![false; l.tops.len()]).collect(),
        diff_shared: graph.layers.iter().map(|l| vec![None; l.bottoms.len()]).collect(),
        ..Default::default()
    };
    for (layer, role) in graph.layers.iter().zip(roles) {
        let on_host = *role != Role::Here;
        for &v in layer.bottoms.iter().chain(&layer.tops).filter(|_| on_host) {
            let spec = &graph.values[v].spec;
            if out.data[v] == usize::MAX {
                out.data[v] = take(spec);
            }
            if layer.backward && out.diff[v].is_none() {
                out.diff[v] = Some(take(spec));
            }
        }
        let mut all = |specs: &[BlobSpec], on: bool| -> Vec<usize> {
            specs.iter().filter(|_| on && on_host).map(&mut take).collect()
        };
        out.saved.push(all(&layer.plan.saved, layer.backward));
        let scratch = all(&layer.plan.scratch, true);
        out.backward_scratch.push(if layer.backward { scratch.clone() } else { Vec::new() });
        out.forward_scratch.push(scratch);
    }
    out.bytes = bytes;
    out
}
