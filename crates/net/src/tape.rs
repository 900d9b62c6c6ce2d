//! Passes over a net on a device: what they are made of, and recording them, so that a pass costs the host a launch for
//! each stretch between layers that run on the CPU, and not one for each kernel.

use std::fmt;

use lgm_core::{DevicePtr, DeviceQueue, Error, Host, Result, Step};
use tracing::{info, warn};

use crate::bind::Bound;
use crate::device::OnDevice;
use crate::gpu::Replay;
use crate::graph::Graph;
use crate::plan::Role;

/// What a pass does, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pass {
    /// Sets the loss, the outputs' sums and the parameters' gradients to zero.
    pub clear: bool,
    /// Brings data in and runs every layer forward.
    pub forward: bool,
    /// Adds the outputs to their sums.
    pub accumulate: bool,
    /// Runs every layer that needs it backward.
    pub backward: bool,
    /// Calls what the caller adds at the end, an update of the parameters; always the same.
    pub finish: bool,
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.clear, "clear"),
            (self.forward, "forward"),
            (self.accumulate, "scores"),
            (self.backward, "backward"),
            (self.finish, "update"),
        ];
        let parts: Vec<&str> = parts.into_iter().filter(|p| p.0).map(|p| p.1).collect();
        f.write_str(&parts.join(", "))
    }
}

/// What a caller adds to a pass: work for the queue.
pub type Finish<'a> = Option<&'a dyn Fn(&dyn DeviceQueue) -> Result<()>>;

#[derive(Clone, Copy, Debug)]
enum Op {
    Clear,
    Forward(usize),
    Accumulate,
    Backward(usize),
    Finish,
}

/// What is known of one kind of pass.
#[derive(Default)]
pub(crate) enum Tape {
    /// It has never run: the first time kernels are compiled and libraries choose how to do things.
    #[default]
    New,
    /// It has run once and can be recorded.
    Ran,
    /// It runs launch by launch.
    Loose,
    /// Recorded, with parameters at these addresses.
    Recorded(Vec<DevicePtr>, Vec<Stretch>),
}

/// Part of a pass: work that is recorded, or that runs on the host.
pub(crate) enum Stretch {
    Recorded(Box<dyn Replay>),
    Away(AwayOp),
}

/// A layer's pass on the host.
#[derive(Clone, Copy)]
pub(crate) struct AwayOp {
    layer: usize,
    backward: bool,
}

/// A net's halves, and when it is.
pub(crate) struct Net<'a> {
    pub graph: &'a mut Graph,
    pub mirror: &'a mut Bound<Host>,
    pub step: &'a Step,
}

/// An error in a recording, which does not tell of layers.
fn blame(pass: Pass, error: &Error) -> Error {
    Error::config(format!(
        "the recorded pass ({pass}): {error}; LGM_GRAPH=0 in the environment makes it name the layer"
    ))
}

impl OnDevice {
    fn ops(&self, layers: usize, pass: Pass) -> Vec<Op> {
        let mut ops = Vec::new();
        let mut push = |on: bool, more: &mut dyn Iterator<Item = Op>| ops.extend(more.filter(|_| on));
        push(pass.clear, &mut [Op::Clear].into_iter());
        push(pass.forward, &mut (0..layers).map(Op::Forward));
        push(pass.accumulate, &mut [Op::Accumulate].into_iter());
        push(pass.backward, &mut (0..layers).rev().map(Op::Backward));
        push(pass.finish, &mut [Op::Finish].into_iter());
        ops
    }

    fn away(&self, graph: &Graph, op: Op) -> Option<AwayOp> {
        match op {
            Op::Forward(layer) if self.roles[layer] == Role::Away => Some(AwayOp { layer, backward: false }),
            Op::Backward(layer) if self.roles[layer] == Role::Away && graph.layers[layer].backward => {
                Some(AwayOp { layer, backward: true })
            }
            _ => None,
        }
    }

