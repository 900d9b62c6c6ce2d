//! A loss, a gradient or a parameter that is NaN or infinite: found at once, and the end of the run unless
//! `-keep_going` is given.
//!
//! The loss is looked at in every iteration: on the host before the update, so that the last whole iteration is still
//! there; on a device by the kernel that keeps the loss, which stops the updates of that iteration and all after it
//! (`kernels/solver.cu`), so that nobody has to wait. Gradients are looked at where their norm is known, because they are
//! clipped; parameters when something is shown or, on the host, every [`CHECK_EVERY`] iterations; and all that a snapshot
//! holds before it is written. What is not finite is never written over what is.

use lgm_core::{Error, Result};
use lgm_net::six_digits;
use tracing::warn;

use super::Solver;
use crate::update::CHECK_EVERY;

impl Solver {
    /// Whether a run goes on, after a warning, when something is not finite; it ends by default.
    pub fn keep_going(&mut self, yes: bool) {
        self.keep_going = yes;
        self.update.stop_at_not_finite(!yes);
    }

    /// Looks at an iteration's loss before its update.
    ///
    /// # Errors
    /// When it is not finite and the run is to end then; with what was the first not to be.
    pub(crate) fn check_loss(&mut self, loss: f64) -> Result<()> {
        if loss.is_finite() {
            return Ok(());
        }
        let text = format!("iteration {}: the loss is {}", self.iter, six_digits(loss));
        self.not_finite(|solver| {
            // Where that ends the run, what there is is saved before anything is run again; see `salvage`.
            if !solver.keep_going {
                return Ok(text);
            }
            Ok(match solver.first_not_finite()? {
                Some(first) => format!("{text}; the first that is not finite is {first}"),
                None => format!("{text}, a sum of numbers that are all finite"),
            })
        })
    }

    /// Looks at the gradients' norm.
    ///
    /// # Errors
    /// As for [`Solver::check_loss`].
    pub(crate) fn check_norm(&mut self, norm: f32) -> Result<()> {
        if norm.is_finite() {
            return Ok(());
        }
        let text = format!("iteration {}: the gradients' L2 norm is {}", self.iter, six_digits(norm));
        self.not_finite(|_| Ok(text))
    }

    /// Looks at the parameters after an update, on the host, now and then or when something is shown.
    ///
    /// # Errors
    /// As for [`Solver::check_loss`].
    pub(crate) fn check_params(&mut self, display: bool) -> Result<()> {
        if !(display || (self.iter as usize).is_multiple_of(CHECK_EVERY)) {
            return Ok(());
        }
        let Some(i) = self.update.first_not_finite(&mut self.net)? else { return Ok(()) };
        let which = self.net.learnables().nth(i);
        let which = which.map(|l| format!("parameter {} of layer '{}'", l.index, l.layer)).unwrap_or_default();
        let text = format!("iteration {}: after its update, {which} is not finite", self.iter - 1);
        self.not_finite(|_| Ok(text))
    }

    /// Says once that something is not finite: as an error, or where the run keeps going as a warning.
    pub(crate) fn not_finite(&mut self, say: impl FnOnce(&mut Solver) -> Result<String>) -> Result<()> {
        if self.diverged && self.keep_going {
            return Ok(());
        }
        self.diverged = true;
        let text = say(self)?;
        if !self.keep_going {
            return Err(Error::NotFinite(text));
        }
        warn!("{text}; going on, as asked: no snapshot will be written of what is not finite");
        Ok(())
    }

    /// Runs the iteration in hand forward again and names the first parameter or blob that is not finite. Data layers stand
    /// afterwards where they stood before.
    pub(crate) fn first_not_finite(&mut self) -> Result<Option<String>> {
        let after = self.net.state();
        if let Some(checkpoint) = self.checkpoints.last() {
            self.net.restore(&checkpoint.state)?;
        }
        for sub_batch in 0..self.param.iter_size() {
            let step = self.step(sub_batch);
            if let Some(first) = self.net.first_not_finite(&step)? {
                self.net.restore(&after)?;
                return Ok(Some(first));
            }
        }
        self.net.restore(&after)?;
        Ok(None)
    }
}
