//! What a net on a device asks of it besides the queue: memory, and recording.

use std::rc::Rc;

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Result};
use lgm_cuda::{Allocator, Cuda};

/// A device that nets and solvers run on.
pub trait Gpu: DeviceQueue + Allocator {
    /// What to call it in the log.
    fn label(&self) -> String;

    /// Bytes of which an allocation takes a whole number.
    fn page(&self) -> u64 {
        1
    }

    /// The library's way to make a pass of a convolution that was planned, or why it does not make it; `None` where it was
    /// not planned or there is no library.
    fn convolution_way(&self, _conv: &DeviceConvolution, _pass: ConvolutionPass) -> Option<Result<String, String>> {
        None
    }

    /// Records what `work` puts on the queue instead of running it; `None`, with nothing run, where the device cannot
    /// record.
    ///
    /// # Errors
    /// From `work`, or when something in it cannot be recorded; nothing has run then.
    fn record(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        Ok(None)
    }

    /// A ring of two batches of so many bytes, copied while the device computes; `None` where it cannot.
    ///
    /// # Errors
    /// When host or device have no room.
    fn feeder(&self, _bytes: usize) -> Result<Option<Box<dyn Feeder>>> {
        Ok(None)
    }
}

/// Batches on their way to a device, each in one of two slots.
pub trait Feeder {
    /// Host memory to put a slot's next batch in, once the one before has left it.
    ///
    /// # Errors
    /// When the device failed.
    fn host(&mut self, slot: usize) -> Result<&mut [u8]>;

    /// Sends a slot's batch on its way, beside the computation.
    ///
    /// # Errors
    /// When the device refuses.
    fn send(&mut self, slot: usize) -> Result<()>;

    /// Puts on the queue that parts of a slot's batch, each from an offset and so many bytes, go to their addresses.
    ///
    /// # Errors
    /// When the device refuses.
    fn deliver(&mut self, slot: usize, parts: &[(usize, DevicePtr, usize)]) -> Result<()>;
}

/// Recorded work.
pub trait Replay {
    /// Puts all of it on the queue at once.
    ///
    /// # Errors
    /// When the device refuses.
    fn replay(&self) -> Result<()>;
}

impl Gpu for Cuda {
    fn label(&self) -> String {
        format!("GPU {} ({})", self.gpu().id, self.gpu().name)
    }

    fn page(&self) -> u64 {
        2 << 20
    }

    fn convolution_way(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Option<Result<String, String>> {
        Cuda::convolution_way(self, conv, pass)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        Ok(Some(Box::new(self.capture(work)?)))
    }

    fn feeder(&self, bytes: usize) -> Result<Option<Box<dyn Feeder>>> {
        Ok(Some(Box::new(CudaFeeder { feed: self.feed(bytes, 2)?, bytes })))
    }
}

impl Replay for lgm_cuda::Graph {
    fn replay(&self) -> Result<()> {
        lgm_cuda::Graph::replay(self)
    }
}

struct CudaFeeder {
    feed: lgm_cuda::Feed,
    bytes: usize,
}

impl Feeder for CudaFeeder {
    fn host(&mut self, slot: usize) -> Result<&mut [u8]> {
        Ok(self.feed.host(slot)?.bytes_mut())
    }

    fn send(&mut self, slot: usize) -> Result<()> {
        self.feed.send(slot, self.bytes)
    }

    fn deliver(&mut self, slot: usize, parts: &[(usize, DevicePtr, usize)]) -> Result<()> {
        self.feed.deliver(slot, parts)
    }
}

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
        let mut bytes = vec![0; self.bytes];
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
