//! Snapshots on their way to disk: what one holds is copied, and then encoded, written, synced and put in its place by a
//! thread while training goes on.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use lgm_core::fs::{Staged, publish_all};
use lgm_core::{Error, Result, Shape};
use lgm_hdf5::H5Image;
use lgm_net::Weights;
use lgm_proto::{BlobProto, SolverState, strings};
use tracing::{debug, info, warn};

use super::extra::{Extra, extra_path};
use super::newest::resume_from;

/// A snapshot's contents, as they were at one moment.
pub(crate) struct SnapshotData {
    /// What the names of the run's snapshots begin with.
    pub prefix: PathBuf,
    /// The files of weights and of the solver's state.
    pub model: PathBuf,
    pub state: PathBuf,
    pub hdf5: bool,
    pub iter: i32,
    pub current_step: i32,
    pub weights: Weights,
    /// In Caffe's order.
    pub histories: Vec<(Shape, Vec<f32>)>,
    pub extra: Extra,
}

impl SnapshotData {
    /// Caffe's lines.
    pub fn announce(&self) {
        let kind = if self.hdf5 { "HDF5" } else { "binary proto" };
        info!("Snapshotting to {kind} file {}", self.model.display());
        info!("Snapshotting solver state to {kind} file {}", self.state.display());
    }

    /// The first parameter or history that is not finite, in words.
    pub fn first_not_finite(&self) -> Option<String> {
        if let Some((layer, index)) = self.weights.first_not_finite() {
            return Some(format!("parameter {index} of layer '{layer}'"));
        }
        let odd = self.histories.iter().position(|(_, history)| !lgm_cpu::elementwise::all_finite(history));
        odd.map(|n| format!("the solver's history {n}"))
    }

    /// Writes all files; where the state cannot be written, the weights alone.
    ///
    /// # Errors
    /// When one cannot be written. Nothing has changed on disk then, unless the weights could be written: these are in
    /// their place, and an earlier run's state of the same name is gone. The message says which, and what to resume from.
    pub fn write(self) -> Result<()> {
        let mut kept = String::new();
        let written = self.stage_weights().and_then(|weights| match self.stage_state() {
            Ok([extra, state]) => self.remove_state().and_then(|()| publish_all([weights, extra, state])),
            Err(error) => {
                if self.remove_state().and_then(|()| publish_all([weights])).is_ok() {
                    kept = format!("; the weights are in {}", self.model.display());
                }
                Err(error)
            }
        });
        written.map_err(|error| {
            let (state, from) = (self.state.display(), resume_from(&self.prefix));
            Error::config(format!("the snapshot {state} was not written: {error}{kept}; {from}"))
        })
    }

    fn stage_weights(&self) -> Result<Staged> {
        debug!("Writing {}", self.model.display());
        // Of a run whose settings ask for no snapshot, but for which a signal does, the folder need not be there.
        if let Some(folder) = self.model.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        }
        let weights = match self.hdf5 {
            true => self.weights.image(&self.model)?.bytes()?,
            false => lgm_proto::encode(&self.weights.to_proto()),
        };
        Staged::bytes(&self.model, &weights)
    }

    /// What is written beside the weights: our file and the state.
    fn stage_state(&self) -> Result<[Staged; 2]> {
        let extra = Staged::bytes(&extra_path(&self.state), self.extra.to_json()?.as_bytes())?;
        let model = strings::from_path(&self.model);
        let state = match self.hdf5 {
            true => self.state_image(&model)?.bytes()?,
            false => lgm_proto::encode(&self.state(&model)),
        };
        Ok([extra, Staged::bytes(&self.state, &state)?])
    }

    /// Removes the state that an earlier run may have left under this name, before its weights are replaced, so that a
    /// process killed half-way leaves no state with another run's weights.
    fn remove_state(&self) -> Result<()> {
        match std::fs::remove_file(&self.state) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.state, "replace")(e)),
            _ => Ok(()),
        }
    }

    fn state(&self, model: &str) -> SolverState {
        SolverState {
            iter: Some(self.iter),
            learned_net: Some(model.into()),
            history: self.histories.iter().map(|(s, h)| BlobProto::from_f32(s, h.clone(), None)).collect(),
            current_step: Some(self.current_step),
        }
    }

    fn state_image(&self, model: &str) -> Result<H5Image> {
        let image = H5Image::new(&self.state)?;
        let int = |name: &str, value: i32| image.dataset::<i32>(name, &[1].into(), None)?.write(&[value]);
        int("iter", self.iter)?;
        int("current_step", self.current_step)?;
        image.text("learned_net", model)?;
        image.group("history")?;
        for (n, (shape, values)) in self.histories.iter().enumerate() {
            image.dataset::<f32>(&format!("history/{n}"), shape, None)?.write(values)?;
        }
        Ok(image)
    }
}

/// Writes snapshots, one at a time. Dropping it waits for the one under way.
#[derive(Default)]
pub(crate) struct Writer {
    under_way: Option<Job>,
    /// The newest state file that is in its place, and its iteration.
    last: Option<(i32, PathBuf)>,
    failed: bool,
}

struct Job {
    iter: i32,
    state: PathBuf,
    thread: JoinHandle<Result<()>>,
}

impl Writer {
    /// Begins to write a snapshot, after the one before is done.
    ///
    /// # Errors
    /// When that could not be written, or the system gives no thread.
    pub fn start(&mut self, data: SnapshotData) -> Result<()> {
        self.wait()?;
        let (iter, state) = (data.iter, data.state.clone());
        let thread = std::thread::Builder::new().name("snapshot".into()).spawn(move || data.write());
        let thread = thread.map_err(Error::io(&state, "start a thread to write"))?;
        self.under_way = Some(Job { iter, state, thread });
        Ok(())
    }

    /// Waits for the snapshot under way, if there is one.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn wait(&mut self) -> Result<()> {
        let Some(Job { iter, state, thread }) = self.under_way.take() else { return Ok(()) };
        let panicked = || Error::internal(format!("the thread that wrote {} panicked", state.display()));
        let written = thread.join().unwrap_or_else(|_| Err(panicked()));
        match &written {
            Ok(()) => self.last = Some((iter, state)),
            Err(_) => self.failed = true,
        }
        written
    }

    /// The error of the snapshot under way, if it is done already and could not be written.
    ///
    /// # Errors
    /// That one.
    pub fn check(&mut self) -> Result<()> {
        if self.under_way.as_ref().is_some_and(|job| job.thread.is_finished()) { self.wait() } else { Ok(()) }
    }

    /// Whether a snapshot could not be written.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// The state file of an iteration, if that is the newest in its place.
    pub fn last_of(&self, iter: i32) -> Option<&Path> {
        self.last.as_ref().filter(|last| last.0 == iter).map(|last| last.1.as_path())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            warn!("{error}");
        }
    }
}
