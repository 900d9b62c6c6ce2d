//! A net's passes when it lives on a device.

use std::rc::Rc;

use lgm_core::{DevicePtr, Error, Result, Step};

use crate::device::{DeviceParams, OnDevice, SOLVER_WORDS};
use crate::gpu::Gpu;
use crate::net::Net;
use crate::plan::Role;
use crate::tape::{Finish, Pass};
use crate::values::NamedValues;

fn not_here() -> Error {
    Error::internal("this net lives on the host")
}

impl Net {
    /// The device that the net lives on, if it does on one.
    pub fn gpu(&self) -> Option<Rc<dyn Gpu>> {
        self.device.as_ref().map(|d| d.gpu.clone())
    }

    fn on_device(&self) -> Result<&OnDevice> {
        self.device.as_ref().ok_or_else(not_here)
    }

    /// Puts a pass on the device's queue and does not wait for it. `finish` is called where [`Pass::finish`] says so; it
    /// must put the same work on the queue each time, since the pass may be recorded.
    ///
    /// # Errors
    /// What a layer or its data refuses, with the layer's name; what kernels find is reported when something is read.
    pub fn pass(&mut self, pass: Pass, step: &Step, finish: Finish<'_>) -> Result<()> {
        if self.debug_info() {
            return self.pass_aloud(pass, step, finish);
        }
        let Net { graph, bound, device, .. } = self;
        let device = device.as_mut().ok_or_else(not_here)?;
        device.pass(&mut crate::tape::Net { graph, mirror: bound, step }, pass, finish)
    }

    /// A pass layer by layer, each logged.
    fn pass_aloud(&mut self, pass: Pass, step: &Step, finish: Finish<'_>) -> Result<()> {
        // Also where nothing runs forward: an update reads the solver's words.
        let Net { graph, device, .. } = self;
        device.as_mut().ok_or_else(not_here)?.write_step(graph, step)?;
        if pass.clear {
            self.clear_sums()?;
            self.clear_param_diffs()?;
        }
        if pass.forward {
            (0..self.graph.layers.len()).try_for_each(|i| self.forward_layer(i, step).map(drop))?;
        }
        let device = self.on_device()?;
        if pass.accumulate {
            device.accumulate(&self.graph)?;
        }
        if pass.backward {
            self.backward(step)?;
        }
        let gpu = self.on_device()?.gpu.clone();
        finish.filter(|_| pass.finish).map_or(Ok(()), |work| work(gpu.as_ref()))
    }

    pub(crate) fn forward_on_device(&mut self, step: &Step) -> Result<f64> {
        self.clear_sums()?;
        self.pass(Pass { forward: true, ..Default::default() }, step, None)?;
        self.loss()
    }

    pub(crate) fn forward_layer_on_device(&mut self, i: usize, step: &Step) -> Result<()> {
        let Net { graph, bound, device, .. } = self;
        let device = device.as_mut().ok_or_else(not_here)?;
        if i == 0 {
            device.write_step(graph, step)?;
        }
        if device.roles[i] == Role::Feed {
            device.feed(graph, bound, i, step)?;
        }
        device.forward(graph, bound, i, step)?;
        if self.debug_info() { self.log_forward(i) } else { Ok(()) }
    }

    pub(crate) fn backward_layer_on_device(&mut self, i: usize, step: &Step) -> Result<()> {
        let Net { graph, bound, device, .. } = self;
        device.as_mut().ok_or_else(not_here)?.backward(graph, bound, i, step)?;
        if self.debug_info() { self.log_backward(i) } else { Ok(()) }
    }

    /// Sets the loss and the outputs' sums to zero.
    ///
    /// # Errors
    /// When the net lives on the host, or the device refuses.
    pub fn clear_sums(&mut self) -> Result<()> {
        self.on_device()?.clear_sums()
    }

    /// The loss added up by passes since the last that cleared it. Waits for the device.
    ///
    /// # Errors
    /// What kernels found wrong, with the layer's name; when the net lives on the host, or the device failed.
    pub fn loss(&self) -> Result<f64> {
        self.sums().map(|(loss, _)| loss)
    }

    /// The loss as [`Net::loss`], and the sums of every output over the passes with [`Pass::accumulate`], by name in the
    /// order of [`Net::outputs`]. Waits for the device.
    ///
    /// # Errors
    /// As for [`Net::loss`].
    pub fn sums(&self) -> Result<(f64, Vec<NamedValues>)> {
        let device = self.on_device()?;
        let (loss, sums) = device.read_sums()?;
        device.check(&self.graph)?;
        Ok((loss, sums.into_iter().map(|(v, sum)| (self.graph.values[v].name.clone(), sum)).collect()))
    }

    /// Waits for the device, if the net lives on one, and reports what its kernels found wrong.
    ///
    /// # Errors
    /// What they found, with the layer's name; when the device failed.
    pub fn check(&self) -> Result<()> {
        self.device.as_ref().map_or(Ok(()), |d| d.check(&self.graph))
    }

    /// Waits for the device, if the net lives on one.
    ///
    /// # Errors
    /// When work on it failed.
    pub fn finish(&self) -> Result<()> {
        self.device.as_ref().map_or(Ok(()), |d| d.gpu.finish())
    }

    /// Where the parameters of a net on a device lie; nothing for a net that computes with another's.
    pub fn device_params(&self) -> Option<DeviceParams> {
        self.device.as_ref().and_then(OnDevice::params)
    }

    /// Where a net on a device adds its loss up: a double-precision number.
    pub fn device_loss(&self) -> Option<DevicePtr> {
        self.device.as_ref().map(OnDevice::loss_cell)
    }

    /// Where the layers of a net on a device report faults, four words each, and the number of layers.
    pub fn device_faults(&self) -> Option<(DevicePtr, usize)> {
        self.device.as_ref().map(|d| (d.faults(), self.graph.layers.len()))
    }

    /// Numbers of the solver's own that reach the device with the next pass, and where they will be.
    ///
    /// # Errors
    /// When the net lives on the host.
    pub fn set_solver_words(&mut self, words: [u32; SOLVER_WORDS]) -> Result<()> {
        self.device.as_mut().map(|d| d.set_solver_words(words)).ok_or_else(not_here)
    }

    /// Where the words of [`Net::set_solver_words`] are.
    pub fn solver_words(&self) -> Option<DevicePtr> {
        self.device.as_ref().map(OnDevice::solver_words)
    }
}
