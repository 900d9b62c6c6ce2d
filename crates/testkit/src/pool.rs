//! Device memory of a test: blocks that hold NaN until they are written, kept for the next that wants as many bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lgm_core::{BlobSpec, Device, DevicePtr, DeviceQueue, Format, Result, View, ViewMut, Views, ViewsMut};
use lgm_cuda::sim::Sim;
use lgm_cuda::{Allocator, Cuda};

/// What memory never written holds: as a floating-point number, NaN.
const POISON: u8 = 0xff;

/// What runs a device half: the simulated device, or a GPU.
pub(crate) trait TestDevice: DeviceQueue + Allocator + Send + Sync {
    /// Sets bytes to a value, in the order of the queue.
    fn fill(&self, at: DevicePtr, value: u8, bytes: usize) -> Result<()>;
}
impl TestDevice for Sim {
    fn fill(&self, at: DevicePtr, value: u8, bytes: usize) -> Result<()> {
        Sim::fill(self, at, value, bytes)
    }
}
impl TestDevice for Cuda {
    fn fill(&self, at: DevicePtr, value: u8, bytes: usize) -> Result<()> {
        Cuda::fill(self, at, value, bytes)
    }
}

/// A device and its unused blocks by size, kept because allocation is slow on a GPU.
pub(crate) struct Pool {
    device: Arc<dyn TestDevice>,
    free: Mutex<HashMap<usize, Vec<DevicePtr>>>,
}

impl Pool {
    pub fn new(device: Arc<dyn TestDevice>) -> Pool {
        Pool { device, free: Mutex::default() }
    }

    pub fn device(&self) -> &(dyn TestDevice + 'static) {
        self.device.as_ref()
    }

    fn take(&self, bytes: usize) -> Result<DevicePtr> {
        let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&bytes).and_then(Vec::pop);
        kept.map_or_else(|| self.device.alloc(bytes), Ok)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for at in free.drain().flat_map(|(_, blocks)| blocks) {
            let freed = self.device.free(at);
            // A second panic would hide the first.
            if !std::thread::panicking() {
                freed.expect("nothing wrote beside the block");
            }
        }
    }
}

/// Device memory of single-precision numbers, full of NaN at first.
pub(crate) struct Block<'a> {
    pool: &'a Pool,
    pub at: DevicePtr,
    bytes: usize,
}

impl<'a> Block<'a> {
    fn new(pool: &'a Pool, bytes: usize) -> Result<Self> {
        let block = Block { pool, at: pool.take(bytes)?, bytes };
        pool.device.fill(block.at, POISON, bytes)?;
        Ok(block)
    }

    pub fn of(pool: &'a Pool, values: &[f64]) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|&v| (v as f32).to_ne_bytes()).collect();
        Block::of_bytes(pool, &bytes)
    }

    pub fn of_bytes(pool: &'a Pool, bytes: &[u8]) -> Result<Self> {
        let block = Block { pool, at: pool.take(bytes.len())?, bytes: bytes.len() };
        pool.device.upload(bytes, block.at)?;
        Ok(block)
    }

    fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes];
        self.pool.device.download(self.at, &mut bytes)?;
        Ok(bytes)
    }

    pub fn words(&self) -> Result<Vec<[u8; 4]>> {
        Ok(self.read()?.as_chunks().0.to_vec())
    }

    pub fn to_f64(&self) -> Result<Vec<f64>> {
        Ok(self.words()?.into_iter().map(|w| f32::from_ne_bytes(w) as f64).collect())
    }

    pub fn view<'b>(&self, spec: &'b BlobSpec) -> Option<View<'b, Device>> {
        // SAFETY: the block is of the spec's size, and used only while it is there.
        Some(unsafe { View::from_addr(self.at, spec) })
    }

    pub fn view_mut<'b>(&self, spec: &'b BlobSpec) -> Option<ViewMut<'b, Device>> {
        // SAFETY: as for `view`; one window of each block is handed out for a call.
        Some(unsafe { ViewMut::from_addr(self.at, spec) })
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(self.bytes).or_default().push(self.at);
    }
}

/// A blob in device memory, in a format.
pub(crate) struct Stored<'a> {
    block: Block<'a>,
    spec: BlobSpec,
    format: Format,
}

impl<'a> Stored<'a> {
    /// Full of NaN.
    pub fn poisoned(pool: &'a Pool, spec: &BlobSpec, format: Format) -> Result<Self> {
        let block = Block::new(pool, format.bytes(&spec.shape))?;
        Ok(Stored { block, spec: spec.clone(), format })
    }

    pub fn of(pool: &'a Pool, spec: &BlobSpec, format: Format, values: &[f64]) -> Result<Self> {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        let block = Block::of_bytes(pool, &format.encode(&spec.shape, &values))?;
        Ok(Stored { block, spec: spec.clone(), format })
    }

    pub fn to_f64(&self) -> Result<Vec<f64>> {
        let values = self.format.decode(&self.spec.shape, &self.block.read()?);
        Ok(values.into_iter().map(f64::from).collect())
    }

    pub fn view<'b>(&self, spec: &'b BlobSpec) -> Option<View<'b, Device>> {
        self.block.view(spec)
    }

    pub fn view_mut<'b>(&self, spec: &'b BlobSpec) -> Option<ViewMut<'b, Device>> {
        self.block.view_mut(spec)
    }
}

/// Blobs of values, each in the format of its place.
pub(crate) fn stored<'a>(
    pool: &'a Pool,
    specs: &[BlobSpec],
    format: impl Fn(usize) -> Format,
    values: &[Vec<f64>],
) -> Result<Vec<Stored<'a>>> {
    values.iter().zip(specs).enumerate().map(|(i, (v, s))| Stored::of(pool, s, format(i), v)).collect()
}

pub(crate) fn empty<'a>(
    pool: &'a Pool,
    specs: &[BlobSpec],
    format: impl Fn(usize) -> Format,
) -> Result<Vec<Stored<'a>>> {
    specs.iter().enumerate().map(|(i, s)| Stored::poisoned(pool, s, format(i))).collect()
}

pub(crate) fn blocks<'a>(pool: &'a Pool, values: &[Vec<f64>]) -> Result<Vec<Block<'a>>> {
    values.iter().map(|v| Block::of(pool, v)).collect()
}

pub(crate) fn poisoned<'a>(pool: &'a Pool, specs: &[BlobSpec]) -> Result<Vec<Block<'a>>> {
    specs.iter().map(|s| Block::new(pool, 4 * s.shape.count())).collect()
}

pub(crate) fn views<'b>(blocks: &[Block<'_>], specs: &'b [BlobSpec]) -> Views<'b, Device> {
    blocks.iter().zip(specs).map(|(b, s)| b.view(s)).collect()
}

pub(crate) fn views_mut<'b>(blocks: &[Block<'_>], specs: &'b [BlobSpec]) -> ViewsMut<'b, Device> {
    blocks.iter().zip(specs).map(|(b, s)| b.view_mut(s)).collect()
}

pub(crate) fn read(blocks: &[Block<'_>]) -> Result<Vec<Vec<f64>>> {
    blocks.iter().map(Block::to_f64).collect()
}
