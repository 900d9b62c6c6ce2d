//! Host memory that the device copies from and to directly.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use lgm_core::memory::in_units;
use lgm_core::{Error, Result};

use crate::gpu::api::{CUDA_ERROR_OUT_OF_MEMORY, driver::CU_MEMHOSTALLOC_PORTABLE};
use crate::gpu::context::{Context, driver};

/// Page-locked host memory, cached as any other (not write-combined), so that the host may read it too.
pub struct PinnedBuffer {
    context: Arc<Context>,
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to the buffer alone, and the driver frees it from any thread.
unsafe impl Send for PinnedBuffer {}
// SAFETY: shared references only read.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Zeroed memory of so many bytes.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<PinnedBuffer> {
        let mut at: *mut c_void = std::ptr::null_mut();
        context.make_current()?;
        // SAFETY: the pointer is to a live pointer.
        let status = unsafe { (context.api.cuMemHostAlloc)(&mut at, bytes.max(1), CU_MEMHOSTALLOC_PORTABLE) };
        if status == CUDA_ERROR_OUT_OF_MEMORY {
            return Err(Error::config(format!(
                "the CUDA driver cannot pin {} of host memory: lower batch_size, or raise the limit on locked memory \
                 (ulimit -l)",
                in_units(bytes as u64)
            )));
        }
        context.check("cuMemHostAlloc", status)?;
        let at = NonNull::new(at.cast::<u8>()).ok_or_else(|| Error::internal("cuMemHostAlloc gave no address"))?;
        // SAFETY: the block has at least so many bytes and nobody else knows it yet.
        unsafe { at.as_ptr().write_bytes(0, bytes) };
        Ok(PinnedBuffer { context: context.clone(), at, bytes })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block is as long, initialised, and borrowed with the buffer.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.bytes) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.bytes) }
    }

    /// The bytes as single-precision numbers, as many as fit.
    pub fn floats(&self) -> &[f32] {
        // SAFETY: every bit pattern is a number, and page-locked memory is aligned to pages.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), self.bytes / 4) }
    }

    /// The bytes as single-precision numbers, as many as fit, to be written.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().cast(), self.bytes / 4) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        let _ = driver!(self.context, cuMemFreeHost(self.at.as_ptr().cast()));
    }
}
