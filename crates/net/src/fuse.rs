//! Fusion: runs of layers that one layer of ours computes in fewer passes over memory, BatchNorm with Scale, a sum and ReLU
//! above all. The layers stay in the graph with their names and parameters; the last of a run computes for all.
//!
//! A run is left alone when somebody could see the difference: a blob between its layers is kept, weighs in the loss or
//! has its gradient steered by `propagate_down`.

use lgm_core::{BuildCx, Node, Plan, Result};
use tracing::info;

use crate::graph::Graph;
use crate::plan::Keep;

/// Longest run looked at.
const LONGEST: usize = 4;

/// Replaces every run of layers that [`lgm_layers::fuse`] knows.
///
/// With `device`, only by layers that run on one.
///
/// # Errors
/// When a fused layer refuses what its parts accepted: a defect.
pub fn fuse(graph: &mut Graph, cx: BuildCx, keep: &Keep, device: bool) -> Result<()> {
    for first in 0..graph.layers.len() {
        let run = run_from(graph, first, keep);
        let params: Vec<_> = run.iter().map(|&i| &graph.layers[i].param).collect();
        let Some((node, len)) = lgm_layers::fuse(&params, &cx)? else { continue };
        let runs = |node: &Node| matches!(node, Node::Compute(layer) if layer.device().is_some());
        if device && !runs(&node) {
            continue;
        }
        absorb(graph, &run[..len], node).map_err(|e| graph.layers[first].blame(e))?;
    }
    Ok(())
}

/// The layers that follow one another from `first` on, each reading what the one before makes and, beside that, at most
/// what others made.
fn run_from(graph: &Graph, first: usize, keep: &Keep) -> Vec<usize> {
    let plain = |i: usize| {
        let layer = &graph.layers[i];
        layer.tops.len() == 1 && layer.param.propagate_down.is_empty() && !layer.absorbed
    };
    let mut run = vec![first];
    while run.len() < LONGEST && plain(run[run.len() - 1]) {
        match passed_on(graph, run[run.len() - 1], keep) {
            Some((next, _)) if plain(next) => run.push(next),
            _ => break,
        }
    }
    run
}

/// The layer, and which of its bottoms, that reads the first top of `layer`, where nobody else sees that.
fn passed_on(graph: &Graph, layer: usize, keep: &Keep) -> Option<(usize, usize)> {
    let value = graph.layers[layer].tops[0];
    let v = &graph.values[value];
    let kept = graph.by_name.get(&v.name) == Some(&value) && keep.holds(&v.name);
    v.consumer.filter(|_| v.loss_weight == 0.0 && !kept)
}

fn absorb(graph: &mut Graph, run: &[usize], node: Node) -> Result<()> {
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
        (layer.absorbed, layer.plan) = (true, Plan::default());
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
