//! The solver's update of the parameters: what it keeps of them, and where it is made. A net on the host is updated there
//! ([`HostUpdater`]), one on a device by kernels that are queued behind a pass ([`DeviceUpdater`]).

mod device;
mod host;

use lgm_core::{Result, Step};
use lgm_net::{DeviceUpdate, Net, six_digits};
use lgm_proto::SolverParameter;
use tracing::info;

use device::DeviceUpdater;
use host::HostUpdater;

/// Iterations after which something that is looked at now and then is looked at: a device's faults and losses, the
/// host's parameters.
pub(crate) const CHECK_EVERY: usize = 100;

/// By learnable parameter: the rule's first and second history.
pub(crate) type Histories = Vec<[Vec<f32>; 2]>;

/// The update of a net's parameters.
pub(crate) trait Updater {
    /// Sets the learning rate, the momentum and the number of the iteration in hand.
    fn set(&mut self, rate: f32, momentum: f32, iter: i32);

    /// Whether an iteration may be queued, update included, and looked at later.
    fn is_queued(&self) -> bool {
        false
    }

    /// The update of a queued iteration, which keeps the iteration's loss too; nothing where iterations are not queued.
    fn queued(&self) -> Option<DeviceUpdate<'_>> {
        None
    }

    /// Counts a queued iteration; says whether it is time to look at those that are.
    fn count(&mut self) -> bool {
        false
    }

    /// The losses of the iterations queued since [`Updater::reset_losses`], the oldest first. Waits for them.
    ///
    /// # Errors
    /// When a device failed.
    fn losses(&self) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }

    /// Forgets the losses kept.
    fn reset_losses(&mut self) {}

    /// After a failure: the iterations queued since [`Updater::reset_losses`], and the losses of those that were completed.
    ///
    /// # Errors
    /// When a device does not answer.
    fn completed(&self) -> Result<(usize, Vec<f64>)> {
        Ok((0, Vec::new()))
    }

    /// The L2 norm of all gradients, where they are clipped and the host can see it before the update.
    ///
    /// # Errors
    /// Never, for a net that trains.
    fn norm(&mut self, _net: &mut Net) -> Result<Option<f32>> {
        Ok(None)
    }

    /// Updates every parameter from its gradient, after a pass; `step` is that pass's. With clipping, logs by how much.
    ///
    /// # Errors
    /// When a device refuses.
    fn apply(&mut self, net: &mut Net, step: &Step) -> Result<()>;

    /// The first learnable parameter that is not finite, where the host can look at them at no cost of waiting.
    ///
    /// # Errors
    /// Never, for a net that trains.
    fn first_not_finite(&self, _net: &mut Net) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Keeps the statistics of layers as they are before an iteration changes them.
    ///
    /// # Errors
    /// When a device refuses.
    fn keep_statistics(&mut self, net: &mut Net) -> Result<()>;

    /// The statistics of layers after the last completed iteration, by learnable parameter, where an iteration has begun
    /// that may have changed them.
    ///
    /// # Errors
    /// When a device does not answer.
    fn statistics(&self) -> Result<Vec<(usize, Vec<f32>)>>;

    /// Every parameter's histories.
    ///
    /// # Errors
    /// When a device refuses.
    fn histories(&self) -> Result<Histories>;

    /// Sets every parameter's histories.
    ///
    /// # Errors
    /// When one has another length than its parameter, or a device refuses.
    fn set_histories(&mut self, all: Histories) -> Result<()>;

    /// Whether a loss that is not finite is to stop updates.
    fn stop_at_not_finite(&mut self, yes: bool);
}

/// The update for a net, where that lives.
///
/// # Errors
/// When there is no room for histories.
pub(crate) fn updater(net: &Net, param: &SolverParameter) -> Result<Box<dyn Updater>> {
    Ok(match net.on_device() {
        Some(on_device) => Box::new(DeviceUpdater::new(net, on_device, param)?),
        None => Box::new(HostUpdater::new(net, param)?),
    })
}

/// The factor that brings gradients of this norm down to `clip_gradients`.
fn clip_factor(norm: f32, limit: f32) -> f32 {
    if norm <= limit { 1.0 } else { limit / norm }
}

fn log_clipping(factor: f32, norm: f32, limit: f32) {
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
