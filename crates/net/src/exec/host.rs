//! Execution on the CPU.

use lgm_core::{DType, Error, Float, Host, Node, Result, Step, with_float};
use lgm_cpu::with_scratch;

use super::rows::VaryingRows;
use super::views::{Bound, host_call};
use super::{DeviceUpdate, Executor, Numbers, Op, Params, Pass, Sums};
use crate::graph::{Graph, ValueId};
use crate::options::Options;
use crate::passes::memory::{MemoryPlan, Role, plan};
use crate::passes::pack::ALIGN;

/// A net in the host's memory.
pub(crate) struct HostExec {
    bound: Bound<Host>,
    varying: VaryingRows,
    /// Whether memory is filled with NaN as soon as nothing is to read it.
    poison: bool,
    sums: Sums,
    /// The loss of the pass in hand, or the last one.
    pass_loss: f64,
}

impl HostExec {
    /// Plans a graph's memory and takes it.
    ///
    /// # Errors
    /// When there is less memory, with the layer that takes the most.
    pub fn new(graph: &Graph, options: &Options) -> Result<HostExec> {
        let here = vec![Role::Here; graph.layers.len()];
        let memory = plan(graph, &options.keep, &here, ALIGN);
        let mut bound = Bound::host(graph, memory, options.backward, &|_| true, &|_| true)?;
        if options.poison {
            bound.poison_all();
        }
        let outputs = graph.outputs().into_iter().map(|v| (v, Vec::new())).collect();
        let sums = Sums { loss: 0.0, outputs };
        let varying = VaryingRows::of(graph);
        Ok(HostExec { bound, varying, poison: options.poison, sums, pass_loss: 0.0 })
    }

    /// Values and gradient of learnable parameter `i`.
    ///
    /// # Errors
    /// When the net runs no backward or holds another element type.
    pub fn learnable<'a, T: Float>(&'a mut self, graph: &'a Graph, i: usize) -> Result<(&'a mut [T], &'a mut [T])> {
        let (data, diff) = self.bound.param_mut(graph, graph.learnables[i].owner);
        let diff = diff.ok_or_else(|| Error::internal("a net without backward has no gradients"))?;
        Ok((data.into_slice()?, diff.into_slice()?))
    }

    fn forward(&mut self, graph: &mut Graph, i: usize, step: &Step) -> Result<()> {
        self.follow_rows(graph, i)?;
        if graph.layers[i].is_idle(graph) && !graph.layers[i].plan.rows_vary {
            return Ok(());
        }
        let Graph { layers, values, .. } = &mut *graph;
        let layer = &mut layers[i];
        let outside = match &mut layer.node {
            Node::Source(source) => Some(source.load(step, &mut self.bound.tops(values, &layer.tops))),
            Node::Sink(sink) => Some(sink.store(&self.bound.bottoms(values, &layer.bottoms))),
            Node::Compute(_) => None,
        };
        if let Some(result) = outside {
            result.map_err(|e| layer.in_layer(e))?;
        }
        let layer = &graph.layers[i];
        if let Some(compute) = layer.compute() {
            let io = self.bound.forward(graph, i, host_call(graph, i, step));
            with_scratch(|| compute.forward(io)).map_err(|e| layer.in_layer(e))?;
        }
        let mut loss = 0.0;
        for &top in &layer.tops {
            let weight = graph.values[top].loss_weight as f64;
            if weight != 0.0 {
                loss += weight * self.bound.value(graph, top).to_f64().iter().sum::<f64>();
            }
        }
        self.pass_loss += loss;
        Ok(())
    }

    /// Gives a layer after one whose rows vary the extents of this pass.
    fn follow_rows(&mut self, graph: &mut Graph, i: usize) -> Result<()> {
        let layer = &graph.layers[i];
        let rows = match layer.compute().filter(|_| layer.plan.rows_vary) {
            Some(compute) => {
                let rows = compute.rows(&self.bound.bottoms(&graph.values, &layer.bottoms));
                Some(rows.map_err(|e| layer.in_layer(e))?)
            }
            None => None,
        };
        self.varying.follow(graph, i, rows, &|_, _, _, _| Ok(()))?;
        if graph.layers[i].is_idle(graph) {
            // Losses and scores of nothing.
            for &top in &graph.layers[i].tops {
                self.bound.value_mut(graph, top).write_f64(&vec![0.0; graph.values[top].spec.shape.count()])?;
            }
        }
        Ok(())
    }

    fn backward(&mut self, graph: &Graph, i: usize, step: &Step) -> Result<()> {
        let layer = &graph.layers[i];
        if !layer.backward || layer.is_idle(graph) {
            return Ok(());
        }
        for &top in layer.tops.iter().filter(|&&top| !graph.diff_written(top)) {
            let weight = graph.values[top].loss_weight;
            if let Some(mut diff) = self.bound.diff_mut(graph, top) {
                with_float!(diff.dtype(), T => diff.slice_mut::<T>()?.fill(weight as T));
            }
        }
        if let Some(compute) = layer.compute() {
            let io = self.bound.backward(graph, i, host_call(graph, i, step));
            with_scratch(|| compute.backward(io)).map_err(|e| layer.in_layer(e))?;
        }
        Ok(())
    }

    fn accumulate(&mut self, graph: &Graph) {
        for (v, sums) in &mut self.sums.outputs {
            let values = self.bound.value(graph, *v).to_f64();
            // Room for them is taken when they are first asked for; rows may vary.
            sums.resize(values.len().max(sums.len()), 0.0);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }
}

