//! What handles stand for. Work is that of a device `G`.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::Arc;
use std::thread::ThreadId;

use cudarc::cudnn::sys::cudnnMathType_t;
use lgm_core::Format;

/// Work of a stream or of a graph.
pub struct Node<G> {
    pub name: String,
    pub work: Arc<dyn Fn(&mut G) + Send + Sync>,
}

/// What is put on a stream.
pub enum Item<G> {
    Work(Node<G>),
    Mark(usize),
    Wait { stream: usize, until: u64 },
}

impl<G> Clone for Node<G> {
    fn clone(&self) -> Self {
        Node { name: self.name.clone(), work: self.work.clone() }
    }
}

/// A recording under way.
pub struct Recording<G> {
    pub thread: ThreadId,
    pub nodes: Vec<Node<G>>,
    pub spoiled: bool,
}

/// A stream.
pub struct Stream<G> {
    pub items: VecDeque<Item<G>>,
    /// Items put here, and those that have run.
    pub put: u64,
    pub done: u64,
    pub recording: Option<Recording<G>>,
}

impl<G> Default for Stream<G> {
    fn default() -> Self {
        Stream { items: VecDeque::new(), put: 0, done: 0, recording: None }
    }
}

impl<G> Stream<G> {
    pub fn push(&mut self, item: Item<G>) {
        self.items.push_back(item);
        self.put += 1;
    }
}

/// An event.
pub struct Event {
    pub timed: bool,
    /// Where it stands: a stream, and how many of its items lie before and with it.
    pub at: Option<(usize, u64)>,
    /// When it was reached, by how much work the device had done.
    pub reached: Option<u64>,
}

/// What a handle of cuBLAS holds.
#[derive(Clone, Copy, Default)]
pub struct BlasHandle {
    pub stream: usize,
    pub workspace: (u64, usize),
}

/// What a handle of cuDNN holds.
#[derive(Clone, Copy, Default)]
pub struct DnnHandle {
    pub stream: usize,
}

/// What a descriptor of cuDNN holds.
#[derive(Clone, Copy)]
pub enum Descriptor {
    /// Of a tensor or of filters: format and extents.
    Blob(Option<(Format, [c_int; 4])>),
    Convolution {
        pad: [c_int; 2],
        stride: [c_int; 2],
        dilation: [c_int; 2],
        math: cudnnMathType_t,
        groups: c_int,
    },
}
