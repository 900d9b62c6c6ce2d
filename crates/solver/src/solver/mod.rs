//! The training loop.

mod build;
mod checkpoint;
mod fault;
mod finite;
mod resume;
mod save;
mod testing;

use std::collections::VecDeque;
use std::time::Instant;

use lgm_core::{Result, Step};
use lgm_net::{Net, Pass, six_digits};
use lgm_proto::SolverParameter;
use tracing::{info, warn};

use crate::rate::{MomentumPolicy, Policy};
use crate::rules::Rule;
use crate::scores::{lines, scores_of};
use crate::snapshot::{TestExtra, Writer};
use crate::update::Updater;

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
    param: SolverParameter,
    net: Net,
    test_nets: Vec<TestNet>,
    seed: u64,
    iter: i32,
    current_step: i32,
    rule: Rule,
    policy: Policy,
    /// The policy of SGD's momentum; nothing for other rules.
    momentum: Option<MomentumPolicy>,
    update: Box<dyn Updater>,
    /// The latest losses, the oldest first.
    losses: VecDeque<f64>,
    smoothed_loss: f64,
    /// Where the test nets stood when the round of tests in hand began: a run resumed from within it repeats it.
    round_start: Option<Vec<TestExtra>>,
    /// What was known before each iteration that is not over, or that the host has not looked at since.
    checkpoints: Vec<checkpoint::Checkpoint>,
    /// The iteration at which [`Solver::solve`] began.
    started: i32,
    writer: Writer,
    /// Whether something was not finite, and whether the run goes on then.
    diverged: bool,
    keep_going: bool,
    stop: bool,
}

/// A test net and the number of forward passes it has made.
struct TestNet {
    pub net: Net,
    pub batches: u64,
}

impl Solver {
    /// The training net.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The update rule.
    pub fn rule(&self) -> Rule {
        self.rule
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

    fn step(&self, sub_batch: i32) -> Step {
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
            // Where iterations are queued, nobody waits for one whose loss is not shown.
            let queued = self.update.is_queued() && !display;
            if queued {
                self.checkpoint()?;
                self.queue_iteration()?;
            } else {
                self.catch_up()?;
                self.checkpoint()?;
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
            if !queued {
                self.apply_update(display)?;
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

    /// Forward and backward over every sub-batch of an iteration; with `queue`, the update behind them.
    fn sub_batches(&mut self, queue: bool) -> Result<()> {
        self.net.begin_iteration(self.iter as u64);
        let last = self.param.iter_size() - 1;
        for sub_batch in 0..=last {
            let step = self.step(sub_batch);
            let pass = Pass { clear: sub_batch == 0, forward: true, accumulate: false, backward: true };
            let update = if queue && sub_batch == last { self.update.queued() } else { None };
            self.net.pass(pass, &step, update.as_ref())?;
        }
        Ok(())
    }

    /// Forward and backward over every sub-batch of an iteration; returns the mean loss.
    fn passes(&mut self) -> Result<f64> {
        self.sub_batches(false)?;
        Ok(self.net.loss()? / self.param.iter_size() as f64)
    }

    /// A whole iteration, which nobody waits for; its loss is kept where it is computed.
    fn queue_iteration(&mut self) -> Result<()> {
        self.set_rate();
        self.sub_batches(true)?;
        self.iter += 1;
        if self.update.count() { self.catch_up() } else { Ok(()) }
    }

    /// One iteration and nothing besides, no display, test or snapshot: forward, backward and update. Returns the loss, or
    /// nothing where the iteration is queued and not waited for.
    ///
    /// # Errors
    /// When data cannot be read or a layer refuses its input.
    pub fn iterate(&mut self) -> Result<Option<f64>> {
        if self.update.is_queued() {
            return self.queue_iteration().map(|()| None);
        }
        let loss = self.passes()?;
        self.apply_update(false)?;
        Ok(Some(loss))
    }

    /// Tells the update the iteration's learning rate; returns that.
    fn set_rate(&mut self) -> f32 {
        let rate = self.policy.rate(&self.param, self.iter, &mut self.current_step);
        let momentum = match self.momentum {
            Some(policy) => policy.momentum(&self.param, self.iter, rate),
            None => self.param.momentum(),
        };
        self.update.set(rate, momentum, self.iter);
        rate
    }

    /// Updates every parameter from its gradient and counts the iteration.
    fn apply_update(&mut self, display: bool) -> Result<()> {
        let rate = self.set_rate();
        if display {
            info!("Iteration {}, lr = {}", self.iter, six_digits(rate as f64));
        }
        if let Some(norm) = self.update.norm(&mut self.net)? {
            self.check_norm(norm)?;
        }
        let step = self.step(self.param.iter_size() - 1);
        self.update.apply(&mut self.net, &step)?;
        self.iter += 1;
        self.checkpoints.clear();
        self.check_params(display)
    }

    /// Waits for the iterations that are queued and takes in what they kept: losses, and what kernels found wrong.
    fn catch_up(&mut self) -> Result<()> {
        if !self.update.is_queued() {
            return Ok(());
        }
        let losses = self.update.losses()?;
        self.net.check()?;
        if let Some(k) = losses.iter().position(|loss| !loss.is_finite()) {
            let text =
                format!("iteration {}: the loss is {}", self.iter - (losses.len() - k) as i32, six_digits(losses[k]));
            self.not_finite(|_| Ok(text))?;
        }
        self.update.reset_losses();
        self.checkpoints.clear();
        losses.into_iter().for_each(|loss| self.smooth(loss));
        Ok(())
    }

    /// The mean of the last `average_loss` losses, as Caffe keeps it.
    fn smooth(&mut self, loss: f64) {
        let window = self.param.average_loss() as usize;
        if self.losses.len() < window {
            let n = self.losses.len() as f64 + 1.0;
            self.smoothed_loss = (self.smoothed_loss * (n - 1.0) + loss) / n;
        } else if let Some(oldest) = self.losses.pop_front() {
            self.smoothed_loss += (loss - oldest) / window as f64;
        }
        self.losses.push_back(loss);
    }
}
