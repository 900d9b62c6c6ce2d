//! Memory of the simulated device: blocks of host memory that show misuse.

use std::alloc::Layout;
use std::collections::BTreeMap;

use lgm_core::{DevicePtr, Error, Result};

/// Alignment of a block, as on a device.
const ALIGN: usize = 256;
/// Bytes before and after a block that nothing may write, but under a sanitizer, which has its own.
const ZONE: usize = 256;
/// What new blocks and zones hold: as a floating-point number, NaN.
const POISON: u8 = 0xff;

struct Block {
    layout: Layout,
    bytes: usize,
}

/// Blocks of device memory on the host, by address.
pub struct Blocks {
    blocks: BTreeMap<u64, Block>,
    used: u64,
    zone: usize,
    poisoned: bool,
}

impl Default for Blocks {
    fn default() -> Self {
        let zone = if super::build::sanitized() { 0 } else { ZONE };
        Blocks { blocks: BTreeMap::new(), used: 0, zone, poisoned: true }
    }
}

impl Blocks {
    /// Blocks that are never written to, so that large ones cost nothing: for counting what would be done with them.
    pub fn untouched() -> Blocks {
        Blocks { blocks: BTreeMap::new(), used: 0, zone: 0, poisoned: false }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes in all blocks.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// A block, aligned as a device's, of bytes that as a floating-point number are NaN.
    ///
    /// # Errors
    /// When the host has none.
    pub fn alloc(&mut self, bytes: usize) -> Result<DevicePtr> {
        let refuse = || Error::device(format!("the simulated device has no block of {bytes} bytes"));
        let inner = if self.zone == 0 { Some(bytes.max(1)) } else { bytes.checked_next_multiple_of(ALIGN) };
        let whole = inner.and_then(|b| b.checked_add(2 * self.zone)).ok_or_else(refuse)?;
        let layout = Layout::from_size_align(whole, ALIGN).map_err(|_| refuse())?;
        // SAFETY: the layout has a size.
        let base = unsafe { std::alloc::alloc(layout) };
        if base.is_null() {
            return Err(refuse());
        }
        if self.poisoned {
            // SAFETY: that many bytes were allocated.
            unsafe { base.write_bytes(POISON, whole) };
        }
        let at = base as u64 + self.zone as u64;
        self.blocks.insert(at, Block { layout, bytes });
        self.used += bytes as u64;
        Ok(DevicePtr(at))
    }

    /// Gives a block back.
    ///
    /// # Errors
    /// When that is no block's first byte, or something was written beside a block.
    pub fn free(&mut self, at: DevicePtr) -> Result<()> {
        self.check_zones("what ran before a block was freed")?;
        let Some(block) = self.blocks.remove(&at.0) else {
            return Err(Error::internal(format!("{at:?} is not the address of a block")));
        };
        self.used -= block.bytes as u64;
        // SAFETY: allocated so.
        unsafe { std::alloc::dealloc((at.0 - self.zone as u64) as *mut u8, block.layout) };
        Ok(())
    }

    /// Checks that `bytes` bytes from `at` on lie in one block.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self, at: DevicePtr, bytes: usize, what: &str) -> Result<()> {
        let block = self.blocks.range(..=at.0).next_back();
        match block {
            Some((start, block)) if at.0 + bytes as u64 <= start + block.bytes as u64 => Ok(()),
            Some((start, block)) if at.0 < start + block.bytes as u64 => Err(Error::internal(format!(
                "{what}: {bytes} bytes from {} bytes into a block of {}",
                at.0 - start,
                block.bytes
            ))),
            _ => Err(Error::internal(format!("{what}: {at:?} is not an address of device memory"))),
        }
    }

    /// Checks that nothing was written beside the blocks.
    ///
    /// # Errors
    /// When something was.
    pub fn check_zones(&self, culprit: &str) -> Result<()> {
        for (&at, block) in self.blocks.iter().filter(|_| self.zone > 0) {
            let zone = |from: u64, len: usize| {
                // SAFETY: within the allocation.
                unsafe { std::slice::from_raw_parts(from as *const u8, len) }
            };
            let after = zone(at + block.bytes as u64, block.layout.size() - ZONE - block.bytes);
            if let Some(i) = after.iter().position(|&b| b != POISON) {
                return Err(Error::internal(format!(
                    "{culprit} wrote {i} bytes past the end of a block of {}",
                    block.bytes
                )));
            }
            let before = zone(at - ZONE as u64, ZONE);
            if let Some(i) = before.iter().position(|&b| b != POISON) {
                return Err(Error::internal(format!(
                    "{culprit} wrote {} bytes before a block of {}",
                    ZONE - i,
                    block.bytes
                )));
            }
        }
        Ok(())
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for (&at, block) in &self.blocks {
            // SAFETY: allocated so, and nobody has the address any more.
            unsafe { std::alloc::dealloc((at - self.zone as u64) as *mut u8, block.layout) };
        }
    }
}
