//! What is left of a run on a device when something on it fails.
//!
//! Nobody waits for an iteration on a device, so a fault shows late. From the first iteration with a fault on, the update
//! leaves parameters and histories alone (`kernels/solver.cu`), and the statistics that layers keep by themselves are
//! copied with each update; so what the device holds is the last whole iteration's, and the host keeps what it knew
//! before each iteration that it has not looked at. A device that still answers gives all that back for a last snapshot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lgm_core::{Error, Result, State};
use tracing::warn;

use crate::solver::Solver;
use crate::writer::Taken;

/// What the host knows before an iteration that goes on to change in it.
pub(crate) struct Mark {
    state: BTreeMap<String, State>,
    current_step: i32,
}

impl Solver {
    /// Remembers what the host knows, on a device; call before each iteration.
    pub(crate) fn mark(&mut self) {
        if self.device.is_some() {
            self.marks.push(Mark { state: self.net.state(), current_step: self.current_step });
        }
    }

    /// What to say of an error that ends a run: on a device, with where its last whole iteration is saved, or what to
    /// resume from if it does not answer. The solver is of no further use.
    pub(crate) fn salvage(&mut self, error: Error) -> Error {
        let takes_snapshots = self.param.snapshot() > 0 || self.param.snapshot_after_train();
        if self.device.is_none() || self.writer.failed() || !takes_snapshots {
            return error;
        }
        if let Err(unwritten) = self.writer.wait() {
            warn!("{unwritten}");
        }
        let note = match self.last_whole() {
            Ok(_) if self.iter == self.started => return error,
            Ok(taken) => self.save(taken),
            Err(silent) => {
                warn!("nothing can be read from the device: {silent}");
                let lost = "the device does not answer, and what it held is gone";
                match newest(Path::new(self.param.snapshot_prefix())) {
                    Some(state) => {
                        let state = state.display();
                        format!("{lost}; the newest snapshot is {state}: resume with -snapshot {state}")
                    }
                    None => format!("{lost}; there is no snapshot yet (the solver's 'snapshot' takes them on the way)"),
                }
            }
        };
        Error::config(format!("{error}; {note}"))
    }

    fn save(&self, taken: Taken) -> String {
        let (iter, state) = (taken.iter, taken.state.clone());
        let written = match self.writer.last_of(iter) {
            Some(_) => Ok(()),
            None => {
                taken.announce();
                taken.write()
            }
        };
        match written {
            Ok(()) => {
                format!("iteration {iter}, the last whole one, is saved: resume with -snapshot {}", state.display())
            }
            Err(unwritten) => format!("nor could iteration {iter}, the last whole one, be saved: {unwritten}"),
        }
    }

    /// Goes back to the last whole iteration and takes what a snapshot of it holds.
    fn last_whole(&mut self) -> Result<Taken> {
        let Some(device) = &self.device else { return Err(Error::internal("the solver runs on the host")) };
        let (queued, losses) = device.whole()?;
        let whole = losses.len();
        let mut weights = self.net.weights(false)?;
        device.kept_state()?.iter().try_for_each(|(learnable, values)| weights.set(*learnable, values))?;
        losses.into_iter().for_each(|loss| self.smooth(loss));
        self.iter -= (queued - whole) as i32;
        let state = match self.marks.drain(..).nth(whole) {
            Some(mark) => {
                self.current_step = mark.current_step;
                mark.state
            }
            None => self.net.state(),
        };
        self.take(weights, state)
    }
}

/// The newest state file under a prefix of snapshots.
fn newest(prefix: &Path) -> Option<PathBuf> {
    let folder = prefix.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let start = format!("{}_iter_", prefix.file_name()?.to_string_lossy());
    let each = std::fs::read_dir(folder).ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let rest = name.strip_prefix(&start)?;
        let iter = rest.strip_suffix(".solverstate").or_else(|| rest.strip_suffix(".solverstate.h5"))?;
        let iter: i32 = iter.parse().ok()?;
        Some((entry.metadata().ok()?.modified().ok()?, iter, prefix.with_file_name(name)))
    });
    each.max().map(|(_, _, path)| path)
}
