//! Recording passes on a device, so that a pass costs the host one launch for each segment between layers that run on the
//! CPU, and not one for each kernel.

use lgm_core::{DevicePtr, Error, Result, Step};
use lgm_cuda::Replay;
use tracing::{info, warn};

use super::{DeviceExec, DeviceUpdate};
use crate::exec::{Executor, Op, Pass};
use crate::graph::Graph;
use crate::passes::memory::Role;

/// What is known of one kind of pass.
#[derive(Default)]
pub(crate) enum Recording {
    /// It has never run: the first time kernels are compiled and libraries choose their algorithms.
    #[default]
    New,
    /// It has run once and can be recorded.
    Ran,
    /// It runs launch by launch.
    Eager,
    /// Recorded, with parameters at these addresses.
    Recorded(Vec<DevicePtr>, Vec<Segment>),
}

/// Part of a recorded pass.
pub(crate) enum Segment {
    /// Recorded work.
    Graph(Box<dyn Replay>),
    /// A layer's pass on the host.
    Host(Op),
}

/// A step of a pass, the update included.
#[derive(Clone, Copy)]
enum Work<'a> {
    Op(Op),
    Update(&'a DeviceUpdate<'a>),
}

/// Adds the pass to an error; a replay cannot name the layer.
fn in_pass(what: &str, error: Error) -> Error {
    let text = format!("{error}; LGM_GRAPH=0 in the environment makes it name the layer");
    let text = format!("the recorded pass ({what}): {text}");
    match error {
        Error::Device { lost, .. } => Error::Device { text, lost },
        _ => Error::config(text),
    }
}

impl DeviceExec {
    fn does(&mut self, graph: &mut Graph, work: Work<'_>, step: &Step) -> Result<()> {
        match work {
            Work::Op(op) => self.run(graph, op, step),
            Work::Update(update) => self.update(update),
        }
    }

    /// The step of a pass that a layer on the host makes, if this is one.
    fn on_host(&self, graph: &Graph, work: &Work<'_>) -> Option<(usize, Op)> {
        match *work {
            Work::Op(op @ Op::Forward(i)) if self.roles[i] == Role::Host => Some((i, op)),
            Work::Op(op @ Op::Backward(i)) if self.roles[i] == Role::Host && graph.layers[i].backward => Some((i, op)),
            _ => None,
        }
    }

    /// Makes a pass that has begun: the first time launch by launch, the second time recording it, later from the record.
    pub(super) fn run_recorded(
        &mut self,
        graph: &mut Graph,
        pass: Pass,
        step: &Step,
        update: Option<&DeviceUpdate<'_>>,
    ) -> Result<()> {
        let addresses: Vec<DevicePtr> = self.bound.params.iter().map(|p| p.data.at).collect();
        let key = (pass, update.is_some());
        let work: Vec<Work<'_>> = pass.ops(graph.layers.len()).map(Work::Op).chain(update.map(Work::Update)).collect();
        let name = if update.is_some() { format!("{pass}, update") } else { pass.to_string() };
        let name = name.trim_start_matches(", ");
        let known = match self.recordings.remove(&key).unwrap_or_default() {
            Recording::Recorded(at, segments) if at == addresses => Recording::Recorded(at, segments),
            Recording::Ran | Recording::Recorded(..) => self.record(graph, name, &work, step, addresses),
            other => other,
        };
        let next = match known {
            Recording::Recorded(at, segments) => {
                for segment in &segments {
                    match segment {
                        Segment::Graph(replay) => replay.replay().map_err(|e| in_pass(name, e))?,
                        Segment::Host(op) => self.run(graph, *op, step)?,
                    }
                }
                Recording::Recorded(at, segments)
            }
            other => {
                work.iter().try_for_each(|work| self.does(graph, *work, step))?;
                if matches!(other, Recording::New) && self.record { Recording::Ran } else { Recording::Eager }
            }
        };
        self.recordings.insert(key, next);
        Ok(())
    }

    /// Records a pass without running any of it.
    fn record(
        &mut self,
        graph: &mut Graph,
        name: &str,
        work: &[Work<'_>],
        step: &Step,
        addresses: Vec<DevicePtr>,
    ) -> Recording {
        let mut segments = Vec::new();
        let mut on_host = Vec::new();
        let mut rest = work;
        while !rest.is_empty() {
            if let Some((layer, op)) = self.on_host(graph, &rest[0]) {
                let name = graph.layers[layer].name().to_string();
                if !on_host.contains(&name) {
                    on_host.push(name);
                }
                segments.push(Segment::Host(op));
                rest = &rest[1..];
                continue;
            }
            let len = rest.iter().take_while(|work| self.on_host(graph, work).is_none()).count();
            let gpu = self.gpu.clone();
            let recorded = gpu.record(&mut || rest[..len].iter().try_for_each(|work| self.does(graph, *work, step)));
            match recorded {
                Ok(Some(replay)) => segments.push(Segment::Graph(replay)),
                Ok(None) => return Recording::Eager,
                Err(error) => {
                    warn!("the pass cannot be recorded as a graph, so it runs launch by launch: {error}");
                    return Recording::Eager;
                }
            }
            rest = &rest[len..];
        }
        let graphs = segments.iter().filter(|s| matches!(s, Segment::Graph(_))).count();
        match on_host.is_empty() {
            true => info!("Recorded as one graph: {name}"),
            false => info!("Recorded as {graphs} graphs, broken by layers on the CPU ({}): {name}", on_host.join(", ")),
        }
        Recording::Recorded(addresses, segments)
    }
}
