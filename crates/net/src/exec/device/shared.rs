//! Parameters on a device: where they lie for others, and those that belong to another net.

use std::rc::Rc;

use lgm_core::DevicePtr;
use lgm_cuda::Block;

use super::{DeviceExec, DeviceParams};

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

impl DeviceExec {
    /// Where the parameters lie; nothing where some of them are another net's.
    pub fn device_params(&self) -> Option<DeviceParams> {
        if self.shared.is_some() {
            return None;
        }
        let data = self.data.at();
        let diff = self.diff.as_ref().map_or(DevicePtr::NULL, |d| d.at());
        Some(DeviceParams { data, diff, bytes: self.data.bytes(), spans: self.spans.clone() })
    }

    /// Where the values of a learnable parameter lie.
    pub fn param_address(&self, learnable: usize) -> DevicePtr {
        self.bound.params[learnable].data.at
    }

    /// The blocks that values lie in.
    pub fn param_blocks(&self) -> Vec<Rc<Block>> {
        let others = self.shared.iter().flat_map(|s| s.blocks.clone());
        [self.data.clone()].into_iter().chain(others).collect()
    }
}
