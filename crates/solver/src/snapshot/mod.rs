//! Snapshots and resuming from them.
//!
//! A snapshot is Caffe's two files, the weights (`.caffemodel`, `.caffemodel.h5`) and the solver's state
//! (`.solverstate`, `.solverstate.h5`), and a third beside the state, with `.lgm` added to its name: JSON with what
//! Caffe's file has no place for (the random seed, data positions, margin schedules, the loss average). Caffe reads the
//! first two; we resume from them alone too, only then data starts from its beginning, as in Caffe.
//!
//! All three are written under temporary names, synced and then renamed, weights first and state last, so a state file
//! never appears before what it needs; see [`Writer`].

mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use lgm_core::fs::remove_unfinished;
use lgm_core::{Error, Registry, Result, Shape, State, memory};
use lgm_cuda::Gpu;
use lgm_hdf5::H5File;
use lgm_net::{Weights, expect_kind};
use lgm_proto::solver_parameter::SnapshotFormat;
use lgm_proto::{BlobProto, FileKind, Parsed, SolverParameter, SolverState};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::config::field_error;
use crate::solver::Solver;
pub(crate) use writer::{SnapshotData, Writer};

/// What Caffe's solver state cannot hold.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Extra {
    version: u32,
    iter: i32,
    seed: u64,
    losses: Vec<Exact>,
    smoothed_loss: Exact,
    train: NetExtra,
    test: Vec<TestExtra>,
}

impl Extra {
    /// As JSON.
    ///
    /// # Errors
    /// Never, as far as is known.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::internal(e.to_string()))
    }
}

/// By layer.
type NetExtra = BTreeMap<String, BTreeMap<String, Exact>>;

/// Where a test net stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TestExtra {
    batches: u64,
    state: NetExtra,
}

/// A number written as text that reads back as the same bits; JSON's numbers have no infinity and no NaN.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Exact(f64);

impl From<Exact> for String {
    fn from(Exact(number): Exact) -> String {
        number.to_string()
    }
}

impl TryFrom<String> for Exact {
    type Error = std::num::ParseFloatError;

    fn try_from(text: String) -> Result<Exact, Self::Error> {
        text.parse().map(Exact)
    }
}

fn exact(state: BTreeMap<String, State>) -> NetExtra {
    let layer = |(name, state): (String, State)| (name, state.into_iter().map(|(k, v)| (k, Exact(v))).collect());
    state.into_iter().map(layer).collect()
}

fn plain(state: NetExtra) -> BTreeMap<String, State> {
    state.into_iter().map(|(name, layer)| (name, layer.into_iter().map(|(k, Exact(v))| (k, v)).collect())).collect()
}

const EXTRA_VERSION: u32 = 1;

/// What a state file says.
struct Restored {
    iter: i32,
    current_step: i32,
    learned_net: Option<String>,
    history: Histories,
}

/// The arrays of a state file, not read yet.
enum Histories {
    Binary(Vec<BlobProto>),
    Hdf5(H5File, usize),
}

impl Histories {
    fn len(&self) -> usize {
        match self {
            Histories::Binary(blobs) => blobs.len(),
            Histories::Hdf5(_, count) => *count,
        }
    }

    /// Array `n`, which must be of a shape.
    fn read(&self, n: usize, shape: &Shape) -> Result<Vec<f32>> {
        let wrong = |found: Shape| Error::Shape { what: "another net's".into(), expected: shape.clone(), found };
        match self {
            Histories::Binary(blobs) => {
                let values = blobs[n].values_f32()?;
                match blobs[n].fits(shape) {
                    true => Ok(values.into_owned()),
                    false => Err(wrong(blobs[n].extents()?.as_slice().into())),
                }
            }
            Histories::Hdf5(file, _) => {
                let dataset = file.dataset(&format!("history/{n}"))?;
                if dataset.shape() != shape {
                    return Err(wrong(dataset.shape().clone()));
                }
                let mut values = memory::zeros(shape.count(), "a history array")?;
                dataset.read_into(&mut values)?;
                Ok(values)
            }
        }
    }
}

