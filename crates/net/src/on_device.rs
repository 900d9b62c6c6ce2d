//! What a solver must know of a net that lives on a device.

use std::rc::Rc;

use lgm_core::DevicePtr;
use lgm_cuda::Gpu;

use crate::exec::{DeviceExec, DeviceParams};

/// A net on a device, seen from outside.
#[derive(Clone, Copy)]
pub struct OnDevice<'a> {
    pub(crate) exec: &'a DeviceExec,
    pub(crate) layers: usize,
}

impl OnDevice<'_> {
    /// The device.
    pub fn gpu(&self) -> &Rc<dyn Gpu> {
        self.exec.gpu()
    }

    /// Where the parameters lie; nothing for a net that computes with another's.
    pub fn params(&self) -> Option<DeviceParams> {
        self.exec.device_params()
    }

    /// Where the loss is added up: a double-precision number.
    pub fn loss(&self) -> DevicePtr {
        self.exec.loss_cell()
    }

    /// Where layers report faults, four words each, and the number of layers.
    pub fn faults(&self) -> (DevicePtr, usize) {
        (self.exec.faults(), self.layers)
    }

    /// Where [`crate::DeviceUpdate::words`] are.
    pub fn solver_words(&self) -> DevicePtr {
        self.exec.solver_words()
    }
}
