//! The state that all libraries share: memory, objects, counts, and whether the device is lost.

use std::alloc::Layout;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use lgm_core::DevicePtr;
use lgm_cuda::sim::{Blocks, Kernels};

use crate::blas;
use crate::counts::{Counts, report_at_exit};
use crate::dnn;
use crate::enter::Refusal;
use crate::settings::Settings;
use crate::stream::{Event, Node, Stream};

/// Memory of the device unless told otherwise.
const MEMORY: u64 = 80 << 30;
/// CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_NOT_FOUND
pub const INVALID_VALUE: Refusal = 1;
pub const OUT_OF_MEMORY: Refusal = 2;
pub const INVALID_HANDLE: Refusal = 400;
pub const NOT_FOUND: Refusal = 500;
/// CUDA_ERROR_ILLEGAL_ADDRESS
const ILLEGAL_ADDRESS: c_int = 700;

/// The one device.
pub struct Gpu {
    pub settings: Settings,
    /// Calls that were counted.
    pub made: u64,
    /// Their names.
    pub names: Vec<&'static str>,
    counts: Counts,
    pub memory: Blocks,
    pub pinned: BTreeMap<usize, Layout>,
    pub kernels: lgm_core::Result<&'static Kernels>,
    pub streams: HashMap<usize, Stream>,
    pub events: HashMap<usize, Event>,
    pub modules: HashMap<usize, Vec<u8>>,
    /// By the module's handle.
    pub functions: HashMap<usize, (usize, String)>,
    pub graphs: HashMap<usize, Vec<Node>>,
    pub runnable: HashMap<usize, Vec<Node>>,
    pub products: HashMap<usize, blas::Handle>,
    pub networks: HashMap<usize, dnn::Handle>,
    pub descriptors: HashMap<usize, dnn::Descriptor>,
    pub programs: HashMap<usize, String>,
    next: usize,
    /// Pieces of work that ran.
    pub worked: u64,
    /// How often the context is held.
    pub held: usize,
    pub lost: Option<c_int>,
}

