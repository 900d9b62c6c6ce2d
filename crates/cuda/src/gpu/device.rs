//! A GPU as a device that nets run on.

use lgm_core::{Arg, ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Error, Gemm, Grid, Result, Storage};

use super::context::Stream;
use super::{Cuda, Feed, Graph};
use crate::device::{Allocator, Feeder, Gpu, Refusal, Replay};

impl Allocator for Cuda {
    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        self.not_while_recording("memory was asked for")?;
        self.context.alloc(bytes)
    }

    fn free(&self, block: DevicePtr) -> Result<()> {
        self.not_while_recording("memory was given back")?;
        self.context.free(block)
    }

    fn free_bytes(&self) -> Result<(u64, u64)> {
        self.context.free_bytes()
    }
}

impl DeviceQueue for Cuda {
    fn storage(&self) -> Storage {
        self.storage
    }

    fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        self.kernels.launch(kernel, grid, args)
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.blas.gemm(gemm)
    }

    fn convolution_workspace(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Result<Option<usize>> {
        self.not_while_recording("a convolution was planned")?;
        self.convolutions.as_ref().map_or(Ok(None), |all| all.workspace(conv, pass))
    }

    fn convolution(
        &self,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
        result: DevicePtr,
        operands: [DevicePtr; 2],
        workspace: DevicePtr,
    ) -> Result<()> {
        let all =
            self.convolutions.as_ref().ok_or_else(|| Error::internal("a convolution by cuDNN, which is absent"))?;
        all.run(conv, pass, result, operands, workspace)
    }

    fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()> {
        self.context.copy(from, to, bytes)
    }

    fn zero(&self, at: DevicePtr, bytes: usize) -> Result<()> {
        self.fill(at, 0, bytes)
    }

    fn upload(&self, from: &[u8], to: DevicePtr) -> Result<()> {
        self.not_while_recording("host memory was copied from")?;
        self.staging().upload(from, to)
    }

    fn download(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.not_while_recording("host memory was copied to")?;
        self.staging().download(from, to)
    }

    fn finish(&self) -> Result<()> {
        self.not_while_recording("the device was waited for")?;
        self.context.finish(Stream::Copy)?;
        self.context.finish(Stream::Compute)
    }
}

impl Gpu for Cuda {
    fn name(&self) -> String {
        format!("GPU {} ({})", self.gpu().id, self.gpu().name)
    }

    fn page(&self) -> u64 {
        2 << 20
    }

    fn convolution_algorithm(
        &self,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
    ) -> Option<Result<String, Refusal>> {
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
