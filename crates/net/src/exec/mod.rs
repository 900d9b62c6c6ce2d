//! Execution: what a pass is, and the places that make one. [`HostExec`] runs every layer on the CPU, [`DeviceExec`] on a
//! device; a net holds one [`Executor`] and does not ask which.

mod arena;
mod device;
mod host;
mod params;
mod rows;
mod views;

use std::fmt;

use lgm_core::{Result, Step};

use crate::graph::{Graph, ValueId};
use crate::passes::memory::MemoryPlan;

pub(crate) use arena::Memory;
pub(crate) use device::{DeviceExec, Shared, convolutions};
pub use device::{DeviceParams, DeviceUpdate, SOLVER_WORDS};
pub(crate) use host::HostExec;
pub(crate) use params::{Numbers, Params};

/// An output by name, and its values.
pub type NamedValues<Name = String> = (Name, Vec<f64>);

/// What a pass does, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pass {
    /// Sets the loss, the outputs' sums and the parameters' gradients to zero.
    pub clear: bool,
    /// Brings data in and runs every layer forward, adding the loss to its sum.
    pub forward: bool,
    /// Adds the outputs to their sums.
    pub accumulate: bool,
    /// Runs every layer that needs it backward.
    pub backward: bool,
}

impl Pass {
    /// A forward pass and nothing else.
    pub const FORWARD: Pass = Pass { clear: false, forward: true, accumulate: false, backward: false };
    /// A backward pass and nothing else.
    pub const BACKWARD: Pass = Pass { clear: false, forward: false, accumulate: false, backward: true };
    /// Nothing but an update.
    pub const NOTHING: Pass = Pass { clear: false, forward: false, accumulate: false, backward: false };

    /// The steps of a pass over so many layers.
    pub(crate) fn ops(self, layers: usize) -> impl Iterator<Item = Op> {
        let some = |on: bool, op: Op| on.then_some(op).into_iter();
        let (forward, backward) = (if self.forward { layers } else { 0 }, if self.backward { layers } else { 0 });
        some(self.clear, Op::Clear)
            .chain((0..forward).map(Op::Forward))
            .chain(some(self.accumulate, Op::Accumulate))
            .chain((0..backward).rev().map(Op::Backward))
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.clear, "clear"),
            (self.forward, "forward"),
            (self.accumulate, "scores"),
            (self.backward, "backward"),
        ];
        let parts: Vec<&str> = parts.into_iter().filter(|p| p.0).map(|p| p.1).collect();
        f.write_str(&parts.join(", "))
    }
}

/// A step of a pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// See [`Pass::clear`].
    Clear,
    /// A layer forward, where its data has been brought in.
    Forward(usize),
    /// See [`Pass::accumulate`].
    Accumulate,
    /// A layer backward, if it has a backward to run.
    Backward(usize),
}

/// The sums that passes keep.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    /// The loss of every forward pass.
    pub loss: f64,
    /// Each output's elements, of every pass with [`Pass::accumulate`].
    pub outputs: Vec<NamedValues<ValueId>>,
}

