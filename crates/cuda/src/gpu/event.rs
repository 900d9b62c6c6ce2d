//! Marks in a stream: other streams and the host can wait for them, and the time between two can be taken.

use std::sync::Arc;

use lgm_core::Result;

use super::api::{CU_EVENT_DEFAULT, CU_EVENT_DISABLE_TIMING, CUDA_ERROR_NOT_READY, Handle};
use super::context::{Context, Stream, driver};

/// A mark in a stream. One that was never set counts as reached.
pub struct Event {
    context: Arc<Context>,
    handle: Handle,
}

impl Event {
    pub(crate) fn new(context: &Arc<Context>, timed: bool) -> Result<Event> {
        let mut handle = Handle::NULL;
        let flags = if timed { CU_EVENT_DEFAULT } else { CU_EVENT_DISABLE_TIMING };
        driver!(context, cuEventCreate(&mut handle, flags as u32))?;
        Ok(Event { context: context.clone(), handle })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    /// Sets the mark after all that is on a stream now.
    pub(crate) fn record(&self, stream: Stream) -> Result<()> {
        driver!(self.context, cuEventRecord(self.handle, self.context.stream(stream)))
    }

    /// Waits until the mark is reached.
    ///
    /// # Errors
    /// When work before it failed.
    pub fn wait(&self) -> Result<()> {
        driver!(self.context, cuEventSynchronize(self.handle))
    }

    /// Whether the mark is reached.
    ///
    /// # Errors
    /// When work before it failed.
    pub fn reached(&self) -> Result<bool> {
        self.context.make_current()?;
        // SAFETY: the event is alive.
        match unsafe { (self.context.api.cuEventQuery)(self.handle) } {
            CUDA_ERROR_NOT_READY => Ok(false),
            status => self.context.check("cuEventQuery", status).map(|()| true),
        }
    }

    /// Milliseconds from this mark to a later one; both timed, and both waited for here.
    ///
    /// # Errors
    /// When one is not timed or was never set, or work before it failed.
    pub fn milliseconds_to(&self, later: &Event) -> Result<f32> {
        later.wait()?;
        let mut time = 0.0;
        driver!(self.context, cuEventElapsedTime(&mut time, self.handle, later.handle))?;
        Ok(time)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = driver!(self.context, cuEventDestroy_v2(self.handle));
    }
}
