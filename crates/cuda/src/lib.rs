//! NVIDIA's libraries, found and asked at run time: nothing of CUDA is needed to build or to start.
//!
//! [`probe`] reports where the driver, NVRTC, cuBLAS, cuDNN and NCCL are and which versions, or every place that was
//! looked at and how to get what is missing. [`devices`] needs the driver alone. Neither can fail by panicking: a
//! missing, damaged or foreign library becomes a value whose text says what was found and what to try.
//!
//! [`Cuda`] is one GPU to run on: memory, a queue for kernels, products and convolutions, recording as a graph, and
//! copies ahead of the computation. [`sim`] stands in for it where there is none. Both run the sources of [`kernels`].

mod device;
mod gpu;
pub mod kernels;
mod locate;
pub mod sim;

pub use device::{
    Allocator, Block, Feeder, Gpu, Launch, Refusal, Replay, bytes_of, doubles_of, float_bytes, floats_of,
};
use gpu::Driver;
pub use gpu::{
    Compiled, Cuda, Device, Event, Feed, Graph, KernelCache, NoDevice, Nvrtc, PinnedBuffer, Precision, Unit,
    compile_all, ptxas,
};
pub use locate::{Component, Found, Library, Looked, Missing, Outcome, Place, SearchPath, Spot, Unusable, Version};

/// What this machine offers to a GPU run.
#[derive(Debug)]
pub struct Probe {
    /// One entry for each of [`Component::ALL`], in that order.
    pub libraries: Vec<Library>,
    /// The GPUs in the driver's order, or why there are none.
    pub devices: Result<Vec<Device>, NoDevice>,
}

/// Looks for every library and device in the places of [`SearchPath::from_env`].
///
/// Libraries that were found stay loaded until the process ends.
pub fn probe() -> Probe {
    probe_in(&SearchPath::from_env())
}

/// As [`probe`], in the given places alone.
pub fn probe_in(path: &SearchPath) -> Probe {
    let driver = locate::load(Component::Driver, path);
    let look = |component| match component {
        Component::Driver => Library::of(component, &driver),
        _ => locate::find(component, path),
    };
    let libraries = Component::ALL.map(look).into();
    Probe { libraries, devices: Driver::of(driver).and_then(|driver| driver.devices()) }
}

/// The GPUs of this machine in the driver's order; at least one.
///
/// # Errors
/// When the driver is missing or unusable, or sees no GPU: the text says what was looked for and where.
pub fn devices() -> Result<Vec<Device>, NoDevice> {
    Driver::of(locate::load(Component::Driver, &SearchPath::from_env()))?.devices()
}
