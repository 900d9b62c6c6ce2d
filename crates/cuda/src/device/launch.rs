//! Work for a queue, as data.

use lgm_core::{Arg, DeviceQueue, Grid, Result};

/// A launch of a kernel, to be queued later and as often as wanted.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: &'static str,
    /// Its blocks and threads.
    pub grid: Grid,
    /// Its arguments.
    pub args: Vec<Arg>,
}

impl Launch {
    /// A launch of `kernel`.
    pub fn new(kernel: &'static str, grid: Grid, args: &[Arg]) -> Launch {
        Launch { kernel, grid, args: args.to_vec() }
    }

    /// Puts it on a queue.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn queue(&self, queue: &dyn DeviceQueue) -> Result<()> {
        queue.launch(self.kernel, self.grid, &self.args)
    }
}
