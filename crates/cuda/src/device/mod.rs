//! What a GPU and the simulated one offer besides the queue of [`lgm_core::DeviceQueue`]: memory, recording and batches
//! copied ahead of the computation.

mod allocator;
mod block;
mod launch;

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Result};

pub use allocator::Allocator;
pub use block::{Block, bytes_of, doubles_of, float_bytes, floats_of};
pub use launch::Launch;

/// A device that nets and solvers run on.
pub trait Gpu: DeviceQueue + Allocator {
    /// What to call it in messages.
    fn name(&self) -> String;

    /// Bytes of which an allocation takes a whole number.
    fn page(&self) -> u64 {
        1
    }

    /// The library's algorithm for a pass of a convolution that was planned, or why it has none; `None` where the pass was
    /// not planned or there is no library.
    fn convolution_algorithm(
        &self,
        _conv: &DeviceConvolution,
        _pass: ConvolutionPass,
    ) -> Option<Result<String, String>> {
        None
    }

    /// Records what `work` puts on the queue instead of running it; `None`, with nothing run, where the device cannot
    /// record.
    ///
    /// # Errors
    /// From `work`, or when something in it cannot be recorded; nothing has run then.
    fn record(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        Ok(None)
    }

    /// A ring of two batches of so many bytes, copied while the device computes; `None` where it cannot.
    ///
    /// # Errors
    /// When host or device have no room.
    fn feeder(&self, _bytes: usize) -> Result<Option<Box<dyn Feeder>>> {
        Ok(None)
    }
}

/// Batches on their way to a device, each in one of two slots.
pub trait Feeder {
    /// Host memory to put a slot's next batch in, once the one before has left it.
    ///
    /// # Errors
    /// When the device failed.
    fn host(&mut self, slot: usize) -> Result<&mut [u8]>;

    /// Sends a slot's batch on its way, beside the computation.
    ///
    /// # Errors
    /// When the device refuses.
    fn send(&mut self, slot: usize) -> Result<()>;

    /// Puts on the queue that parts of a slot's batch, each from an offset and so many bytes, go to their addresses.
    ///
    /// # Errors
    /// When the device refuses.
    fn deliver(&mut self, slot: usize, parts: &[(usize, DevicePtr, usize)]) -> Result<()>;
}

/// Recorded work.
pub trait Replay {
    /// Puts all of it on the queue at once.
    ///
    /// # Errors
    /// When the device refuses.
    fn replay(&self) -> Result<()>;
}
