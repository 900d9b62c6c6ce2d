//! Which layers run backward and which bottoms get a gradient: only what both depends on something learned and
//! contributes to the loss.

use std::collections::HashSet;

use lgm_core::{Node, Result, ensure};
use tracing::info;

use crate::graph::Graph;

/// Sets every layer's `backward` and `bottom_backward`.
///
/// `force` is the net's `force_backward`: gradients flow to every blob that can take one.
///
/// # Errors
/// When the loss reaches a learned quantity only through a layer, or a bottom of one, that passes no gradient.
pub fn mark(graph: &mut Graph, force: bool) -> Result<()> {
    let mut learned = vec![false; graph.values.len()];
    for layer in &mut graph.layers {
        let ends = layer.plan.no_backward && (0..layer.tops.len()).all(|t| layer.plan.index_tops.contains(&t));
        for (j, &bottom) in layer.bottoms.iter().enumerate() {
            let asked = layer.param.propagate_down.get(j).copied();
            layer.bottom_backward[j] = asked.unwrap_or(learned[bottom] && !ends);
        }
        let params = layer.exec_params.iter().any(|&p| graph.params[p].backward);
        let bottoms =
            layer.bottoms.iter().zip(&layer.bottom_backward).any(|(&b, asked)| learned[b] && (*asked || !ends));
        layer.backward = params || bottoms;
        for (t, &top) in layer.tops.iter().enumerate() {
            learned[top] = layer.backward && !layer.plan.index_tops.contains(&t);
        }
    }
    let mut under_loss = HashSet::new();
    let mut skipped = HashSet::new();
    for layer in graph.layers.iter_mut().rev() {
        let contributes = layer.tops.iter().any(|t| graph.values[*t].loss_weight != 0.0 || under_loss.contains(t));
        let skip = !layer.tops.is_empty()
            && layer.tops.iter().all(|t| skipped.contains(t) && graph.values[*t].loss_weight == 0.0);
        if skip || !contributes {
            layer.backward = false;
            layer.bottom_backward.fill(false);
        }
        for (j, bottom) in layer.bottoms.iter().enumerate() {
            if contributes {
                under_loss.insert(*bottom);
            }
            if !layer.bottom_backward[j] {
                skipped.insert(*bottom);
            }
        }
    }
    for i in 0..graph.layers.len() {
        let layer = &mut graph.layers[i];
        let can = matches!(layer.node, Node::Compute(_)) && !layer.plan.no_backward;
        if force && can && layer.fused_into.is_none() {
            layer.backward = true;
            for j in 0..layer.bottoms.len() {
                layer.bottom_backward[j] |= !layer.plan.no_gradient.contains(&j);
            }
            for &p in &layer.exec_params {
                graph.params[p].backward = true;
            }
        }
        if graph.layers[i].fused_into.is_some() {
            continue;
        }
        check(&graph.layers[i], can).map_err(|e| graph.layers[i].in_layer(e))?;
        let needs = if graph.layers[i].backward { "needs" } else { "does not need" };
        info!("{} {needs} backward computation.", graph.layers[i].name());
        if !matches!(graph.layers[i].node, Node::Compute(_)) {
            graph.layers[i].backward = false;
        }
    }
    Ok(())
}

fn check(layer: &crate::graph::LayerNode, can: bool) -> Result<()> {
    if !layer.backward {
        return Ok(());
    }
    ensure!(
        can || !layer.bottom_backward.contains(&true),
        "the loss depends on this layer, but it passes no gradient back; set propagate_down: false where that is meant"
    );
    for &j in &layer.plan.no_gradient {
        ensure!(
            !layer.bottom_backward.get(j).is_some_and(|&b| b),
            "cannot backpropagate to bottom {j} ('{}'), which holds labels or indices; set propagate_down: false for \
             it if that is meant",
            layer.param.bottom[j]
        );
    }
    Ok(())
}
