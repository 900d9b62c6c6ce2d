//! Training: learning rates, update rules, the loop of iterations and tests, snapshots and exact resume.

mod config;
mod detection;
mod local_rate;
mod rate;
mod rules;
mod scores;
mod snapshot;
mod solver;
mod update;

pub use rate::Policy;
pub use rules::{Arrays, Rule, Update};
pub use scores::{Score, scores_of};
pub use solver::{Action, Outcome, Solver, Watch};
