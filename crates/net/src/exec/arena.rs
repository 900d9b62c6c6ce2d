//! The host's memory for blobs and parameters.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use lgm_core::Result;
use lgm_core::memory::{self, Reserved};

use crate::passes::pack::{ALIGN, round_up};

/// Zeroed, aligned bytes of the host.
pub struct Memory {
    addr: NonNull<u8>,
    layout: Layout,
    _reserved: Reserved,
}

// SAFETY: the bytes are owned by this value alone; access goes through views bound to borrows of the net.
unsafe impl Send for Memory {}
// SAFETY: a shared `Memory` only gives out its address.
unsafe impl Sync for Memory {}

impl Memory {
    /// Allocates `bytes` zeroed bytes; `what` they are for is for the message.
    ///
    /// # Errors
    /// [`lgm_core::Error::Memory`] when the system has not as many.
    pub fn new(bytes: usize, what: &str) -> Result<Self> {
        let size = Memory::size(bytes);
        let refused = || memory::refused(size, what);
        let layout = Layout::from_size_align(size, ALIGN).map_err(|_| refused())?;
        // SAFETY: the layout's size is not zero.
        let addr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        Ok(Memory { addr, layout, _reserved: Reserved::new(size) })
    }

    /// The length of the memory that is made for so many bytes.
    pub fn size(bytes: usize) -> usize {
        round_up(bytes).max(ALIGN)
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// All of it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes, owned by this value, which is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.addr.as_ptr(), self.len()) }
    }

    /// Copies memory of the same length.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_from(&mut self, other: &Memory) {
        // SAFETY: `len` initialised bytes, and whoever changed them would have to borrow `other` exclusively.
        let bytes = unsafe { std::slice::from_raw_parts(other.addr.as_ptr(), other.len()) };
        self.bytes_mut().copy_from_slice(bytes);
    }

    /// The address of the byte at `offset`, which must not lie beyond the end.
    pub(crate) fn addr(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len(), "an offset beyond the arena");
        // SAFETY: within the allocation or one past it.
        unsafe { self.addr.as_ptr().add(offset) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.addr.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_refused() {
        let error = Memory::new(usize::MAX, "the arena").err().unwrap().to_string();
        assert!(error.contains("the arena takes") && error.contains("there are only"), "{error}");
    }
}
