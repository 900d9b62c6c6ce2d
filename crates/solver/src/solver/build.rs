//! Building a solver: its nets, their weights, and the update.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use lgm_core::{Error, Phase, Registry, Result};
use lgm_cuda::Gpu;
use lgm_net::{Net, Options, Placement, expect_kind, fresh_seed};
use lgm_proto::{FileKind, Parsed, SolverParameter, strings};
use tracing::info;

use super::save::SnapshotFolder;
use super::{Solver, TestNet};
use crate::config::{self, NetSource};
use crate::rate::{MomentumPolicy, Policy};
use crate::rules::Rule;
use crate::snapshot::Writer;
use crate::update::updater;

impl Solver {
    /// Builds the training net and the test nets of a solver's prototxt and loads its `weights`.
    ///
    /// # Errors
    /// Whatever is wrong with the solver, the nets or the data they name, with its place.
    pub fn new(parsed: &Parsed<SolverParameter>, registry: &Registry) -> Result<Solver> {
        Solver::new_on(parsed, registry, None)
    }

    /// As [`Solver::new`], on a device if one is given.
    ///
    /// # Errors
    /// As for [`Solver::new`], and when the device has no room or cannot run a layer.
    pub fn new_on(parsed: &Parsed<SolverParameter>, registry: &Registry, gpu: Option<&Rc<dyn Gpu>>) -> Result<Solver> {
        parsed.notices.iter().for_each(|n| info!("{n}"));
        parsed.warnings.iter().for_each(|w| tracing::warn!("{w}"));
        let param = parsed.message.clone();
        info!("Initializing solver from parameters: \n{}", lgm_proto::to_text(&param));
        config::check(parsed)?;
        let weights = param.weights.iter().flat_map(|w| w.split(','));
        let weights: Vec<PathBuf> = weights.map(|path| strings::to_path(path.trim())).collect();
        for path in &weights {
            let there = FileKind::of(path).map_err(Error::from).and_then(|_| expect_kind(path, FileKind::Weights));
            there.map_err(|error| match parsed.positions.get("weights") {
                Some(_) => config::field_error(&parsed.positions, "weights", error),
                None => error,
            })?;
        }
        let snapshots = SnapshotFolder::check(parsed)?;
        let (rule, policy) = (Rule::of(&param)?, Policy::of(&param)?);
        let momentum = if rule == Rule::Sgd { Some(MomentumPolicy::of(&param)?) } else { None };
        let seed = match param.random_seed() {
            seed if seed >= 0 => seed as u64,
            _ => {
                // Below 2^53, so that it can be given as random_seed and kept in any number format.
                let seed = fresh_seed() >> 11;
                info!("Random seed: {seed} (random_seed: {seed} repeats this run)");
                seed
            }
        };
        let build = |source: &NetSource, with: Option<&Net>, over: Option<&lgm_proto::NetState>| -> Result<Net> {
            let phase = if with.is_some() { Phase::Test } else { Phase::Train };
            let mut options = Options::new(phase, seed);
            options.merge_state(source.net.message.state.as_ref());
            options.merge_state(over);
            // Layers computed together have no blobs between them to log.
            options.fuse &= !param.debug_info();
            let histories = if phase == Phase::Train { rule.histories() } else { 0 };
            options.device = gpu.map(|gpu| Placement { gpu: gpu.clone(), histories });
            let (message, positions) = (&source.net.message, &source.net.positions);
            let mut net = match with {
                Some(train) => train.sharing(message, positions, registry, &options)?,
                None => Net::new(message, positions, registry, &options)?,
            };
            for path in &weights {
                info!("Finetuning from {}", path.display());
                net.load_weights(path)?;
            }
            Ok(net)
        };
        let train = config::train_net(parsed)?;
        info!("Creating training net from {}", train.said);
        let net = build(&train, None, param.train_state.as_ref())?;
        let mut test_nets = Vec::new();
        for (i, source) in config::test_nets(parsed)?.iter().enumerate() {
            info!("Creating test net (#{i}) specified by {}", source.said);
            let mut test = build(source, Some(&net), param.test_state.get(i))?;
            test.set_debug_info(param.debug_info());
            test_nets.push(TestNet { net: test, batches: 0 });
        }
        if let Some(folder) = snapshots {
            folder.make()?;
        }
        info!("Solver scaffolding done.");
        let update = updater(&net, &param)?;
        Ok(Solver {
            param,
            net,
            test_nets,
            seed,
            iter: 0,
            current_step: 0,
            rule,
            policy,
            momentum,
            update,
            losses: VecDeque::new(),
            smoothed_loss: 0.0,
            round_start: None,
            checkpoints: Vec::new(),
            started: 0,
            writer: Writer::default(),
            diverged: false,
            keep_going: false,
            stop: false,
        })
    }
}
