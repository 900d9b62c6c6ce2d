//! A GPU as a device that nets run on.

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, Result};

use super::{Cuda, Feed, Graph};
use crate::device::{Feeder, Gpu, Replay};

impl Gpu for Cuda {
    fn name(&self) -> String {
        format!("GPU {} ({})", self.gpu().id, self.gpu().name)
    }

    fn page(&self) -> u64 {
        2 << 20
    }

    fn convolution_algorithm(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Option<Result<String, String>> {
        Cuda::convolution_algorithm(self, conv, pass)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        Ok(Some(Box::new(self.capture(work)?)))
    }

    fn feeder(&self, bytes: usize) -> Result<Option<Box<dyn Feeder>>> {
        Ok(Some(Box::new(CudaFeeder { feed: self.feed(bytes, 2)?, bytes })))
    }
}

impl Replay for Graph {
    fn replay(&self) -> Result<()> {
        Graph::replay(self)
    }
}

struct CudaFeeder {
    feed: Feed,
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
