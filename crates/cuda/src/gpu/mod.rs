//! Running on one GPU: its memory, its queue, its libraries.

mod api;
mod blas;
mod compile;
mod context;
mod conv;
mod device;
mod devices;
mod event;
mod graph;
mod memory;
mod precision;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lgm_core::memory::in_units;
use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, Error, Result, Storage};

use api::{Api, CublasApi, CudnnApi};
use blas::Blas;
use compile::{Kernels, nvrtc};
use context::{Context, Stream, driver};
use conv::Convolutions;
use memory::Staging;

pub use compile::{Compiled, KernelCache, Nvrtc, Unit, compile_all, ptxas};
pub(crate) use devices::Driver;
pub use devices::{Device, NoDevice};
pub use event::Event;
pub use graph::Graph;
pub use memory::{Feed, PinnedBuffer};
pub use precision::Precision;

use crate::{Component, Refusal, SearchPath, Version, kernels, locate};

/// The oldest GPUs that kernels are compiled for.
const OLDEST: (u32, u32) = (7, 5);

/// One GPU, open: the memory and the queue of [`lgm_core::Device`]s, recording, and copies ahead of the computation.
///
/// All work runs in order on one stream; [`Feed`] copies on another. Any thread may use it, and recording one at a time.
/// After an error that loses the device ([`Cuda::lost`]), every call gives that error.
pub struct Cuda {
    // Dropped in this order: the kernels first, which waits for all work, the context last.
    kernels: Kernels,
    convolutions: Option<Convolutions>,
    blas: Blas,
    staging: Mutex<Staging>,
    recording: AtomicBool,
    precision: Precision,
    storage: Storage,
    libraries: Vec<String>,
    context: Arc<Context>,
}

impl Cuda {
    /// Opens a GPU by its number, with the libraries of this machine, and makes every kernel ready (compiled once, then
    /// kept in the cache of [`KernelCache::from_env`]).
    ///
    /// # Errors
    /// When the driver, NVRTC or cuBLAS is missing or too old, the GPU is not there or too old, or it refuses.
    pub fn open(id: u32, precision: Precision) -> Result<Cuda> {
        Self::open_in(&SearchPath::from_env(), id, precision, &KernelCache::from_env())
    }

    /// As [`Cuda::open`], with the libraries of a search path and a cache.
    ///
    /// # Errors
    /// As [`Cuda::open`].
    fn open_in(path: &SearchPath, id: u32, precision: Precision, cache: &KernelCache) -> Result<Cuda> {
        let no_device = |error: NoDevice| Error::device(error.to_string());
        let driver = Driver::of(locate::load(Component::Driver, path)).map_err(no_device)?;
        let gpu = pick(driver.devices().map_err(no_device)?, id)?;
        precision.check(&gpu.name, gpu.capability)?;
        let (listing, driver) = driver.functions()?;
        let nvrtc = Nvrtc::load(path)?;
        let cublas = CublasApi::load(path)?;
        check_driver(driver.found.version, &[("NVRTC", nvrtc.version()), ("cuBLAS", cublas.found.version)])?;
        let architecture = nvrtc::architecture(gpu.capability, &nvrtc.architectures()?, nvrtc.version())?;
        let mut libraries = vec![
            described("driver", driver.found.version, &driver.found.path),
            described("NVRTC", nvrtc.version(), nvrtc.path()),
            described("cuBLAS", cublas.found.version, &cublas.found.path),
        ];

        let context = Context::open(listing, driver, gpu)?;
        let sources = kernels::sources();
        let units: Vec<Unit<'_>> = sources.iter().map(Unit::from).collect();
        let code = compile_all(&nvrtc, architecture, &units, cache)?;
        let code: Vec<_> =
            code.into_iter().zip(sources).map(|(code, s)| (code, s.name, s.kernels().collect())).collect();
        let kernels = Kernels::load(&context, &code)?;
        let blas = Blas::new(&context, cublas, precision)?;
        let convolutions = open_cudnn(path, &context, precision);
        libraries.extend(convolutions.as_ref().map(|all| described("cuDNN", all.found().version, &all.found().path)));
        let staging = Mutex::new(Staging::new(&context)?);
        let recording = AtomicBool::new(false);
        let storage = precision.storage_on(context.gpu.capability);
        Ok(Cuda { kernels, convolutions, blas, staging, recording, precision, storage, libraries, context })
    }

    /// The GPU as one that would have blobs stored so, whatever its precision.
    #[must_use]
    pub fn storing(self, storage: Storage) -> Cuda {
        Cuda { storage, ..self }
    }

    /// The GPU.
    pub fn gpu(&self) -> &Device {
        &self.context.gpu
    }

