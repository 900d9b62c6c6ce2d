//! Parameters on a device that belong to another net.

use std::rc::Rc;

use lgm_core::DevicePtr;
use lgm_cuda::Block;

/// Parameters on a device that belong to another net.
pub(crate) struct Shared {
    /// What must stay allocated.
    pub blocks: Vec<Rc<Block>>,
    /// By learnable parameter: the other net's address, or nothing for one that this net owns.
    pub at: Vec<Option<DevicePtr>>,
}

impl Shared {
    /// The address of a learnable parameter, if it is the other net's.
    pub fn address(&self, learnable: usize) -> Option<DevicePtr> {
        self.at.get(learnable).copied().flatten()
    }
}
