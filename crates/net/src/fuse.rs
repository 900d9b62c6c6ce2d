//! Fusion: runs of layers that one layer of ours computes in fewer passes over memory, BatchNorm with Scale and ReLU
//! above all. The layers stay in the graph with their names and parameters; the last of a run computes for all.
//!
//! A run is left alone when somebody could see the difference: a blob between its layers is kept, weighs in the loss or
//! has its gradient steered by `propagate_down`.

use lgm_core::{BuildCx, Node, Plan, Result};
use tracing::info;

use crate::graph::Graph;
use crate::plan::Keep;

/// Longest run looked at.
const LONGEST: usize = 3;

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

/// The layers that follow one another from `first` on, each reading only what the one before makes.
fn run_from(graph: &Graph, first: usize, keep: &Keep) -> Vec<usize> {
    let single = |i: usize| {
        let layer = &graph.layers[i];
        layer.bottoms.len() == 1 && layer.tops.len() == 1 && layer.param.propagate_down.is_empty() && !layer.absorbed
    };
    let mut run = vec![first];
    while run.len() < LONGEST && single(run[run.len() - 1]) {
        let value = graph.layers[run[run.len() - 1]].tops[0];
        let v = &graph.values[value];
        let last_version = graph.by_name.get(&v.name) == Some(&value);
        let Some((next, _)) = v.consumer.filter(|_| v.loss_weight == 0.0) else { break };
        if !single(next) || (last_version && keep.holds(&v.name)) {
            break;
        }
        run.push(next);
    }
    run
}

fn absorb(graph: &mut Graph, run: &[usize], node: Node) -> Result<()> {
    let (&first, &last) = (&run[0], &run[run.len() - 1]);
    let mut node = node;
    let bottom = graph.layers[first].bottoms[0];
    let plan = match &mut node {
        Node::Compute(layer) => layer.plan(std::slice::from_ref(&graph.values[bottom].spec), 1)?,
        Node::Source(_) | Node::Sink(_) => Plan::default(),
    };
    let exec_params = run.iter().flat_map(|&i| graph.layers[i].params.clone()).collect();
    let name = graph.layers[last].name().to_string();
    for &i in &run[..run.len() - 1] {
        let layer = &mut graph.layers[i];
        info!("{} is computed together with {name}", layer.name());
        (layer.absorbed, layer.plan) = (true, Plan::default());
        let inner = std::mem::take(&mut layer.tops);
        graph.by_name.retain(|_, value| !inner.contains(value));
        layer.bottoms.clear();
        layer.exec_params.clear();
        layer.bottom_backward.clear();
    }
    let layer = &mut graph.layers[last];
    (layer.node, layer.plan, layer.exec_params, layer.bottoms) = (node, plan, exec_params, vec![bottom]);
    graph.values[bottom].consumer = Some((last, 0));
    Ok(())
}
