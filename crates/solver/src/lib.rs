//! Training: learning rates, update rules, the loop of iterations and tests, snapshots and exact resume.

mod config;
mod device;
mod fault;
mod finite;
mod rate;
mod rule;
mod snapshot;
mod solver;
mod test;
mod writer;

pub use rate::{LR_POLICIES, learning_rate};
pub use rule::{RULES, Update, apply, histories};
pub use solver::{Action, Outcome, Solver, Watch};
pub use test::{Score, scores_of};