    /// The precision of products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What runs here, a line each: the GPU, and each library with its version and file.
    pub fn report(&self) -> Vec<String> {
        let gpu = self.gpu();
        let (major, minor) = gpu.capability;
        let products = match self.precision {
            Precision::Tf32 if major < 8 => "fp32 (this GPU has no tf32)".to_string(),
            precision => precision.to_string(),
        };
        let memory = in_units(gpu.memory);
        let first = format!("GPU {} ({}, sm_{major}{minor}, {memory}), products in {products}", gpu.id, gpu.name);
        [first].into_iter().chain(self.libraries.iter().cloned()).collect()
    }

    /// cuDNN's algorithm for a pass of a convolution that was planned, or why it has none; `None` where the pass was not
    /// planned or there is no cuDNN.
    pub fn convolution_algorithm(
        &self,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
    ) -> Option<Result<String, Refusal>> {
        self.convolutions.as_ref()?.taken(conv, pass)
    }

    /// Why the device is lost, if it is: what is on it is gone, and only a new process can use it again.
    pub fn lost(&self) -> Option<&str> {
        self.context.lost()
    }

    /// Pinned host memory, zeroed.
    ///
    /// # Errors
    /// When the driver has no such block.
    pub fn pinned(&self, bytes: usize) -> Result<PinnedBuffer> {
        PinnedBuffer::new(&self.context, bytes)
    }

    /// Puts on the queue that bytes are set to a value.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn fill(&self, at: DevicePtr, value: u8, bytes: usize) -> Result<()> {
        let stream = self.context.stream(Stream::Compute);
        if bytes == 0 {
            return Ok(());
        }
        if at.0.is_multiple_of(4) && bytes.is_multiple_of(4) {
            let word = u32::from_ne_bytes([value; 4]);
            return driver!(self.context, cuMemsetD32Async(at.0, word, bytes / 4, stream));
        }
        driver!(self.context, cuMemsetD8Async(at.0, value, bytes, stream))
    }

    /// A ring of batches of so many bytes each, copied while the device computes. Two slots are enough for a steady
    /// source, and three for one whose batches take uneven times.
    ///
    /// # Errors
    /// When host or device have no room.
    pub fn feed(&self, bytes: usize, slots: usize) -> Result<Feed> {
        Feed::new(&self.context, bytes, slots)
    }

    /// A mark after all work queued now, to be waited for or, of two, the time between taken.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn mark(&self) -> Result<Event> {
        let event = Event::new(&self.context, true)?;
        event.record(Stream::Compute)?;
        Ok(event)
    }

    /// What is queued from now on is recorded and not run, until [`Cuda::end_capture`] on the same thread. It must have
    /// run once before, since libraries load their kernels on first use and that cannot be recorded.
    ///
    /// # Errors
    /// When a recording is under way already, or the device refuses.
    pub fn begin_capture(&self) -> Result<()> {
        if self.recording.swap(true, Ordering::AcqRel) {
            return Err(Error::internal("a recording began while another was under way"));
        }
        let begun = graph::begin(&self.context);
        if begun.is_err() {
            self.recording.store(false, Ordering::Release);
        }
        begun
    }

    /// Ends a recording.
    ///
    /// # Errors
    /// When none is under way, or something queued could not be recorded.
    pub fn end_capture(&self) -> Result<Graph> {
        let recorded = self.stop()?;
        let graph = Graph::new(&self.context, recorded);
        graph::discard(&self.context, recorded);
        graph
    }

    /// Records what `work` queues; nothing of it runs.
    ///
    /// # Errors
    /// From `work`, and as [`Cuda::begin_capture`] and [`Cuda::end_capture`].
    pub fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        self.begin_capture()?;
        match work() {
            Ok(()) => self.end_capture(),
            Err(error) => {
                // The work's error says more than that of a recording it broke.
                if let Ok(recorded) = self.stop() {
                    graph::discard(&self.context, recorded);
                }
                Err(error)
            }
        }
    }

    fn stop(&self) -> Result<api::CUgraph> {
        if !self.recording.swap(false, Ordering::AcqRel) {
            return Err(Error::internal("a recording ended that had not begun"));
        }
        graph::end(&self.context)
    }

    /// Puts recorded work on the queue.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        graph.replay()
    }

    fn not_while_recording(&self, what: &str) -> Result<()> {
        if self.recording.load(Ordering::Acquire) {
            return Err(Error::internal(format!("{what} while work was being recorded")));
        }
        Ok(())
    }

    fn staging(&self) -> std::sync::MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// cuDNN, or nothing where it is not there or does not start, which is said.
fn open_cudnn(path: &SearchPath, context: &Arc<Context>, precision: Precision) -> Option<Convolutions> {
    let slower = |reason: String| tracing::warn!("convolutions run on our own kernels, slower than cuDNN's: {reason}");
    if let Err(missing) = locate::find(Component::Cudnn, path).found {
        slower(format!("{}; to get it: {}", missing.summary(), Component::Cudnn.how_to_get()));
        return None;
    }
    let opened = CudnnApi::load(path).and_then(|api| Convolutions::new(context, api, precision));
    opened.map_err(|error| slower(error.to_string())).ok()
}

fn described(name: &str, version: Version, file: &std::path::Path) -> String {
    format!("{name} {version} ({})", file.display())
}

