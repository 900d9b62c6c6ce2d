//! The inputs and outputs of a layer's forward and backward call.

use smallvec::SmallVec;

use crate::space::{Space, View, ViewMut};

/// Iteration, sub-batch and seed of a call: all that a computation may depend on besides its blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The run's random seed.
    pub seed: u64,
    /// The solver's iteration, from 0.
    pub iter: u64,
    /// Forward passes this net has made before: in training, `iter * iter_size` + the sub-batch. Keys random draws.
    pub batch: u64,
}

/// Optional read-only views.
pub type Views<'a, S> = SmallVec<[Option<View<'a, S>>; 4]>;

/// Optional exclusive views; taking one out leaves `None`.
pub type ViewsMut<'a, S> = SmallVec<[Option<ViewMut<'a, S>>; 4]>;

/// The inputs and outputs of a forward call.
///
/// The accessors have the same names in both spaces. Those of a host call hand out slices, typed, that live as long as the
/// call; those of a device call hand out addresses. Each exclusive one can be taken once.
pub struct Fwd<'a, S: Space> {
    /// What the call is made with: [`HostCall`](crate::HostCall) or [`DeviceCall`](crate::DeviceCall).
    pub call: S::Call<'a>,
    /// Input data. `None`: the bottom shares memory with a top, which holds its data on entry.
    pub bottoms: Views<'a, S>,
    /// Output data. `None`: the top is a view of a bottom ([`Sharing::View`](crate::Sharing::View)) and there is nothing to write.
    pub tops: ViewsMut<'a, S>,
    /// Parameters; only those planned as state may be written.
    pub params: ViewsMut<'a, S>,
    /// Memory for backward. Absent (`None`) in a net that runs no backward.
    pub saved: ViewsMut<'a, S>,
    /// Scratch; contents are unspecified.
    pub scratch: ViewsMut<'a, S>,
}

/// The inputs and outputs of a backward call.
pub struct Bwd<'a, S: Space> {
    /// What the call is made with; its step is that of the forward call.
    pub call: S::Call<'a>,
    /// Input data of those bottoms that the plan says backward reads.
    pub bottoms: Views<'a, S>,
    /// Output data of those tops that the plan says backward reads.
    pub tops: Views<'a, S>,
    /// Gradient of the loss by each top. `None`: it shares memory with a bottom's diff, which holds it on entry.
    pub top_diffs: Views<'a, S>,
    /// Gradient of the loss by each bottom, to be overwritten. `None`: not wanted.
    pub bottom_diffs: ViewsMut<'a, S>,
    /// Parameters.
    pub params: Views<'a, S>,
    /// Gradient of the loss by each parameter, to be added to. `None`: not wanted.
    pub param_diffs: ViewsMut<'a, S>,
    /// What forward left.
    pub saved: Views<'a, S>,
    /// Scratch; contents are unspecified.
    pub scratch: ViewsMut<'a, S>,
}