/// The prefix of snapshot files; its folder is made when it does not exist, so that a run does not end in vain.
///
/// # Errors
/// When the folder cannot be made or written.
pub(crate) fn check_writable(parsed: &Parsed<SolverParameter>) -> Result<()> {
    let p = &parsed.message;
    if p.snapshot() == 0 && !p.snapshot_after_train() {
        return Ok(());
    }
    let prefix = Path::new(p.snapshot_prefix());
    let folder = prefix.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = |e: std::io::Error| {
        let text =
            format!("cannot write snapshots in the folder '{}': {e}; give another snapshot_prefix", folder.display());
        field_error(&parsed.positions, "snapshot_prefix", text)
    };
    if !folder.exists() {
        info!("Creating the snapshot folder {}", folder.display());
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    // A file without a name, or at once without one.
    tempfile::tempfile_in(folder).map_err(fail)?;
    let start = format!("{}_iter_", prefix.file_name().unwrap_or_default().to_string_lossy());
    for path in remove_unfinished(folder, |name| name.starts_with(&start)) {
        info!("Removing {}, which a process left unfinished", path.display());
    }
    Ok(())
}

/// What stands beside a state file, if it is there.
///
/// # Errors
/// When it is there but cannot be read or makes no sense.
fn read_extra(state: &Path) -> Result<Option<Extra>> {
    let path = extra_path(state);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "read")(e)),
    };
    let hint = format!("remove it to resume from {} alone", state.display());
    let extra: Extra =
        serde_json::from_str(&text).map_err(|e| Error::data(&path, format!("is damaged: {e}; {hint}")))?;
    if extra.version != EXTRA_VERSION {
        let what = format!("is of version {}, this program's is {EXTRA_VERSION}; {hint}", extra.version);
        return Err(Error::data(&path, what));
    }
    Ok(Some(extra))
}

pub(crate) fn extra_path(state: &Path) -> PathBuf {
    let mut name = state.as_os_str().to_owned();
    name.push(".lgm");
    name.into()
}

impl Solver {
    fn path(&self, extension: &str) -> PathBuf {
        format!("{}_iter_{}{extension}", self.param.snapshot_prefix(), self.iter).into()
    }