/// The GPU of a number.
///
/// # Errors
/// When it is not there, with those that are, or it is too old.
fn pick(mut gpus: Vec<Device>, id: u32) -> Result<Device> {
    let Some(at) = gpus.iter().position(|gpu| gpu.id == id) else {
        let list: Vec<String> = gpus.iter().map(|gpu| format!("{} ({})", gpu.id, gpu.name)).collect();
        let visible = match std::env::var_os("CUDA_VISIBLE_DEVICES") {
            Some(list) => format!("; CUDA_VISIBLE_DEVICES is '{}'", list.to_string_lossy()),
            None => String::new(),
        };
        return Err(Error::device(format!("there is no GPU {id}; there are {}{visible}", list.join(", "))));
    };
    let gpu = gpus.swap_remove(at);
    let (major, minor) = gpu.capability;
    if gpu.capability < OLDEST {
        return Err(Error::device(format!(
            "GPU {id} ({}) is of compute capability {major}.{minor}; {}.{} (Turing) or newer is needed",
            gpu.name, OLDEST.0, OLDEST.1
        )));
    }
    Ok(gpu)
}

/// # Errors
/// When the driver is of an older major version than a library: such a driver cannot run its code.
fn check_driver(driver: Version, libraries: &[(&str, Version)]) -> Result<()> {
    match libraries.iter().find(|(_, version)| driver.major < version.major) {
        None => Ok(()),
        Some((name, version)) => {
            let hint = if version.major == 13 { " (580 or newer)" } else { "" };
            Err(Error::device(format!(
                "the NVIDIA driver is for CUDA {driver}, but {name} is {version} and needs a driver for CUDA {}.0 or \
                 newer{hint}: update the driver",
                version.major
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// A GPU of no machine.
    pub(crate) fn gpu(id: u32) -> Device {
        Device {
            id,
            name: "Test GPU".into(),
            capability: (9, 0),
            memory: 80 << 30,
            shared_per_block: 0,
            registers_per_block: 0,
            warp: 32,
            pitch: 0,
            threads_per_block: 1024,
            block: [1024; 3],
            grid: [1; 3],
            clock: 0,
            constant_memory: 0,
            texture_alignment: 0,
            overlap: true,
            multiprocessors: 132,
            kernel_timeout: false,
        }
    }

    /// NVRTC where this machine has it: in the usual places, or where `scripts/nvrtc-check` puts it.
    pub(crate) fn nvrtc() -> Result<Nvrtc> {
        let mut path = SearchPath::from_env();
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv-nvrtc/lib");
        let pythons = std::fs::read_dir(target).into_iter().flatten().flatten();
        let own: Vec<PathBuf> = pythons.map(|p| p.path().join("site-packages/nvidia/cu13/lib")).collect();
        path.places.splice(0..0, SearchPath::folders(own).places);
        locate::find(Component::Nvrtc, &path).found.map_err(|missing| Error::device(missing.summary()))?;
        Nvrtc::load(&path)
    }

    #[test]
    fn a_gpu_that_is_not_there_or_too_old_is_named() {
        let old = Device { capability: (7, 0), ..gpu(1) };
        assert_eq!(pick(vec![gpu(0), old.clone()], 0).unwrap(), gpu(0));
        let text = pick(vec![gpu(0), old.clone()], 3).unwrap_err().to_string();
        assert!(text.starts_with("there is no GPU 3; there are 0 (Test GPU), 1 (Test GPU)"), "{text}");
        let text = pick(vec![gpu(0), old], 1).unwrap_err().to_string();
        assert_eq!(text, "GPU 1 (Test GPU) is of compute capability 7.0; 7.5 (Turing) or newer is needed");
    }

    #[test]
    fn a_driver_older_than_the_libraries_is_told_so() {
        let version = |major, minor| Version { major, minor, patch: None };
        let check = |driver| check_driver(driver, &[("NVRTC", version(13, 0)), ("cuBLAS", version(13, 1))]);
        assert!(check(version(13, 0)).is_ok() && check(version(14, 0)).is_ok());
        let text = check(version(12, 8)).unwrap_err().to_string();
        assert!(text.contains("for CUDA 12.8, but NVRTC is 13.0") && text.contains("580 or newer"), "{text}");
    }

    #[test]
    fn without_a_driver_opening_says_where_it_was_looked_for() {
        let empty = tempfile::tempdir().unwrap();
        let path = SearchPath::folders([empty.path().to_path_buf()]);
        let cache = KernelCache::in_folder(empty.path());
        let text = Cuda::open_in(&path, 0, Precision::Tf32, &cache).map(drop).unwrap_err().to_string();
        assert!(text.contains("CUDA driver (libcuda.so.1) was not found") && text.contains("to get it"), "{text}");
    }

    #[test]
    fn a_gpu_can_be_shared_among_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Cuda>();
        shared::<Feed>();
        shared::<Graph>();
        shared::<PinnedBuffer>();
    }
}
