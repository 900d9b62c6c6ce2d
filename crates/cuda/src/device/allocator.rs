//! Device memory, taken and given back.

use lgm_core::{DevicePtr, Result};

/// What gives out device memory: a GPU, or the simulator.
///
/// What new memory holds is not said; every block is aligned for any element type, to 256 bytes.
pub trait Allocator {
    /// A block of at least `bytes` bytes.
    ///
    /// # Errors
    /// When the device has no such block; the text says how much was asked for and how much is free.
    fn alloc(&self, bytes: usize) -> Result<DevicePtr>;

    /// Gives back a block that [`Allocator::alloc`] gave out, after all work queued on it.
    ///
    /// # Errors
    /// When the block is not one of these, or the device refuses.
    fn free(&self, block: DevicePtr) -> Result<()>;

    /// Bytes free and bytes in all.
    ///
    /// # Errors
    /// When the device does not say.
    fn free_bytes(&self) -> Result<(u64, u64)>;
}
