//! The training loop.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use lgm_core::{Phase, Registry, Result, Step, memory};
use lgm_net::{Gpu, LearnableInfo, Net, Options, Pass, Placement, expect_kind, fresh_seed, six_digits};
use lgm_proto::{FileKind, Parsed, SolverParameter};
use tracing::{info, warn};

use crate::config::{self, NetSource};
use crate::device::OnDevice;
use crate::fault::Mark;
use crate::rule::{self, Update};
use crate::snapshot::TestExtra;
use crate::test::{lines, scores_from, scores_of};
use crate::writer::Writer;

/// What somebody outside asks of a running solver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Go on.
    None,
    /// Stop after this iteration, with a snapshot.
    Stop,
    /// Write a snapshot and go on.
    Snapshot,
}

/// Whoever watches a solver run: signals, a progress bar.
pub trait Watch {
    /// Asked between iterations and between test batches.
    fn action(&mut self) -> Action {
        Action::None
    }

    /// Told after each iteration: how many are done, and the smoothed loss.
    fn progress(&mut self, _iter: i32, _loss: f64) {}
}

/// A watcher that never interferes.
impl Watch for () {}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All iterations are done.
    Done,
    /// Stopped early on request.
    Stopped,
}

/// A net being trained.
pub struct Solver {
    pub(crate) param: SolverParameter,
    pub(crate) net: Net,
    pub(crate) test_nets: Vec<TestNet>,
    pub(crate) seed: u64,
    pub(crate) iter: i32,
    pub(crate) current_step: i32,
    /// By learnable parameter: the rule's first and second history; empty on a device, which has its own.
    pub(crate) history: Vec<[Vec<f32>; 2]>,
    /// The latest losses, the oldest first.
    pub(crate) losses: VecDeque<f64>,
    pub(crate) smoothed_loss: f64,
    /// Where the test nets stood when the round of tests in hand began: a run resumed from within it repeats it.
    pub(crate) round_start: Option<Vec<TestExtra>>,
    pub(crate) device: Option<OnDevice>,
    /// What was known before each iteration that is not over, or that the host has not looked at the device since.
    pub(crate) marks: Vec<Mark>,
    /// The iteration at which [`Solver::solve`] began.
    pub(crate) started: i32,
    pub(crate) writer: Writer,
    /// Whether something was not finite, and whether the run goes on then.
    pub(crate) diverged: bool,
    pub(crate) keep_going: bool,
    stop: bool,
}