    /// Takes a snapshot under `snapshot_prefix`, named after the iteration: copies what it holds, after the one before is
    /// on disk, and writes it while the solver may go on. [`Solver::finish_snapshot`] waits for it, as [`Solver::solve`]
    /// does at its end and dropping the solver too.
    ///
    /// # Errors
    /// When the one before could not be written, the device failed, or something is not finite, which is not written. What fails in writing this one is the error of the
    /// next iteration of [`Solver::solve`], the next snapshot or [`Solver::finish_snapshot`]; nothing has changed on disk
    /// then.
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
    pub(crate) fn take(&self, weights: Weights, train: BTreeMap<String, State>) -> Result<SnapshotData> {
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
            test: self.round_start.clone().unwrap_or_else(|| self.test_positions()),
        };
        Ok(SnapshotData {
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

    /// Histories in Caffe's order: the first of every parameter, then the second.
    fn histories(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (n, kinds) = (self.net.learnables().len(), self.rule.histories());
        (0..kinds).flat_map(move |k| (0..n).map(move |i| (i, k)))
    }

    pub(crate) fn test_positions(&self) -> Vec<TestExtra> {
        self.test_nets.iter().map(|t| TestExtra { batches: t.batches, state: exact(t.net.state()) }).collect()
    }

    /// Builds a solver as [`Solver::new`] does and takes up a snapshot by its state file, ours or Caffe's. Where the
    /// prototxt gives no `random_seed`, the run goes on with the snapshot's.
    ///
    /// # Errors
    /// As [`Solver::new`]; when a file is missing or damaged, or belongs to another net or solver type.
    pub fn resume(parsed: &Parsed<SolverParameter>, registry: &Registry, state: impl AsRef<Path>) -> Result<Solver> {
        Solver::resume_on(parsed, registry, state, None)
    }

    /// As [`Solver::resume`], on a device if one is given, whichever the snapshot was written on.
    ///
    /// # Errors
    /// As for [`Solver::resume`] and [`Solver::new_on`].
    pub fn resume_on(
        parsed: &Parsed<SolverParameter>,
        registry: &Registry,
        state: impl AsRef<Path>,
        gpu: Option<&Rc<dyn Gpu>>,
    ) -> Result<Solver> {
        let path = state.as_ref();
        expect_kind(path, FileKind::State)?;
        let mut parsed = parsed.clone();
        // Data layers take the seed when they are built.
        if parsed.message.random_seed() < 0
            && let Some(extra) = read_extra(path)?
        {
            parsed.message.random_seed = Some(extra.seed as i64);
        }
        let mut solver = Solver::new_on(&parsed, registry, gpu)?;
        info!("Resuming from {}", path.display());
        solver.restore(path)?;
        Ok(solver)
    }

    /// Takes up a snapshot by its state file (`.solverstate` or `.solverstate.h5`), ours or Caffe's.
    ///
    /// # Errors
    /// When a file is missing or damaged, or belongs to another net or solver type.
    fn restore(&mut self, path: &Path) -> Result<()> {
        let state = match lgm_hdf5::is_hdf5(path)? {
            true => read_state_hdf5(path)?,
            false => read_state(path)?,
        };
        // Beyond max_iter nothing is left to do, and no iteration is before the first.
        let last = self.param.max_iter();
        if !(0..=last).contains(&state.iter) {
            let what = format!("is of iteration {}, expected one from 0 to max_iter, which is {last}", state.iter);
            return Err(Error::data(path, what));
        }
        if !(0..=state.iter).contains(&state.current_step) {
            let what = format!(
                "says that the learning rate has data {} steps, expected from 0 to the iteration, which is {}",
                state.current_step, state.iter
            );
            return Err(Error::data(path, what));
        }
        if let Some(model) = &state.learned_net {
            self.net.load_weights(find_model(model, path)?)?;
        }
        let wanted: Vec<(usize, usize)> = self.histories().collect();
        if state.history.len() != wanted.len() {
            let what = format!(
                "holds {} history arrays, but a {} solver on this net keeps {}: was it written for another net or type?",
                state.history.len(),
                self.param.r#type(),
                wanted.len()
            );
            return Err(Error::data(path, what));
        }
        info!("SGDSolver: restoring history");
        let shapes: Vec<Shape> = self.net.learnables().map(|l| l.spec.shape.clone()).collect();
        let mut history = vec![[Vec::new(), Vec::new()]; shapes.len()];
        for (n, (i, k)) in wanted.into_iter().enumerate() {
            history[i][k] = state.history.read(n, &shapes[i]).map_err(|e| {
                let l = self.net.learnables().nth(i).map(|l| format!("parameter {} of layer '{}'", l.index, l.layer));
                Error::data(path, format!("history of {}: {e}", l.unwrap_or_default()))
            })?;
        }
        self.update.set_histories(history)?;
        (self.iter, self.current_step) = (state.iter, state.current_step);
        self.restore_extra(path)
    }

    fn restore_extra(&mut self, state: &Path) -> Result<()> {
        let path = extra_path(state);
        let Some(extra) = read_extra(state)? else {
            info!("There is no {}: data starts from its beginning, as in Caffe", path.display());
            return Ok(());
        };
        if extra.iter != self.iter {
            let what = format!(
                "is of iteration {}, expected {}; remove it to resume from {} alone",
                extra.iter,
                self.iter,
                state.display()
            );
            return Err(Error::data(&path, what));
        }
        self.net.restore(&plain(extra.train))?;
        if extra.test.len() != self.test_nets.len() {
            warn!(
                "The snapshot has {} test nets, this solver {}: their data start anew",
                extra.test.len(),
                self.test_nets.len()
            );
        } else {
            for (test, extra) in self.test_nets.iter_mut().zip(extra.test) {
                test.batches = extra.batches;
                test.net.restore(&plain(extra.state))?;
            }
        }
        if extra.losses.len() <= self.param.average_loss() as usize {
            self.losses = extra.losses.iter().map(|l| l.0).collect();
            self.smoothed_loss = extra.smoothed_loss.0;
        }
        Ok(())
    }
}

/// The weights a state names: as named (from the current folder), else beside the state file.
fn find_model(model: &str, state: &Path) -> Result<PathBuf> {
    let named = PathBuf::from(model);
    let beside = state.with_file_name(named.file_name().unwrap_or_default());
    match (named.exists(), beside.exists()) {
        (true, _) => Ok(named),
        (false, true) => {
            info!("{model} is not there; taking {} beside the state", beside.display());
            Ok(beside)
        }
        (false, false) => Err(Error::data(
            state,
            format!("names the weights {model}, which are neither there nor at {}", beside.display()),
        )),
    }
}

fn read_state(path: &Path) -> Result<Restored> {
    let state: SolverState = lgm_proto::read_binary(path)?;
    Ok(Restored {
        iter: state.iter(),
        current_step: state.current_step(),
        learned_net: state.learned_net.clone(),
        history: Histories::Binary(state.history),
    })
}

fn read_state_hdf5(path: &Path) -> Result<Restored> {
    let file = H5File::open(path)?;
    Ok(Restored {
        iter: file.integer("iter")?,
        current_step: file.integer("current_step")?,
        learned_net: file.contains("learned_net").then(|| file.text("learned_net")).transpose()?,
        history: {
            let count = file.members("history")?;
            Histories::Hdf5(file, count)
        },
    })
}
