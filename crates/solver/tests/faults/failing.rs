//! A device that fails.

use std::cell::Cell;
use std::rc::Rc;

use lgm_core::{Arg, ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Error, Gemm, Grid, Result, Storage};
use lgm_cuda::sim::Order;
use lgm_cuda::{Allocator, Feeder, Gpu, Replay};
use lgm_testkit::device;

/// What happens on a device, and when.
#[derive(Clone, Copy)]
pub enum Fails {
    /// A launch of a kernel is refused, after so many of the same; nothing is recorded.
    Launch(&'static str, usize),
    /// The replay of a recording is refused, after so many.
    Replay(usize),
    /// The device is lost in a replay, after so many.
    Lost(usize),
}

struct State {
    fails: Fails,
    count: Cell<usize>,
    lost: Cell<bool>,
}

impl State {
    fn alive(&self) -> Result<()> {
        if self.lost.get() { Err(Error::config("the device is lost: replay failed")) } else { Ok(()) }
    }

    /// Counts one of what fails; says whether this one does.
    fn now(&self, after: usize) -> bool {
        self.count.set(self.count.get() + 1);
        self.count.get() == after + 1
    }
}

pub struct Failing {
    inner: Rc<dyn Gpu>,
    state: Rc<State>,
}

impl Failing {
    /// One that fails, or nothing where there is no C++ compiler.
    pub fn gpu(fails: Fails) -> Option<Rc<dyn Gpu>> {
        let inner = device(Order::Forward, None, Storage::default())?;
        let state = Rc::new(State { fails, count: Cell::new(0), lost: Cell::new(false) });
        Some(Rc::new(Failing { inner, state }))
    }
}

impl Allocator for Failing {
    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        self.state.alive().and_then(|()| self.inner.alloc(bytes))
    }
    fn free(&self, block: DevicePtr) -> Result<()> {
        self.inner.free(block)
    }
    fn free_bytes(&self) -> Result<(u64, u64)> {
        self.inner.free_bytes()
    }
}

impl DeviceQueue for Failing {
    fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        self.state.alive()?;
        match self.state.fails {
            Fails::Launch(name, after) if name == kernel && self.state.now(after) => {
                Err(Error::config(format!("kernel {kernel}: cuLaunchKernel failed")))
            }
            _ => self.inner.launch(kernel, grid, args),
        }
    }
    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.state.alive().and_then(|()| self.inner.gemm(gemm))
    }
    fn convolution_workspace(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Result<Option<usize>> {
        self.inner.convolution_workspace(conv, pass)
    }
    fn convolution(
        &self,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
        result: DevicePtr,
        operands: [DevicePtr; 2],
        workspace: DevicePtr,
    ) -> Result<()> {
        self.inner.convolution(conv, pass, result, operands, workspace)
    }
    fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()> {
        self.state.alive().and_then(|()| self.inner.copy(from, to, bytes))
    }
    fn zero(&self, at: DevicePtr, bytes: usize) -> Result<()> {
        self.state.alive().and_then(|()| self.inner.zero(at, bytes))
    }
    fn upload(&self, from: &[u8], to: DevicePtr) -> Result<()> {
        self.state.alive().and_then(|()| self.inner.upload(from, to))
    }
    fn download(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.state.alive().and_then(|()| self.inner.download(from, to))
    }
    fn finish(&self) -> Result<()> {
        self.state.alive().and_then(|()| self.inner.finish())
    }
}

struct Recorded {
    inner: Box<dyn Replay>,
    state: Rc<State>,
}

impl Replay for Recorded {
    fn replay(&self) -> Result<()> {
        self.state.alive()?;
        match self.state.fails {
            Fails::Replay(after) if self.state.now(after) => Err(Error::config("cuGraphLaunch failed")),
            Fails::Lost(after) if self.state.now(after) => {
                self.state.lost.set(true);
                self.state.alive()
            }
            _ => self.inner.replay(),
        }
    }
}

impl Gpu for Failing {
    fn name(&self) -> String {
        "a failing GPU".into()
    }
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        if matches!(self.state.fails, Fails::Launch(..)) {
            return Ok(None);
        }
        let recorded = self.inner.record(work)?;
        Ok(recorded.map(|inner| Box::new(Recorded { inner, state: self.state.clone() }) as Box<dyn Replay>))
    }
    fn feeder(&self, bytes: usize) -> Result<Option<Box<dyn Feeder>>> {
        self.inner.feeder(bytes)
    }
}
