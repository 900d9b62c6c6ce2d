//! What a layer is: a half that plans shapes and memory ([`Layer`]), and one that computes for each memory space
//! ([`HostLayer`], [`DeviceLayer`]).
//!
//! A layer plans when the net is built, and says everything it needs: its tops, parameters, what it keeps for
//! backward, scratch, and which blobs backward reads. Running it then allocates nothing, synchronises nothing and reads
//! nothing back, so an iteration can be laid out in one arena and captured as one graph.

use std::collections::BTreeMap;

use crate::{BlobSpec, Result};

mod arity;
mod device;
mod host;
mod io;
mod outside;
mod plan;
mod registry;

pub use arity::Arity;
pub use device::{DeviceCall, DeviceLayer};
pub use host::{HostCall, HostLayer, Run};
pub use io::{Bwd, Fwd, Step, Views, ViewsMut};
pub use outside::{Sink, Source};
pub use plan::{ParamSpec, Plan, Sharing};
pub use registry::{
    BuildCx, Compute, ConversionFactory, EpilogueRule, Everywhere, Factory, FusionRule, Node, Registry, StandInRule,
};

/// Small named numbers that a snapshot must keep so that a resumed run equals one that never stopped: a data position,
/// the value a schedule has reached. Integers up to 2^53 are exact.
pub type State = BTreeMap<String, f64>;

/// The half of a layer that is the same wherever it runs.
pub trait Layer: Send {
    /// How many bottoms and tops the layer takes.
    fn arity(&self) -> Arity;

    /// Works out shapes and memory; `tops` is the number of tops asked for. Called once, before anything runs, and
    /// again before each forward whose bottoms may have fewer rows than that (see [`Plan::rows_vary`]), where the plan must be
    /// the same but for smaller extents, and what the layer has learned or scheduled stays as it is.
    ///
    /// # Errors
    /// When the bottoms do not suit the layer's parameters.
    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan>;

    /// Whether the layer treats every element alone: y = f(x), whatever the bottom's shape.
    fn is_elementwise(&self) -> bool {
        false
    }

    /// Asks the layer, whose only top goes to a ReLU and nowhere else, to apply that ReLU to its top: max(y, 0) in place
    /// of y, in every space, at no more than the ReLU's cost. Returns whether it will. Backward stays as it is: the top's
    /// diff is still that by y. Called at most once, after [`Layer::plan`] and before [`DeviceLayer::prepare`].
    fn fuse_relu(&mut self) -> bool {
        false
    }

    /// Called once before each training iteration (not each sub-batch) of a TRAIN net; schedules advance here. `iter`
    /// counts from 0. Returns what to log.
    fn begin_iteration(&mut self, _iter: u64) -> Vec<String> {
        Vec::new()
    }

    /// What a snapshot must keep of this layer besides its parameters.
    fn state(&self) -> State {
        State::new()
    }

    /// Takes up a state written by [`Layer::state`].
    ///
    /// # Errors
    /// When the state is not this layer's.
    fn restore(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }
}