    fn run_op(&mut self, net: &mut Net<'_>, op: Op, finish: Finish<'_>) -> Result<()> {
        match op {
            Op::Clear => self.clear_sums().and_then(|()| self.clear_param_diffs()),
            Op::Forward(i) => self.forward(net.graph, net.mirror, i, net.step),
            Op::Accumulate => self.accumulate(net.graph),
            Op::Backward(i) => self.backward(net.graph, net.mirror, i, net.step),
            Op::Finish => finish.map_or(Ok(()), |work| work(self.gpu.as_ref())),
        }
    }

    /// Makes a pass: the first time launch by launch, the second time recording it, later from the record.
    pub fn pass(&mut self, net: &mut Net<'_>, pass: Pass, finish: Finish<'_>) -> Result<()> {
        self.write_step(net.graph, net.step)?;
        if pass.forward {
            self.feed_all(net.graph, net.mirror, net.step)?;
        }
        let addresses: Vec<DevicePtr> = self.bound.params.iter().map(|p| p.data.at).collect();
        let tape = self.tapes.remove(&pass).unwrap_or_default();
        let tape = match tape {
            Tape::Recorded(at, stretches) if at == addresses => Tape::Recorded(at, stretches),
            Tape::Ran | Tape::Recorded(..) => self.record(net, pass, finish, addresses),
            Tape::New | Tape::Loose => tape,
        };
        let next = match tape {
            Tape::Recorded(at, stretches) => {
                for stretch in &stretches {
                    match stretch {
                        Stretch::Recorded(replay) => replay.replay().map_err(|e| blame(pass, &e))?,
                        Stretch::Away(AwayOp { layer, backward: false }) => {
                            self.run_op(net, Op::Forward(*layer), finish)?;
                        }
                        Stretch::Away(AwayOp { layer, backward: true }) => {
                            self.run_op(net, Op::Backward(*layer), finish)?;
                        }
                    }
                }
                Tape::Recorded(at, stretches)
            }
            other => {
                for op in self.ops(self.roles.len(), pass) {
                    self.run_op(net, op, finish)?;
                }
                if matches!(other, Tape::New) && self.record { Tape::Ran } else { Tape::Loose }
            }
        };
        self.tapes.insert(pass, next);
        Ok(())
    }

    /// Records a pass without running any of it.
    fn record(&mut self, net: &mut Net<'_>, pass: Pass, finish: Finish<'_>, addresses: Vec<DevicePtr>) -> Tape {
        let ops = self.ops(self.roles.len(), pass);
        let mut stretches = Vec::new();
        let mut aways = Vec::new();
        let mut rest = ops.as_slice();
        while !rest.is_empty() {
            if let Some(op) = self.away(net.graph, rest[0]) {
                let name = net.graph.layers[op.layer].name().to_string();
                if !aways.contains(&name) {
                    aways.push(name);
                }
                stretches.push(Stretch::Away(op));
                rest = &rest[1..];
                continue;
            }
            let len = rest.iter().take_while(|op| self.away(net.graph, **op).is_none()).count();
            let gpu = self.gpu.clone();
            let recorded = gpu.record(&mut || rest[..len].iter().try_for_each(|op| self.run_op(net, *op, finish)));
            match recorded {
                Ok(Some(replay)) => stretches.push(Stretch::Recorded(replay)),
                Ok(None) => return Tape::Loose,
                Err(error) => {
                    warn!("the pass cannot be recorded as a graph, so it runs launch by launch: {error}");
                    return Tape::Loose;
                }
            }
            rest = &rest[len..];
        }
        let graphs = stretches.iter().filter(|s| matches!(s, Stretch::Recorded(_))).count();
        match aways.is_empty() {
            true => info!("Recorded as one graph: {pass}"),
            false => info!("Recorded as {graphs} graphs, broken by layers on the CPU ({}): {pass}", aways.join(", ")),
        }
        Tape::Recorded(addresses, stretches)
    }
}
