//! What is left of a run when something in it fails, or is not finite any more.
//!
//! Nobody waits for an iteration on a device, so a fault shows late. From the first iteration with a fault on, the update
//! leaves parameters and histories alone (`kernels/solver.cu`), and the statistics that layers keep by themselves are
//! copied with each update; so what the device holds is the last whole iteration's, and the host keeps what it knew
//! before each iteration that it has not looked at. A device that still answers gives all that back for a last snapshot.
//!
//! On the host, what fails in a pass, a loss that is not finite included, is seen before the update, so parameters and
//! histories are the last whole iteration's too, and what the iteration has changed already is kept from before it.

use lgm_core::{Error, Result};
use tracing::warn;

use super::Solver;
use super::checkpoint::Checkpoint;
use crate::snapshot::{SnapshotData, resume_from};

impl Solver {
    /// Remembers what an iteration goes on to change; call before each.
    pub(crate) fn checkpoint(&mut self) -> Result<()> {
        self.update.keep_statistics(&mut self.net)?;
        self.checkpoints.push(Checkpoint { state: self.net.state(), current_step: self.current_step });
        Ok(())
    }

    /// What to say of an error that ends a run: where its last whole iteration is saved, or what to resume from if it
    /// cannot be. The solver is of no further use.
    pub(crate) fn salvage(&mut self, error: Error) -> Error {
        let takes_snapshots = self.param.snapshot() > 0 || self.param.snapshot_after_train();
        if self.writer.failed() {
            return error;
        }
        if let Err(unwritten) = self.writer.wait() {
            warn!("{unwritten}");
        }
        let last = self.last_completed();
        let nothing_new = self.iter == self.started;
        let note = match last {
            Ok((data, checkpoint)) => {
                let first = self.explain(checkpoint.as_ref());
                let note = match data.first_not_finite() {
                    _ if nothing_new || !takes_snapshots => None,
                    Some(which) => Some(format!(
                        "iteration {} cannot be saved: {which} is not finite; {}",
                        self.iter,
                        resume_from(&self.prefix())
                    )),
                    None => Some(self.save(data)),
                };
                let advice = "if the data are finite, try a lower base_lr, or clip_gradients".to_string();
                let advice = Some(advice).filter(|_| self.diverged);
                let parts = [first, advice, note].into_iter().flatten().collect::<Vec<_>>();
                if parts.is_empty() {
                    return error;
                }
                parts.join("; ")
            }
            Err(_) if !takes_snapshots => return error,
            Err(silent) => {
                warn!("nothing can be read from the device: {silent}");
                format!("the device does not answer, and what it held is gone; {}", resume_from(&self.prefix()))
            }
        };
        Error::Ended { source: Box::new(error), note }
    }

    /// For an iteration whose loss was not finite, perhaps iterations ago: what was the first not to be.
    fn explain(&mut self, checkpoint: Option<&Checkpoint>) -> Option<String> {
        let checkpoint = checkpoint.filter(|_| self.diverged)?;
        let first = self.net.restore(&checkpoint.state).and_then(|()| self.first_not_finite());
        first.unwrap_or_default().map(|first| format!("the first that is not finite is {first}"))
    }

    fn save(&self, data: SnapshotData) -> String {
        let (iter, state) = (data.iter, data.state.clone());
        let written = match self.writer.last_of(iter) {
            Some(_) => Ok(()),
            None => {
                data.announce();
                data.write()
            }
        };
        match written {
            Ok(()) => {
                format!("iteration {iter}, the last whole one, is saved: resume with -snapshot {}", state.display())
            }
            Err(unwritten) => format!("nor could iteration {iter}, the last whole one, be saved: {unwritten}"),
        }
    }

    /// Goes back to the last whole iteration and takes what a snapshot of it holds. Gives what was known before the
    /// iteration that failed too, if one did.
    fn last_completed(&mut self) -> Result<(SnapshotData, Option<Checkpoint>)> {
        let mut weights = self.net.weights(false)?;
        let (queued, losses) = self.update.completed()?;
        let completed = losses.len();
        losses.into_iter().for_each(|loss| self.smooth(loss));
        self.iter -= (queued - completed) as i32;
        let checkpoint = self.checkpoints.drain(..).nth(completed);
        let state = match &checkpoint {
            Some(checkpoint) => {
                self.current_step = checkpoint.current_step;
                checkpoint.state.clone()
            }
            None => self.net.state(),
        };
        self.update.statistics()?.iter().try_for_each(|(learnable, values)| weights.set(*learnable, values))?;
        Ok((self.take(weights, state)?, checkpoint))
    }
}
