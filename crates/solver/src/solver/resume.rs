//! Going on from a snapshot, ours or Caffe's.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use lgm_core::{Error, Registry, Result, Shape, memory};
use lgm_cuda::Gpu;
use lgm_hdf5::H5File;
use lgm_net::expect_kind;
use lgm_proto::{BlobProto, FileKind, Parsed, SolverParameter, SolverState, strings};
use tracing::{info, warn};

use super::Solver;
use crate::snapshot::{extra_path, plain, read_extra};

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

impl Solver {
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
                "says that the learning rate has taken {} steps, expected from 0 to the iteration, which is {}",
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
                "holds {} history arrays, but a solver of type {} keeps {} on this net: was it written for another net or \
                 type?",
                state.history.len(),
                self.param.r#type(),
                wanted.len()
            );
            return Err(Error::data(path, what));
        }
        info!("SGDSolver: restoring history");
        let shapes: Vec<Shape> = self.net.learnables().map(|l| l.spec.shape.clone()).collect();
        let mut history = self.update.histories()?;
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
    let named = strings::to_path(model);
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
