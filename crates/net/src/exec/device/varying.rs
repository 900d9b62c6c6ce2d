//! Rows that vary, on a device: how many there are is read back before the layers that follow are planned.

use lgm_core::{Compute, Error, Plan, Result};
use lgm_cuda::Gpu;

use super::DeviceExec;
use crate::exec::rows::{Settle, VaryingRows};
use crate::graph::Graph;
use crate::passes::memory::Role;

/// Of what a layer wants that a library's convolutions work in: with fewer rows it may choose another algorithm.
const SLACK: usize = 2;

/// Plans a layer again for the device, which it was planned for before.
fn again(gpu: &dyn Gpu, roles: &[Role], i: usize, layer: &mut Compute, plan: &mut Plan, most: &Plan) -> Result<()> {
    plan.formats = most.formats.clone();
    match layer.device_mut() {
        _ if roles[i] != Role::Here => Ok(()),
        Some(run) => run.prepare(gpu, plan),
        None => Err(Error::config("a device cannot compute it with so few rows")),
    }
}

/// Gives the layers whose rows vary the memory that they may want, once they are prepared. The layers that vary.
///
/// # Errors
/// When a layer cannot choose its rows there, or be planned again.
pub(super) fn make_room(graph: &mut Graph, roles: &[Role], gpu: &dyn Gpu) -> Result<VaryingRows> {
    if let Some(layer) =
        graph.layers.iter().zip(roles).find(|(layer, role)| layer.plan.rows_vary && **role != Role::Here)
    {
        let what = "how many rows its tops have depends on the data of a pass, and it has no GPU form: run this net on the CPU \
                    (without -gpu, with solver_mode: CPU)";
        return Err(layer.0.in_layer(Error::config(what)));
    }
    let mut varying = VaryingRows::of(graph);
    if varying.is_empty() {
        return Ok(varying);
    }
    let convolves = |layer: &Compute| layer.device().is_some_and(|run| !run.convolutions().is_empty());
    // A library that is asked about every number of rows would try its algorithms with each.
    let by_library: Vec<bool> = graph.layers.iter().map(|layer| layer.compute().is_some_and(convolves)).collect();
    varying.make_room(graph, &|i, layer: &mut Compute, plan: &mut Plan, most: &Plan| {
        let fewer = plan.tops.iter().zip(&most.tops).any(|(now, most)| now.shape != most.shape);
        if by_library[i] && fewer {
            (plan.formats, plan.saved, plan.scratch) = (most.formats.clone(), most.saved.clone(), most.scratch.clone());
            return Ok(());
        }
        again(gpu, roles, i, layer, plan, most)
    })?;
    for (_, layer) in graph.layers.iter_mut().enumerate().filter(|(i, _)| varying.has(*i) && by_library[*i]) {
        for spec in &mut layer.plan.scratch {
            *spec = spec.with_shape([lgm_core::count(&[SLACK, spec.shape.count()])]);
        }
    }
    Ok(VaryingRows::of(graph))
}

impl DeviceExec {
    /// Gives a layer after one whose rows vary the extents of this pass.
    pub(super) fn follow_rows(&mut self, graph: &mut Graph, i: usize) -> Result<()> {
        if !self.varying.has(i) {
            return Ok(());
        }
        let layer = &graph.layers[i];
        let rows = match layer.compute().and_then(|c| c.device()).filter(|_| layer.plan.rows_vary) {
            Some(run) => {
                let rows = run.rows(self.gpu.as_ref(), &self.bound.bottoms(&graph.values, &layer.bottoms));
                Some(rows.map_err(|e| layer.in_layer(e))?)
            }
            None => None,
        };
        let (gpu, roles) = (self.gpu.as_ref(), &self.roles);
        let settle: &Settle<'_> = &|i, layer, plan, most| again(gpu, roles, i, layer, plan, most);
        self.varying.follow(graph, i, rows, settle)?;
        if graph.layers[i].is_idle(graph) {
            // Losses and scores of nothing.
            for &top in &graph.layers[i].tops {
                let bytes = graph.values[top].bytes();
                if bytes > 0 {
                    self.gpu.zero(self.bound.value(graph, top).addr(), bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a layer has nothing to compute in this pass.
    pub(super) fn idles(&self, graph: &Graph, i: usize) -> bool {
        self.varying.has(i) && graph.layers[i].is_idle(graph) && !graph.layers[i].plan.rows_vary
    }
}
