//! The simulated device as one that nets run on: kernels on the host, recorded and replayed as on a GPU, so that what
//! must not be recorded shows.

use std::cell::RefCell;
use std::rc::Rc;

use lgm_core::{Arg, ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Error, Gemm, Grid, Result, Storage};

use super::{Order, Sim};
use crate::{Allocator, Feeder, Gpu, Replay};

/// The device; see the module. Slow: for tests.
pub struct Simulated {
    sim: Rc<Sim>,
    recording: RefCell<Option<Vec<Work>>>,
    storage: Storage,
}

#[derive(Clone)]
enum Work {
    Launch(&'static str, Grid, Vec<Arg>),
    Gemm(Gemm),
    Convolution(DeviceConvolution, ConvolutionPass, DevicePtr, [DevicePtr; 2], DevicePtr),
    Copy(DevicePtr, DevicePtr, usize),
    Zero(DevicePtr, usize),
}

impl Work {
    fn run(&self, sim: &Sim) -> Result<()> {
        match self {
            Work::Launch(kernel, grid, args) => sim.launch(kernel, *grid, args),
            Work::Gemm(gemm) => sim.gemm(gemm),
            Work::Convolution(conv, pass, result, operands, workspace) => {
                sim.convolution(conv, *pass, *result, *operands, *workspace)
            }
            Work::Copy(from, to, bytes) => sim.copy(*from, *to, *bytes),
            Work::Zero(at, bytes) => sim.zero(*at, *bytes),
        }
    }
}

impl Simulated {
    /// A device in single precision whose threads run in `order`; its memory is unlimited unless `capacity` is given, in
    /// bytes.
    ///
    /// # Errors
    /// When there is no C++ compiler, or it refuses the kernels.
    pub fn new(order: Order, capacity: Option<u64>) -> Result<Simulated> {
        Ok(Simulated::of(capacity.map_or_else(|| Sim::new(order), |bytes| Sim::with_capacity(order, bytes))?))
    }

    /// A device of a simulator; the preferred blob format is that of its precision.
    pub fn of(sim: Sim) -> Simulated {
        let storage = sim.precision().storage();
        Simulated { sim: Rc::new(sim), recording: RefCell::new(None), storage }
    }

    /// Sets the preferred blob format.
    #[must_use]
    pub fn storing(self, storage: Storage) -> Self {
        Simulated { storage, ..self }
    }

    fn put(&self, work: Work) -> Result<()> {
        match self.recording.borrow_mut().as_mut() {
            Some(recording) => {
                recording.push(work);
                Ok(())
            }
            None => work.run(&self.sim),
        }
    }

    fn not_recorded(&self, what: &str) -> Result<()> {
        match self.recording.borrow().is_some() {
            true => Err(Error::internal(format!("{what} cannot be recorded"))),
            false => Ok(()),
        }
    }
}

impl Allocator for Simulated {
    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        self.not_recorded("an allocation")?;
        self.sim.alloc(bytes)
    }

    fn free(&self, block: DevicePtr) -> Result<()> {
        self.sim.free(block)
    }

    fn free_bytes(&self) -> Result<(u64, u64)> {
        self.sim.free_bytes()
    }
}

impl DeviceQueue for Simulated {
    fn storage(&self) -> Storage {
        self.storage
    }

    fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        self.put(Work::Launch(kernel, grid, args.to_vec()))
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.put(Work::Gemm(*gemm))
    }

    fn convolution_workspace(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Result<Option<usize>> {
        self.not_recorded("the planning of a convolution")?;
        self.sim.convolution_workspace(conv, pass)
    }

    fn convolution(
        &self,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
        result: DevicePtr,
        operands: [DevicePtr; 2],
        workspace: DevicePtr,
    ) -> Result<()> {
        self.put(Work::Convolution(*conv, pass, result, operands, workspace))
    }

    fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()> {
        self.put(Work::Copy(from, to, bytes))
    }

    fn zero(&self, at: DevicePtr, bytes: usize) -> Result<()> {
        self.put(Work::Zero(at, bytes))
    }

    fn upload(&self, from: &[u8], to: DevicePtr) -> Result<()> {
        self.not_recorded("a copy from the host")?;
        self.sim.upload(from, to)
    }

    fn download(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.not_recorded("a copy to the host")?;
        self.sim.download(from, to)
    }

    fn finish(&self) -> Result<()> {
        self.not_recorded("waiting")
    }
}

struct Recorded {
    sim: Rc<Sim>,
    work: Vec<Work>,
}

impl Replay for Recorded {
    fn replay(&self) -> Result<()> {
        self.work.iter().try_for_each(|work| work.run(&self.sim))
    }
}

struct Slots {
    sim: Rc<Sim>,
    host: [Vec<u8>; 2],
    sent: [Vec<u8>; 2],
}

impl Feeder for Slots {
    fn host(&mut self, slot: usize) -> Result<&mut [u8]> {
        Ok(&mut self.host[slot])
    }

    fn send(&mut self, slot: usize) -> Result<()> {
        self.sent[slot] = self.host[slot].clone();
        Ok(())
    }

    fn deliver(&mut self, slot: usize, parts: &[(usize, DevicePtr, usize)]) -> Result<()> {
        let sent = &self.sent[slot];
        parts.iter().try_for_each(|&(offset, to, bytes)| self.sim.upload(&sent[offset..offset + bytes], to))
    }
}

impl Gpu for Simulated {
    fn name(&self) -> String {
        "the simulated GPU".into()
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        self.not_recorded("a recording")?;
        *self.recording.borrow_mut() = Some(Vec::new());
        let result = work();
        let work = self.recording.take().unwrap_or_default();
        result.map(|()| Some(Box::new(Recorded { sim: self.sim.clone(), work }) as Box<dyn Replay>))
    }

    fn feeder(&self, bytes: usize) -> Result<Option<Box<dyn Feeder>>> {
        let slots = || [vec![0; bytes], vec![0; bytes]];
        Ok(Some(Box::new(Slots { sim: self.sim.clone(), host: slots(), sent: slots() })))
    }
}