fn elsewhere() -> Error {
    Error::internal("a net on the host and one on a device cannot share parameters")
}

impl Executor for HostExec {
    fn begin(&mut self, _: &mut Graph, pass: Pass, _: &Step, _: Option<&DeviceUpdate<'_>>) -> Result<()> {
        if pass.forward {
            self.sums.loss += std::mem::take(&mut self.pass_loss);
        }
        Ok(())
    }

    fn run(&mut self, graph: &mut Graph, op: Op, step: &Step) -> Result<()> {
        let released = match op {
            Op::Clear => return self.clear_sums().and_then(|()| self.clear_gradients(graph)),
            Op::Accumulate => {
                self.accumulate(graph);
                return Ok(());
            }
            Op::Forward(i) => {
                self.forward(graph, i, step)?;
                i
            }
            Op::Backward(i) => {
                self.backward(graph, i, step)?;
                2 * graph.layers.len() - 1 - i
            }
        };
        if self.poison {
            self.bound.poison_released(released);
        }
        Ok(())
    }

    fn update(&mut self, _update: &DeviceUpdate<'_>) -> Result<()> {
        Err(Error::internal("an update for a device was given to a net on the host"))
    }

    fn forward_layer(&mut self, graph: &mut Graph, i: usize, step: &Step) -> Result<()> {
        self.run(graph, Op::Forward(i), step)
    }

    fn clear_sums(&mut self) -> Result<()> {
        (self.sums.loss, self.pass_loss) = (0.0, 0.0);
        self.sums.outputs.iter_mut().for_each(|(_, sums)| sums.clear());
        Ok(())
    }

    fn sums(&self) -> Result<Sums> {
        Ok(Sums { loss: self.sums.loss + self.pass_loss, outputs: self.sums.outputs.clone() })
    }

    fn clear_gradients(&mut self, graph: &Graph) -> Result<()> {
        for learnable in &graph.learnables {
            if let (_, Some(mut diff)) = self.bound.param_mut(graph, learnable.owner) {
                with_float!(diff.dtype(), T => diff.slice_mut::<T>()?.fill(0.0));
            }
        }
        Ok(())
    }

    fn check(&self, _graph: &Graph) -> Result<()> {
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn value(&self, graph: &Graph, v: ValueId) -> Result<Vec<f64>> {
        Ok(self.bound.value(graph, v).to_f64())
    }

    fn gradient(&self, graph: &Graph, v: ValueId) -> Result<Option<Vec<f64>>> {
        Ok(self.bound.diff(graph, v).map(|d| d.to_f64()))
    }

    fn set_value(&mut self, graph: &Graph, v: ValueId, data: &[f64]) -> Result<()> {
        self.bound.value_mut(graph, v).write_f64(data)
    }

    fn params(&self, _diff: bool) -> Result<Params<'_>> {
        Ok(Params::Host(&self.bound))
    }

    fn fill_param(&mut self, graph: &Graph, p: usize, read: &mut dyn FnMut(Numbers<'_>) -> Result<()>) -> Result<()> {
        let (mut data, _) = self.bound.param_mut(graph, p);
        match data.dtype() {
            DType::F32 => read(Numbers::F32(data.slice_mut()?)),
            DType::F64 => read(Numbers::F64(data.slice_mut()?)),
        }
    }

    fn lends_always(&self, other: &dyn Executor) -> Result<bool> {
        if other.as_device().is_some() { Err(elsewhere()) } else { Ok(false) }
    }

    fn exchange_params(&mut self, other: &mut dyn Executor, pairs: &[(usize, usize)]) -> Result<()> {
        let Some(other) = other.as_host() else { return Err(elsewhere()) };
        for &(mine, theirs) in pairs {
            std::mem::swap(&mut self.bound.params[mine].data, &mut other.bound.params[theirs].data);
        }
        Ok(())
    }

    fn copy_param(&mut self, from: usize, to: usize) {
        if let Ok([from, to]) = self.bound.params.get_disjoint_mut([from, to]) {
            to.data.copy_from(&from.data);
        }
    }

    fn plan(&self) -> &MemoryPlan {
        self.bound.plan()
    }

    fn param_bytes(&self) -> usize {
        self.bound.params.iter().map(|p| p.data.len() + p.diff.as_ref().map_or(0, |d| d.len())).sum()
    }

    fn as_host(&mut self) -> Option<&mut HostExec> {
        Some(self)
    }
}
