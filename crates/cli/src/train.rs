//! `lgm-caffe train`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::ExitCode;

use anyhow::Context;
use lgm_core::fs::folder_of;
use lgm_net::expect_kind;
use lgm_proto::{FileKind, SolverParameter, strings};
use lgm_solver::{Action, Solver, Watch};
use tracing::{info, warn};

use crate::args::TrainArgs;
use crate::progress::Progress;
use crate::signals::{self, Signals};
use crate::time::report_convolutions;
use crate::{gpu, models};

struct Watcher {
    signals: Signals,
    progress: Progress,
}

impl Watch for Watcher {
    fn action(&mut self) -> Action {
        match self.signals.poll() {
            signals::Action::Stop => Action::Stop,
            signals::Action::Snapshot => Action::Snapshot,
            signals::Action::None => Action::None,
        }
    }

    fn progress(&mut self, iter: i32, loss: f64) {
        self.progress.update(iter as u64, loss);
    }
}

/// Claims the names of a run's snapshots among the processes of this machine, until what is returned is dropped, and warns
/// where another has them. A socket stands for them, since it leaves nothing behind however its process ends.
fn claim(param: &SolverParameter) -> Option<UnixListener> {
    if param.snapshot() == 0 && !param.snapshot_after_train() {
        return None;
    }
    let prefix = strings::to_path(param.snapshot_prefix());
    let folder = folder_of(&prefix).metadata().ok()?;
    let mut name = DefaultHasher::new();
    prefix.file_name().hash(&mut name);
    let name = format!("lgm-caffe-snapshots-{:x}-{:x}-{:x}", folder.dev(), folder.ino(), name.finish());
    let claimed = SocketAddr::from_abstract_name(name).and_then(|name| UnixListener::bind_addr(&name));
    if claimed.as_ref().is_err_and(|e| e.kind() == ErrorKind::AddrInUse) {
        warn!(
            "another process trains with the snapshot_prefix '{}' too: the snapshots of one replace those of the other",
            prefix.display()
        );
    }
    claimed.ok()
}

/// Trains a solver's net, from scratch, from weights or from a snapshot.
///
/// # Errors
/// Whatever is wrong with the solver, its nets and data, or the files named by flags.
pub fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let mut solver = models::solver(&args.solver)?;
    let param = &mut solver.message;
    let state = models::state(&args.state);
    let train_state = param.train_state.get_or_insert_default();
    train_state.level = state.level.or(train_state.level);
    train_state.stage.extend(state.stage);
    let gpu = gpu::choose_device(&args.device, Some(param))?;
    if args.snapshot.is_some() {
        param.weights.clear();
    } else if !args.weights.is_empty() {
        for file in &args.weights {
            FileKind::of(file)?;
            expect_kind(file, FileKind::Weights)?;
        }
        param.weights = args.weights.iter().map(strings::from_path).collect();
    }
    let signals = signals::install(args.sigint_effect, args.sighup_effect)?;
    let registry = models::registry();
    let mut solver = match &args.snapshot {
        None => Solver::new_on(&solver, &registry, gpu.as_ref())?,
        Some(state) => Solver::resume_on(&solver, &registry, state, gpu.as_ref())
            .with_context(|| format!("cannot resume from {}", state.display()))?,
    };
    solver.keep_going(args.keep_going);
    let _claim = claim(solver.param());
    info!("Starting Optimization");
    let total = solver.param().max_iter().max(0) as u64;
    let progress = Progress::new(total, solver.iter() as u64);
    let mut watcher = Watcher { signals, progress };
    solver.solve(&mut watcher)?;
    watcher.progress.finish();
    report_convolutions(solver.net());
    info!("Optimization Done.");
    Ok(ExitCode::SUCCESS)
}