/// A place where nets run: it holds a net's memory and makes its passes.
pub(crate) trait Executor {
    /// Makes ready for the steps of a pass: brings data in where that is not part of a layer's own step.
    ///
    /// # Errors
    /// When data cannot be read, with the layer's name, or the place failed.
    fn begin(&mut self, graph: &mut Graph, pass: Pass, step: &Step, update: Option<&DeviceUpdate<'_>>) -> Result<()>;

    /// Makes one step of a pass that has begun.
    ///
    /// # Errors
    /// What a layer refuses, with its name.
    fn run(&mut self, graph: &mut Graph, op: Op, step: &Step) -> Result<()>;

    /// Queues a solver's update behind a pass that ran step by step.
    ///
    /// # Errors
    /// On the host, where solvers update the parameters themselves; when the device refuses.
    fn update(&mut self, update: &DeviceUpdate<'_>) -> Result<()>;

    /// Makes a pass, and `update` behind it; on a device without waiting.
    ///
    /// # Errors
    /// As for [`Executor::begin`], [`Executor::run`] and [`Executor::update`].
    fn pass(&mut self, graph: &mut Graph, pass: Pass, step: &Step, update: Option<&DeviceUpdate<'_>>) -> Result<()> {
        self.begin(graph, pass, step, update)?;
        pass.ops(graph.layers.len()).try_for_each(|op| self.run(graph, op, step))?;
        update.map_or(Ok(()), |update| self.update(update))
    }

    /// Runs one layer forward by itself, bringing its data in if it has any.
    ///
    /// # Errors
    /// What it or its data refuses, with its name.
    fn forward_layer(&mut self, graph: &mut Graph, i: usize, step: &Step) -> Result<()>;

    /// Sets the loss and the outputs' sums to zero.
    ///
    /// # Errors
    /// When a device refuses.
    fn clear_sums(&mut self) -> Result<()>;

    /// The sums since they were cleared, after all work before.
    ///
    /// # Errors
    /// When a device failed.
    fn sums(&self) -> Result<Sums>;

    /// Sets every parameter's gradient to zero.
    ///
    /// # Errors
    /// When a device refuses.
    fn clear_gradients(&mut self, graph: &Graph) -> Result<()>;

    /// Waits for all work, and reports what kernels found wrong.
    ///
    /// # Errors
    /// What they found, with the layer's name; when a device failed.
    fn check(&self, graph: &Graph) -> Result<()>;

    /// Waits for all work.
    ///
    /// # Errors
    /// When some of it failed.
    fn finish(&self) -> Result<()>;

    /// A value's data as the last pass left it.
    ///
    /// # Errors
    /// When a device refuses.
    fn value(&self, graph: &Graph, v: ValueId) -> Result<Vec<f64>>;

    /// A value's gradient as the last pass left it, if it has one.
    ///
    /// # Errors
    /// When a device refuses.
    fn gradient(&self, graph: &Graph, v: ValueId) -> Result<Option<Vec<f64>>>;

    /// Sets a value's data.
    ///
    /// # Errors
    /// When the count differs, or a device refuses.
    fn set_value(&mut self, graph: &Graph, v: ValueId, data: &[f64]) -> Result<()>;

    /// Every parameter's values, and gradients if `diff`.
    ///
    /// # Errors
    /// When a device refuses.
    fn params(&self, diff: bool) -> Result<Params<'_>>;

    /// Sets parameter `p`, unless it is another net's: `read` fills its values, in `f64` where the net is in `f64`. On the
    /// host they are the parameter's own memory.
    ///
    /// # Errors
    /// From `read`, and when a device refuses.
    fn fill_param(&mut self, graph: &Graph, p: usize, read: &mut dyn FnMut(Numbers<'_>) -> Result<()>) -> Result<()>;

    /// Whether another net computes with this one's parameters without more ado.
    ///
    /// # Errors
    /// When the nets live in different places, or the other was not built to share.
    fn lends_always(&self, other: &dyn Executor) -> Result<bool>;

    /// Exchanges the memory of pairs of learnable parameters, of this net and another, so that the other computes with
    /// this one's.
    ///
    /// # Errors
    /// On a device, where parameters stay where they are.
    fn exchange_params(&mut self, other: &mut dyn Executor, pairs: &[(usize, usize)]) -> Result<()>;

    /// Copies one learnable parameter to another of the same shape, on the host.
    fn copy_param(&mut self, from: usize, to: usize);

    /// Where everything lies.
    fn plan(&self) -> &MemoryPlan;

    /// Bytes of parameters and, where backward runs, their gradients; without those that are another net's.
    fn param_bytes(&self) -> usize;

    /// The host's form, if this is it: for what only the host's memory allows.
    fn as_host(&mut self) -> Option<&mut HostExec> {
        None
    }

    /// The device's form, if this is it: for what only a device has.
    fn as_device(&self) -> Option<&DeviceExec> {
        None
    }
}
