//! Tests on the way: passes over the test nets, and their scores.

use lgm_core::{Result, Step};
use lgm_net::{Pass, six_digits};
use tracing::{info, warn};

use super::{Action, Solver, Watch};
use crate::detection::{Evaluation, Precision};
use crate::scores::{Score, lines, scores_from};

impl Solver {
    /// Runs every test net, from the first or from where a run was stopped within them.
    pub(crate) fn test_all(&mut self, watch: &mut dyn Watch) -> Result<()> {
        self.round_start = Some(self.test_positions()?);
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
        let mut evaluation = (self.param.eval_type() == "detection").then(Evaluation::default);
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
            let pass = Pass { clear: pass == 0, forward: true, accumulate: true, backward: false };
            self.net.lend_params(&mut test.net, |net| net.pass(pass, &step, None))?;
            test.batches += 1;
            if let Some(evaluation) = &mut evaluation {
                evaluation.add(&test.net)?;
            }
        }
        // Of a net that is only to be built there is nothing to tell.
        if passes == 0 {
            return Ok(());
        }
        let (loss, outputs) = self.test_nets[id].net.sums()?;
        if !loss.is_finite() {
            warn!("Iteration {}: the loss of test net #{id} is {}", self.iter, six_digits(loss / passes as f64));
        }
        if self.param.test_compute_loss() {
            info!("Test loss: {}", six_digits(loss / passes as f64));
        }
        let scores = match evaluation {
            Some(evaluation) => {
                let precision = Precision::named(self.param.ap_version())?;
                evaluation.scores(precision, self.param.show_per_class_result())
            }
            None => {
                let mean = |s: Score| Score { value: s.value / passes as f64, ..s };
                scores_from(outputs).into_iter().map(mean).collect()
            }
        };
        lines(&self.test_nets[id].net, &scores).iter().for_each(|line| info!("    Test net output {line}"));
        Ok(())
    }
}
