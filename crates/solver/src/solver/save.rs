//! Taking snapshots.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lgm_core::fs::{folder_of, remove_unfinished};
use lgm_core::{Error, Result, Shape, State};
use lgm_net::Weights;
use lgm_proto::solver_parameter::SnapshotFormat;
use lgm_proto::{Parsed, SolverParameter, strings};
use tracing::{info, warn};

use super::{Solver, TestNet};
use crate::config::field_error;
use crate::snapshot::{EXTRA_VERSION, Exact, Extra, SnapshotData, TestExtra, exact};

/// The folder of snapshots, where a run's settings ask for any, checked so that the run does not end in vain.
pub(crate) struct SnapshotFolder<'a> {
    parsed: &'a Parsed<SolverParameter>,
    prefix: PathBuf,
}

impl<'a> SnapshotFolder<'a> {
    /// The folder, or the one that it will be made in, which can be written. Nothing is made.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn check(parsed: &'a Parsed<SolverParameter>) -> Result<Option<Self>> {
        let p = &parsed.message;
        if p.snapshot() == 0 && !p.snapshot_after_train() {
            return Ok(None);
        }
        let folder = SnapshotFolder { parsed, prefix: strings::to_path(p.snapshot_prefix()) };
        let path = folder.path();
        let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("."));
        // A file without a name, or at once without one.
        tempfile::tempfile_in(there).map_err(|e| folder.error(e))?;
        Ok(Some(folder))
    }

    /// Makes the folder where it does not exist, and removes what killed processes left of files of the prefix.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn make(&self) -> Result<()> {
        let path = self.path();
        if !path.exists() {
            info!("Creating the snapshot folder {}", path.display());
            std::fs::create_dir_all(path).map_err(|e| self.error(e))?;
        }
        let start = format!("{}_iter_", strings::from_path(self.prefix.file_name().unwrap_or_default()));
        for path in remove_unfinished(path, |name| name.starts_with(&start)) {
            info!("Removing {}, which a process left unfinished", path.display());
        }
        Ok(())
    }

    fn path(&self) -> &Path {
        folder_of(&self.prefix)
    }

    fn error(&self, e: std::io::Error) -> Error {
        let folder = self.path().display();
        let text = format!("cannot write snapshots in the folder '{folder}': {e}; give another snapshot_prefix");
        field_error(&self.parsed.positions, "snapshot_prefix", Error::Config(text))
    }
}

impl Solver {
    /// What the names of snapshots begin with.
    pub(super) fn prefix(&self) -> PathBuf {
        strings::to_path(self.param.snapshot_prefix())
    }

    fn path(&self, extension: &str) -> PathBuf {
        strings::to_path(&format!("{}_iter_{}{extension}", self.param.snapshot_prefix(), self.iter))
    }

    /// Takes a snapshot under `snapshot_prefix`, named after the iteration: copies what it holds, after the one before is
    /// on disk, and writes it while the solver may go on. [`Solver::finish_snapshot`] waits for it, as [`Solver::solve`]
    /// does at its end and dropping the solver too.
    ///
    /// # Errors
    /// When the one before could not be written, the device failed, or something is not finite, which is not written.
    /// What fails in writing this one is the error of the next iteration of [`Solver::solve`], the next snapshot or
    /// [`Solver::finish_snapshot`], which says what of it is on disk: nothing, or the weights whole.
    pub fn snapshot(&mut self) -> Result<()> {
        self.writer.wait()?;
        self.catch_up()?;
        let data = self.take(self.net.weights(self.param.snapshot_diff())?, self.net.state())?;
        if let Some(which) = data.first_not_finite() {
            let text = format!("iteration {}: {which} is not finite, so no snapshot is written", self.iter);
            if self.keep_going {
                warn!("{text}");
                return Ok(());
            }
            self.diverged = true;
            return Err(Error::NotFinite(text));
        }
        data.announce();
        self.writer.start(data)
    }

    /// Waits until the last snapshot is on disk.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn finish_snapshot(&mut self) -> Result<()> {
        self.writer.wait()
    }

    /// What a snapshot holds, given the net's parameters and its layers' states.
    pub(crate) fn take(&self, weights: Weights, mut train: BTreeMap<String, State>) -> Result<SnapshotData> {
        weights.add_carried(&mut train);
        let hdf5 = self.param.snapshot_format() == SnapshotFormat::Hdf5;
        let (model, state) = match hdf5 {
            true => (self.path(".caffemodel.h5"), self.path(".solverstate.h5")),
            false => (self.path(".caffemodel"), self.path(".solverstate")),
        };
        let mut history = self.update.histories()?;
        let shapes: Vec<Shape> = self.net.learnables().map(|l| l.spec.shape.clone()).collect();
        let extra = Extra {
            version: EXTRA_VERSION,
            iter: self.iter,
            seed: self.seed,
            losses: self.losses.iter().copied().map(Exact).collect(),
            smoothed_loss: Exact(self.smoothed_loss),
            train: exact(train),
            test: self.round_start.clone().map_or_else(|| self.test_positions(), Ok)?,
        };
        Ok(SnapshotData {
            prefix: self.prefix(),
            model,
            state,
            hdf5,
            iter: self.iter,
            current_step: self.current_step,
            weights,
            histories: self.histories().map(|(i, k)| (shapes[i].clone(), std::mem::take(&mut history[i][k]))).collect(),
            extra,
        })
    }

    /// Histories in Caffe's order: the first of every parameter that files hold, then the second.
    pub(super) fn histories(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let held: Vec<usize> = self.net.learnables().enumerate().filter(|(_, l)| !l.carried).map(|(i, _)| i).collect();
        (0..self.rule.histories()).flat_map(move |k| held.clone().into_iter().map(move |i| (i, k)))
    }

    /// # Errors
    /// When what a test net carries from pass to pass cannot be read from a device.
    pub(crate) fn test_positions(&self) -> Result<Vec<TestExtra>> {
        let of = |t: &TestNet| Ok(TestExtra { batches: t.batches, state: exact(t.net.whole_state()?) });
        self.test_nets.iter().map(of).collect()
    }
}