/// The device, locked.
pub fn lock() -> MutexGuard<'static, Gpu> {
    static GPU: OnceLock<Mutex<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| {
        report_at_exit();
        Mutex::new(Gpu::new(Settings::from_env()))
    });
    gpu.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    fn new(settings: Settings) -> Gpu {
        let memory = if settings.dry { Blocks::untouched() } else { Blocks::default() };
        Gpu {
            settings,
            made: 0,
            names: Vec::new(),
            counts: Counts::default(),
            memory,
            pinned: BTreeMap::new(),
            kernels: lgm_cuda::sim::kernels(),
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            runnable: HashMap::new(),
            products: HashMap::new(),
            networks: HashMap::new(),
            descriptors: HashMap::new(),
            programs: HashMap::new(),
            next: 0,
            worked: 0,
            held: 0,
            lost: None,
        }
    }

    /// A handle that was never given.
    pub fn handle(&mut self) -> usize {
        self.next += 1;
        // Nobody's address, so that who follows it is stopped.
        self.next << 4
    }

    /// Tells a mistake.
    pub fn violation(&mut self, what: &str) {
        self.counts.violations += 1;
        eprintln!("fake GPU: VIOLATION: {what}");
    }

    pub fn count_call(&mut self, name: &'static str) {
        self.made += 1;
        self.names.push(name);
        if self.settings.trace {
            eprintln!("fake GPU: call {}: {name}", self.made);
        }
    }

    pub fn counted(&mut self) -> &mut Counts {
        &mut self.counts
    }

    pub fn counts(&self) -> Counts {
        let blocks = (self.memory.count() + self.pinned.len()) as u64;
        let lists = [
            self.streams.len(),
            self.events.len(),
            self.modules.len(),
            self.graphs.len(),
            self.runnable.len(),
            self.products.len(),
            self.networks.len(),
            self.descriptors.len(),
        ];
        Counts { calls: self.made, blocks, objects: lists.iter().sum::<usize>() as u64, ..self.counts }
    }

    /// Counts from nothing again; a lost device is well.
    pub fn set_back(&mut self) {
        self.made = 0;
        self.names.clear();
        self.counts = Counts::default();
        self.lost = None;
    }

    /// Bytes of memory: free, and all.
    pub fn room(&self) -> (u64, u64) {
        let all = self.settings.memory.unwrap_or(MEMORY);
        (all.saturating_sub(self.memory.used()), all)
    }

    /// Whether the allocation that is asked for now is to find no room.
    fn is_refused_memory(&mut self) -> bool {
        self.counts.allocations += 1;
        self.settings.oom == Some(self.counts.allocations)
    }

    pub fn alloc(&mut self, bytes: usize) -> Result<u64, Refusal> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        if self.is_refused_memory() || bytes as u64 > self.room().0 {
            return Err(OUT_OF_MEMORY);
        }
        let at = self.memory.alloc(bytes).map_err(|_| OUT_OF_MEMORY)?;
        self.counts.peak = self.counts.peak.max(self.memory.used());
        Ok(at.0)
    }

    pub fn free(&mut self, at: u64) -> Result<(), Refusal> {
        // As on a device, what is queued is done first.
        self.run_all();
        self.memory.free(DevicePtr(at)).map_err(|error| {
            self.violation(&format!("cuMemFree: {error}"));
            INVALID_VALUE
        })
    }

    pub fn alloc_pinned(&mut self, bytes: usize) -> Result<usize, Refusal> {
        if self.is_refused_memory() {
            return Err(OUT_OF_MEMORY);
        }
        let layout = Layout::from_size_align(bytes.max(1), 4096).map_err(|_| OUT_OF_MEMORY)?;
        // SAFETY: the layout has a size.
        let at = unsafe { std::alloc::alloc(layout) };
        if at.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        self.pinned.insert(at as usize, layout);
        Ok(at as usize)
    }

    pub fn free_pinned(&mut self, at: usize) -> Result<(), Refusal> {
        self.run_all();
        let layout = self.pinned.remove(&at).ok_or(INVALID_VALUE)?;
        // SAFETY: allocated so.
        unsafe { std::alloc::dealloc(at as *mut u8, layout) };
        Ok(())
    }

    /// Whether bytes of host memory are pinned.
    pub fn is_pinned(&self, at: usize, bytes: usize) -> bool {
        let block = self.pinned.range(..=at).next_back();
        block.is_some_and(|(start, layout)| at + bytes <= start + layout.size())
    }

    /// The device fails as it does on a bad address, unless these bytes are memory.
    pub fn must_be_memory(&mut self, at: u64, bytes: usize, what: &str) -> bool {
        match self.memory.check(DevicePtr(at), bytes, what) {
            Ok(()) => true,
            Err(error) => {
                self.illegal(&error.to_string());
                false
            }
        }
    }

    /// The device is lost to a bad address.
    pub fn illegal(&mut self, what: &str) {
        eprintln!("fake GPU: illegal address: {what}");
        self.lost.get_or_insert(ILLEGAL_ADDRESS);
    }

    /// Nothing was written beside a block.
    pub fn check_zones(&mut self, culprit: &str) {
        if let Err(error) = self.memory.check_zones(culprit) {
            self.violation(&error.to_string());
        }
    }

    /// The context is given up: what is left of it is told, and gone, as far as it is the driver's.
    pub fn close(&mut self) {
        self.run_all();
        let left = self.counts();
        if self.lost.is_none() && (left.objects > 0 || left.blocks > 0) {
            let kinds = [
                ("blocks of memory", self.memory.count()),
                ("blocks of pinned memory", self.pinned.len()),
                ("streams", self.streams.len()),
                ("events", self.events.len()),
                ("modules", self.modules.len()),
                ("graphs", self.graphs.len() + self.runnable.len()),
                ("handles of cuBLAS", self.products.len()),
                ("handles of cuDNN", self.networks.len()),
                ("descriptors of cuDNN", self.descriptors.len()),
            ];
            let kinds: Vec<String> =
                kinds.iter().filter(|(_, n)| *n > 0).map(|(kind, n)| format!("{n} {kind}")).collect();
            self.violation(&format!("left when the context was given up: {}", kinds.join(", ")));
        }
        self.memory = if self.settings.dry { Blocks::untouched() } else { Blocks::default() };
        self.streams.clear();
        self.events.clear();
        self.modules.clear();
        self.functions.clear();
        self.graphs.clear();
        self.runnable.clear();
        if self.lost.is_some() {
            // Nobody gives back what a lost device held; the process takes it along.
            let pinned: Vec<usize> = self.pinned.keys().copied().collect();
            pinned.into_iter().for_each(|at| {
                let _ = self.free_pinned(at);
            });
            self.products.clear();
            self.networks.clear();
            self.descriptors.clear();
        }
    }
}
