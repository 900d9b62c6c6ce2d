//! What a GPU and the simulated one offer besides the queue of [`lgm_core::DeviceQueue`]: memory, recording and batches
//! copied ahead of the computation.

mod allocator;
mod block;
mod launch;

use std::sync::Arc;

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Error, Result};

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
    ) -> Option<Result<String, Refusal>> {
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

/// Why a library does not make a pass of a convolution.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// It does not take the convolution.
    #[error(transparent)]
    Convolution(#[from] Arc<Error>),
    /// None of its algorithms gives the same result each time.
    #[error("it has no deterministic algorithm")]
    NoAlgorithm,
    /// It refuses the algorithms that it proposed, for these reasons.
    #[error("it refuses all of the {proposed} deterministic ones{}", reasons.iter().map(|reason| format!("\n  {reason}")).collect::<String>())]
    Algorithms {
        /// How many there are.
        proposed: usize,
        /// An algorithm's name and why it cannot run, of each that was tried.
        reasons: Vec<String>,
    },
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
