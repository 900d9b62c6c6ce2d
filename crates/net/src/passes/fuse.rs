//! Fusion: runs of layers that one layer of ours computes in fewer passes over memory, BatchNorm with Scale, a sum and ReLU
//! above all. The layers stay in the graph with their names and parameters; the last of a run computes for all.
//!
//! A ReLU that is not among them is computed, forward, by the layer that makes its bottom, if that can: the value is
//! clamped as it is written and the ReLU's top is a view of it. Backward each does its own.
//!
//! A run is left alone when somebody could see the difference: a blob between its layers is kept, weighs in the loss or
//! has its gradient steered by `propagate_down`.
//!
//! # Invariants
//!
//! - A run is a path: each value between its layers is written by the one and read by the next, and by nobody else.
//! - Every layer is computed once: by itself, or by the last layer of the one run that it is part of. Of two runs that
//!   meet in a layer, as both branches of a residual block do in its sum, the first takes the layer and the other ends
//!   before it.
//! - Every parameter is computed with by one layer alone: its own, or the last of its run. Statistics that several layers
//!   share are updated in the order of the prototxt, so such layers are left alone.
//! - A layer that applies a ReLU is part of no run, and neither is the ReLU.
//!
//! [`Graph::check`] asserts those that concern the graph in debug builds.

use lgm_core::{BuildCx, Node, Plan, Registry, Result};
use tracing::info;

use super::memory::Keep;
use crate::graph::Graph;

/// Longest run looked at.
const LONGEST: usize = 4;

/// Replaces every run of layers that the registry has a rule for; with `device`, only by layers that run on one. Then has
/// layers apply what follows them, where the registry has a rule for that.
///
/// # Errors
/// When a fused layer refuses what its parts accepted: a defect.
pub fn fuse(graph: &mut Graph, registry: &Registry, cx: BuildCx, keep: &Keep, device: bool) -> Result<()> {
    // By layer: whether it is one of a run that is computed together.
    let mut fused = vec![false; graph.layers.len()];
    for first in 0..graph.layers.len() {
        let run = run_from(graph, first, keep, &fused);
        let params: Vec<_> = run.iter().map(|&i| &graph.layers[i].param).collect();
        let Some((node, len)) = registry.fuse(&params, &cx)? else { continue };
        let runs = |node: &Node| matches!(node, Node::Compute(layer) if layer.device().is_some());
        let shared = run[..len].iter().flat_map(|&i| &graph.layers[i].params).any(|&p| graph.shares_state(p));
        if shared || (device && !runs(&node)) {
            continue;
        }
        fuse_run(graph, &run[..len], node).map_err(|e| graph.layers[first].in_layer(e))?;
        run[..len].iter().for_each(|&i| fused[i] = true);
    }
    for layer in 0..graph.layers.len() {
        // The last of a run has its own name still, but is another layer.
        match passed_on(graph, layer, keep) {
            Some(relu) if !fused[layer] && !fused[relu] => {
                fuse_relu(graph, registry, layer, relu).map_err(|e| graph.layers[relu].in_layer(e))?;
            }
            _ => {}
        }
    }
    if cfg!(debug_assertions) {
        graph.check();
    }
    Ok(())
}

/// The layers that follow one another from `first` on, each reading what the one before makes and, beside that, at most
/// what others made; none that is `fused` already.
fn run_from(graph: &Graph, first: usize, keep: &Keep, fused: &[bool]) -> Vec<usize> {
    let free = |&layer: &usize| !fused[layer];
    let start = Some(first).filter(free);
    std::iter::successors(start, |&layer| passed_on(graph, layer, keep).filter(free)).take(LONGEST).collect()
}

/// The layer that reads the only top of `layer`, where nobody else sees that.
fn passed_on(graph: &Graph, layer: usize, keep: &Keep) -> Option<usize> {
    let plain = |i: usize| {
        let layer = &graph.layers[i];
        layer.tops.len() == 1 && layer.param.propagate_down.is_empty() && layer.fused_into.is_none()
    };
    let value = *graph.layers[layer].tops.first().filter(|_| plain(layer))?;
    let v = &graph.values[value];
    let kept = graph.by_name.get(&v.name) == Some(&value) && keep.holds(&v.name);
    let (next, _) = v.consumer.filter(|_| v.loss_weight == 0.0 && !kept)?;
    plain(next).then_some(next)
}

/// Has `layer` apply `relu`, which reads its top, if the one can and the other is a ReLU.
fn fuse_relu(graph: &mut Graph, registry: &Registry, layer: usize, relu: usize) -> Result<()> {
    let Some(mut view) = registry.epilogue(&graph.layers[relu].param) else { return Ok(()) };
    let value = graph.layers[layer].tops[0];
    let fuses = match &mut graph.layers[layer].node {
        Node::Compute(maker) => maker.fuse_relu(),
        Node::Source(_) | Node::Sink(_) => false,
    };
    if !fuses {
        return Ok(());
    }
    let plan = view.plan(&[graph.values[value].spec.clone()], 1)?;
    graph.by_name.retain(|_, v| *v != value);
    info!("{} is computed together with {}", graph.layers[relu].name(), graph.layers[layer].name());
    let relu = &mut graph.layers[relu];
    (relu.node, relu.plan) = (Node::Compute(view), plan);
    Ok(())
}

fn fuse_run(graph: &mut Graph, run: &[usize], node: Node) -> Result<()> {
    let (inner, last) = (&run[..run.len() - 1], run[run.len() - 1]);
    let mut node = node;
    let within: Vec<_> = inner.iter().map(|&i| graph.layers[i].tops[0]).collect();
    let from_outside = run.iter().flat_map(|&i| &graph.layers[i].bottoms).filter(|&b| !within.contains(b));
    let bottoms: Vec<_> = from_outside.copied().collect();
    let specs: Vec<_> = bottoms.iter().map(|&b| graph.values[b].spec.clone()).collect();
    let plan = match &mut node {
        Node::Compute(layer) => layer.plan(&specs, 1)?,
        Node::Source(_) | Node::Sink(_) => Plan::default(),
    };
    let exec_params = run.iter().flat_map(|&i| graph.layers[i].params.clone()).collect();
    let name = graph.layers[last].name().to_string();
    for &i in inner {
        let layer = &mut graph.layers[i];
        info!("{} is computed together with {name}", layer.name());
        (layer.fused_into, layer.plan) = (Some(last), Plan::default());
        layer.tops.clear();
        layer.bottoms.clear();
        layer.exec_params.clear();
        layer.bottom_backward.clear();
    }
    graph.by_name.retain(|_, value| !within.contains(value));
    bottoms.iter().enumerate().for_each(|(b, &value)| graph.values[value].consumer = Some((last, b)));
    let layer = &mut graph.layers[last];
    layer.bottom_backward = vec![false; bottoms.len()];
    (layer.node, layer.plan, layer.exec_params, layer.bottoms) = (node, plan, exec_params, bottoms);
    Ok(())
}
