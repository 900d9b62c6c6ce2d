//! Blocks of device memory, and numbers as bytes.

use std::rc::Rc;

use lgm_core::{DevicePtr, Result, memory};

use super::Gpu;

/// A block of device memory, given back when dropped.
pub struct Block {
    gpu: Rc<dyn Gpu>,
    at: DevicePtr,
    bytes: usize,
}

impl Block {
    /// A block of zeros.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(gpu: &Rc<dyn Gpu>, bytes: usize) -> Result<Block> {
        let block = Block { gpu: gpu.clone(), at: gpu.alloc(bytes.max(1))?, bytes };
        if bytes > 0 {
            gpu.zero(block.at, bytes)?;
        }
        Ok(block)
    }

    /// A block of these words.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn of_words(gpu: &Rc<dyn Gpu>, words: &[u32]) -> Result<Block> {
        let block = Block { gpu: gpu.clone(), at: gpu.alloc((4 * words.len()).max(1))?, bytes: 4 * words.len() };
        block.upload(&bytes_of(words))?;
        Ok(block)
    }

    /// The first byte.
    pub fn at(&self) -> DevicePtr {
        self.at
    }

    /// The length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Overwrites the beginning.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn upload(&self, bytes: &[u8]) -> Result<()> {
        self.gpu.upload(bytes, self.at)
    }

    /// Everything, after all work queued before.
    ///
    /// # Errors
    /// When the device refuses, or work before failed.
    pub fn download(&self) -> Result<Vec<u8>> {
        let mut bytes = memory::zeros(self.bytes, "a copy from the device")?;
        self.gpu.download(self.at, &mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Err(error) = self.gpu.free(self.at) {
            tracing::warn!("a block of {} bytes was not given back: {error}", self.bytes);
        }
    }
}

/// Words as the device has them: little-endian, like every host of one.
pub fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Single-precision numbers as bytes.
pub fn float_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Bytes as single-precision numbers.
pub fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Bytes as double-precision numbers.
pub fn doubles_of(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])).collect()
}