/// A test net and the number of forward passes it has made.
pub(crate) struct TestNet {
    pub net: Net,
    pub batches: u64,
}

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
        let param = parsed.message.clone();
        info!("Initializing solver from parameters: \n{}", lgm_proto::to_text(&param));
        config::check(parsed)?;
        let weights: Vec<&str> = param.weights.iter().flat_map(|w| w.split(',')).map(str::trim).collect();
        weights.iter().try_for_each(|path| expect_kind(path, FileKind::Weights))?;
        crate::snapshot::check_writable(parsed)?;
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
            config::merge_state(&mut options.state, source.net.message.state.as_ref());
            config::merge_state(&mut options.state, over);
            // Layers computed together have nothing between them to tell of.
            options.fuse &= !param.debug_info();
            let histories = if phase == Phase::Train { rule::histories(param.r#type()) } else { 0 };
            options.device = gpu.map(|gpu| Placement { gpu: gpu.clone(), histories });
            let (message, positions) = (&source.net.message, &source.net.positions);
            let mut net = match with {
                Some(train) => train.sharing(message, positions, registry, &options)?,
                None => Net::new(message, positions, registry, &options)?,
            };
            for path in &weights {
                info!("Finetuning from {path}");
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
            test_nets.push(TestNet { net: build(source, Some(&net), param.test_state.get(i))?, batches: 0 });
        }
        info!("Solver scaffolding done.");
        let two = rule::histories(param.r#type()) == 2;
        let device = OnDevice::new(&net, &param)?;
        let history = match &device {
            Some(_) => Vec::new(),
            None => {
                let each = |l: LearnableInfo<'_>| {
                    let n = l.spec.shape.count();
                    let zeros = |n| memory::zeros(n, format!("layer '{}': the solver's history", l.layer));
                    Ok([zeros(n)?, zeros(if two { n } else { 0 })?])
                };
                net.learnables().map(each).collect::<Result<_>>()?
            }
        };
        Ok(Solver {
            param,
            net,
            test_nets,
            seed,
            iter: 0,
            current_step: 0,
            history,
            losses: VecDeque::new(),
            smoothed_loss: 0.0,
            round_start: None,
            device,
            marks: Vec::new(),
            started: 0,
            writer: Writer::default(),
            diverged: false,
            keep_going: false,
            stop: false,
        })
    }

    /// The training net.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The solver's settings.
    pub fn param(&self) -> &SolverParameter {
        &self.param
    }

    /// Iterations done.
    pub fn iter(&self) -> i32 {
        self.iter
    }

    /// Trains to `max_iter`, with tests and snapshots on the way. Snapshots are on disk when this returns.
    ///
    /// # Errors
    /// When data cannot be read, a layer refuses its input or a snapshot cannot be written; when a loss, a gradient or a
    /// parameter is not finite (but see [`Solver::keep_going`]) or a device fails, after a snapshot of the last whole
    /// iteration where it can be had, with what to resume from. The solver is not to be used any more then.
    pub fn solve(&mut self, watch: &mut dyn Watch) -> Result<Outcome> {
        info!("Solving {}", self.net.name());
        info!("Learning Rate Policy: {}", self.param.lr_policy());
        (self.stop, self.round_start, self.started, self.diverged) = (false, None, self.iter, false);
        if let Some(device) = &self.device {
            device.keep_state()?;
        }
        self.train(watch).map_err(|error| self.salvage(error))
    }

    fn train(&mut self, watch: &mut dyn Watch) -> Result<Outcome> {
        self.run_to(self.param.max_iter(), watch)?;
        self.catch_up()?;
        let just_saved = self.param.snapshot() > 0 && self.iter % self.param.snapshot() == 0;
        if self.param.snapshot_after_train() && !just_saved {
            self.snapshot()?;
        }
        if self.stop {
            self.finish_snapshot()?;
            info!("Optimization stopped early.");
            return Ok(Outcome::Stopped);
        }
        if self.due(self.param.display()) {
            self.catch_up()?;
            let loss = self.net.forward(&self.step(0))?;
            if !loss.is_finite() {
                warn!("Iteration {}: the loss of a batch after the last is {}", self.iter, six_digits(loss));
            }
            self.smooth(loss);
            info!("Iteration {}, loss = {}", self.iter, six_digits(self.smoothed_loss));
        }
        if self.due(self.param.test_interval()) {
            self.test_all(watch)?;
        }
        self.finish_snapshot()?;
        info!("Optimization Done.");
        Ok(Outcome::Done)
    }

    fn due(&self, every: i32) -> bool {
        every > 0 && self.iter % every == 0
    }

    pub(crate) fn step(&self, sub_batch: i32) -> Step {
        let batch = self.iter as u64 * self.param.iter_size() as u64 + sub_batch as u64;
        Step { seed: self.seed, iter: self.iter as u64, batch }
    }

    fn run_to(&mut self, last: i32, watch: &mut dyn Watch) -> Result<()> {
        let (mut lap, mut lap_iter) = (Instant::now(), self.iter);
        while self.iter < last {
            if self.due(self.param.test_interval()) && (self.iter > 0 || self.param.test_initialization()) {
                self.test_all(watch)?;
                if self.stop {
                    return Ok(());
                }
            }
            let display = self.due(self.param.display());
            self.net.set_debug_info(display && self.param.debug_info());
            // On a device nobody waits for an iteration whose loss is not shown.
            let alone = self.device.is_some() && !display;
            if alone {
                self.mark()?;
                self.iterate_on_device()?;
            } else {
                self.catch_up()?;
                self.mark()?;
                let loss = self.passes()?;
                self.check_loss(loss)?;
                self.smooth(loss);
            }
            if display {
                let seconds = lap.elapsed().as_secs_f64();
                let rate = if seconds > 0.0 { (self.iter - lap_iter) as f64 / seconds } else { 0.0 };
                info!(
                    "Iteration {} ({} iter/s, {}s/{} iters), loss = {}",
                    self.iter,
                    six_digits(rate),
                    six_digits(seconds),
                    self.param.display(),
                    six_digits(self.smoothed_loss)
                );
                (lap, lap_iter) = (Instant::now(), self.iter);
                lines(&self.net, &scores_of(&self.net)?).iter().for_each(|line| info!("    Train net output {line}"));
            }
            if !alone {
                self.update(display)?;
            }
            watch.progress(self.iter, self.smoothed_loss);
            self.writer.check()?;
            let action = watch.action();
            if self.due(self.param.snapshot()) || action == Action::Snapshot {
                self.snapshot()?;
            }
            if action == Action::Stop {
                self.stop = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Forward and backward over every sub-batch of an iteration; returns the mean loss.
    fn passes(&mut self) -> Result<f64> {
        if self.device.is_some() {
            self.passes_on_device(false)?;
            return Ok(self.net.loss()? / self.param.iter_size() as f64);
        }
        self.net.clear_param_diffs()?;
        self.net.begin_iteration(self.iter as u64);
        let mut loss = 0.0;
        for sub_batch in 0..self.param.iter_size() {
            let step = self.step(sub_batch);
            loss += self.net.forward(&step)?;
            self.net.backward(&step)?;
        }
        Ok(loss / self.param.iter_size() as f64)
    }

    /// One iteration and nothing besides, no display, test or snapshot: forward, backward and update. Returns the loss; on
    /// a device, which is not waited for, 0.
    ///
    /// # Errors
    /// When data cannot be read or a layer refuses its input.
    pub fn iterate(&mut self) -> Result<f64> {
        if self.device.is_some() {
            return self.iterate_on_device().map(|()| 0.0);
        }
        let loss = self.passes()?;
        self.update(false)?;
        Ok(loss)
    }

    /// Updates every parameter from its gradient and counts the iteration.
    fn update(&mut self, display: bool) -> Result<()> {
        let rate = self.tell_device()?;
        if display {
            info!("Iteration {}, lr = {}", self.iter, six_digits(rate as f64));
        }
        if self.device.is_some() {
            return self.update_on_device();
        }
        let scale = self.clip()? / self.param.iter_size() as f32;
        if self.net.debug_info() {
            self.net.log_update()?;
        }
        let mults: Vec<(f32, f32)> = self.net.learnables().map(|l| (l.lr_mult, l.decay_mult)).collect();
        for (i, (lr_mult, decay_mult)) in mults.into_iter().enumerate() {
            let update = Update {
                scale,
                rate: rate * lr_mult,
                decay: self.param.weight_decay() * decay_mult,
                l1: self.param.regularization_type() == "L1",
                iter: self.iter,
            };
            let (data, diff) = self.net.learnable::<f32>(i)?;
            let [first, second] = &mut self.history[i];
            rule::apply(&self.param, update, data, diff, first, second);
        }
        self.iter += 1;
        self.marks.clear();
        self.check_params(display)
    }

    /// The factor that brings the gradients' common norm down to `clip_gradients`.
    fn clip(&mut self) -> Result<f32> {
        let limit = self.param.clip_gradients();
        if limit < 0.0 {
            return Ok(1.0);
        }
        let mut sumsq = 0.0f64;
        for i in 0..self.history.len() {
            sumsq += lgm_cpu::elementwise::sumsq(self.net.learnable::<f32>(i)?.1) as f64;
        }
        let norm = sumsq.sqrt() as f32;
        self.check_norm(norm)?;
        let factor = if norm <= limit { 1.0 } else { limit / norm };
        log_clipping(factor, norm, limit);
        Ok(factor)
    }

    /// The mean of the last `average_loss` losses, as Caffe keeps it.
    pub(crate) fn smooth(&mut self, loss: f64) {
        let window = self.param.average_loss() as usize;
        if self.losses.len() < window {
            let n = self.losses.len() as f64 + 1.0;
            self.smoothed_loss = (self.smoothed_loss * (n - 1.0) + loss) / n;
        } else if let Some(oldest) = self.losses.pop_front() {
            self.smoothed_loss += (loss - oldest) / window as f64;
        }
        self.losses.push_back(loss);
    }

    fn test_all(&mut self, watch: &mut dyn Watch) -> Result<()> {
        self.round_start = Some(self.test_positions());
        for id in 0..self.test_nets.len() {
            self.test(id, watch)?;
            if self.stop {
                return Ok(());
            }
        }
        self.round_start = None;
        Ok(())
    }

    fn test(&mut self, id: usize, watch: &mut dyn Watch) -> Result<()> {
        info!("Iteration {}, Testing net (#{id})", self.iter);
        let passes = self.param.test_iter[id];
        let on_device = self.device.is_some();
        let (mut loss, mut scores) = (0.0, Vec::new());
        for pass in 0..passes {
            match watch.action() {
                Action::Snapshot => self.snapshot()?,
                Action::Stop => {
                    self.stop = true;
                    info!("Test interrupted.");
                    return Ok(());
                }
                Action::None => {}
            }
            let test = &mut self.test_nets[id];
            let step = Step { seed: self.seed, iter: self.iter as u64, batch: test.batches };
            if on_device {
                let pass = Pass { clear: pass == 0, forward: true, accumulate: true, ..Default::default() };
                self.net.lend_params(&mut test.net, |net| net.pass(pass, &step, None))?;
                test.batches += 1;
                continue;
            }
            loss += self.net.lend_params(&mut test.net, |net| net.forward(&step))?;
            test.batches += 1;
            let found = scores_of(&test.net)?;
            if pass == 0 {
                scores = found;
            } else {
                scores.iter_mut().zip(found).for_each(|(sum, s)| sum.value += s.value);
            }
        }
        if on_device {
            let (sum, outputs) = self.test_nets[id].net.sums()?;
            (loss, scores) = (sum, scores_from(outputs));
        }
        if !loss.is_finite() {
            warn!("Iteration {}: the loss of test net #{id} is {}", self.iter, six_digits(loss / passes as f64));
        }
        if self.param.test_compute_loss() {
            info!("Test loss: {}", six_digits(loss / passes as f64));
        }
        scores.iter_mut().for_each(|s| s.value /= passes as f64);
        lines(&self.test_nets[id].net, &scores).iter().for_each(|line| info!("    Test net output {line}"));
        Ok(())
    }
}

pub(crate) fn log_clipping(factor: f32, norm: f32, limit: f32) {
    if factor == 1.0 {
        return;
    }
    info!(
        "Gradient clipping: scaling down gradients (L2 norm {} > {}) by scale factor {}",
        six_digits(norm as f64),
        six_digits(limit as f64),
        six_digits(factor as f64)
    );
}
