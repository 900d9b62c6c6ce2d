//! Marks in a stream: other streams and the host can wait for them, and the time between two can be taken.

use std::sync::Arc;

use lgm_core::Result;

use crate::gpu::api::{CUDA_ERROR_NOT_READY, Handle, driver::CUevent_flags, driver::CUevent_st};
use crate::gpu::context::{Context, Stream, driver};

/// A mark in a stream. One that was never set counts as reached.
pub struct Event {
    context: Arc<Context>,
    handle: Handle<CUevent_st>,
}

impl Event {
    pub(crate) fn new(context: &Arc<Context>, timed: bool) -> Result<Event> {
        let mut handle = Handle::NULL;
        let flags = if timed { CUevent_flags::CU_EVENT_DEFAULT } else { CUevent_flags::CU_EVENT_DISABLE_TIMING };
        driver!(context, cuEventCreate(&mut handle.0, flags as u32))?;
        Ok(Event { context: context.clone(), handle })
    }

    /// What a stream gets from now on waits for the event.
    pub(crate) fn hold(&self, stream: Stream) -> Result<()> {
        driver!(self.context, cuStreamWaitEvent(self.context.stream(stream), self.handle.0, 0))
    }

    /// Sets the mark after all that is on a stream now.
    pub(crate) fn record(&self, stream: Stream) -> Result<()> {
        driver!(self.context, cuEventRecord(self.handle.0, self.context.stream(stream)))
    }

    /// Waits until the mark is reached.
    ///
    /// # Errors
    /// When work before it failed.
    pub fn wait(&self) -> Result<()> {
        driver!(self.context, cuEventSynchronize(self.handle.0))
    }

    /// Whether the mark is reached.
    ///
    /// # Errors
    /// When work before it failed.
    pub fn reached(&self) -> Result<bool> {
        self.context.make_current()?;
        // SAFETY: the event is alive.
        match unsafe { (self.context.api.cuEventQuery)(self.handle.0) } {
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
        driver!(self.context, cuEventElapsedTime(&mut time, self.handle.0, later.handle.0))?;
        Ok(time)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = driver!(self.context, cuEventDestroy_v2(self.handle.0));
    }
}
