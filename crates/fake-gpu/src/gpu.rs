//! The state that all libraries share: memory, objects, counts, and whether the device is lost. What is done with it is in the
//! modules above.

use std::alloc::Layout;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;

use lgm_cuda::sim::{Blocks, Kernels};

use crate::counts::Counts;
use crate::objects::{BlasHandle, Descriptor, DnnHandle, Event, Node, Stream};
use crate::settings::Settings;

/// The one device.
pub struct Gpu {
    pub settings: Settings,
    /// Calls that were counted.
    pub made: u64,
    /// Their names.
    pub names: Vec<&'static str>,
    pub counts: Counts,
    pub memory: Blocks,
    pub pinned: BTreeMap<usize, Layout>,
    pub kernels: lgm_core::Result<&'static Kernels>,
    pub streams: HashMap<usize, Stream<Gpu>>,
    pub events: HashMap<usize, Event>,
    pub modules: HashMap<usize, Vec<u8>>,
    /// By the module's handle.
    pub functions: HashMap<usize, (usize, String)>,
    pub graphs: HashMap<usize, Vec<Node<Gpu>>>,
    pub runnable: HashMap<usize, Vec<Node<Gpu>>>,
    pub products: HashMap<usize, BlasHandle>,
    pub networks: HashMap<usize, DnnHandle>,
    pub descriptors: HashMap<usize, Descriptor>,
    pub programs: HashMap<usize, String>,
    next: usize,
    /// Pieces of work that ran.
    pub worked: u64,
    /// How often the context is held.
    pub held: usize,
    pub lost: Option<c_int>,
}

impl Gpu {
    pub fn new(settings: Settings) -> Gpu {
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
}
