//! What is known before an iteration.

use std::collections::BTreeMap;

use lgm_core::State;

/// What the host knows before an iteration that goes on to change in it.
pub(crate) struct Checkpoint {
    /// What layers must remember besides parameters, by layer.
    pub state: BTreeMap<String, State>,
    /// See [`lgm_proto::SolverState::current_step`].
    pub current_step: i32,
}
