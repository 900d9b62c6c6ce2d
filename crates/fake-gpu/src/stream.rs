//! Streams, events and graphs. What is put on a stream runs when something waits for it, and no sooner.

use std::cell::RefCell;
use std::sync::Arc;

use crate::gpu::Gpu;
use crate::objects::{Event, Item, Node, Recording, Stream};
use crate::status::{INVALID_HANDLE, Refusal};

thread_local! {
    /// The streams that the thread records.
    pub static RECORDS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, _UNMATCHED and _ISOLATION
const SPOILED: Refusal = 901;
const UNMATCHED: Refusal = 903;
const ILLEGAL_STATE: Refusal = 401;

impl Gpu {
    pub fn stream(&mut self, stream: usize, call: &str) -> Result<&mut Stream<Gpu>, Refusal> {
        if !self.streams.contains_key(&stream) {
            let what = if stream == 0 { "the legacy stream" } else { "a stream that is not there" };
            self.violation(&format!("{call} on {what}"));
        }
        self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)
    }

    pub fn is_recorded(&self, stream: usize) -> bool {
        self.streams.get(&stream).is_some_and(|stream| stream.recording.is_some())
    }

    /// A stream's recording can no more become a graph.
    pub fn spoil(&mut self, stream: usize) {
        if let Some(recording) = self.streams.get_mut(&stream).and_then(|stream| stream.recording.as_mut()) {
            recording.spoiled = true;
        }
    }

    /// Puts work on a stream, or in what is recorded of it.
    pub fn put(
        &mut self,
        stream: usize,
        name: &str,
        work: impl Fn(&mut Gpu) + Send + Sync + 'static,
    ) -> Result<(), Refusal> {
        let node = Node { name: name.to_string(), work: Arc::new(work) };
        let this = std::thread::current().id();
        let target = self.stream(stream, name)?;
        let Some(recording) = &mut target.recording else {
            target.push(Item::Work(node));
            return Ok(());
        };
        recording.nodes.push(node);
        if recording.thread != this {
            recording.spoiled = true;
            self.violation(&format!("{name} on a stream that another thread records"));
        }
        Ok(())
    }

    /// Runs a stream until so many of its items are done.
    pub fn run(&mut self, stream: usize, until: u64) {
        loop {
            let Some(target) = self.streams.get_mut(&stream).filter(|target| target.done < until) else { return };
            let Some(item) = target.items.pop_front() else { return };
            target.done += 1;
            let done = target.done;
            match item {
                Item::Work(node) if self.lost.is_none() => {
                    self.worked += 1;
                    (node.work)(self);
                }
                Item::Work(_) => {}
                Item::Wait { stream, until } => self.run(stream, until),
                Item::Mark(event) => {
                    let worked = self.worked;
                    if let Some(event) = self.events.get_mut(&event).filter(|event| event.at == Some((stream, done))) {
                        event.reached = Some(worked);
                    }
                }
            }
        }
    }

    pub fn run_all(&mut self) {
        let streams: Vec<usize> = self.streams.keys().copied().collect();
        streams.into_iter().for_each(|stream| self.run(stream, u64::MAX));
    }

    pub fn wait_for_stream(&mut self, stream: usize) -> Result<(), Refusal> {
        self.stream(stream, "cuStreamSynchronize")?;
        if self.is_recorded(stream) {
            self.violation("cuStreamSynchronize of a stream that is recorded");
            self.spoil(stream);
            return Err(SPOILED);
        }
        self.counted().waits += 1;
        self.run(stream, u64::MAX);
        Ok(())
    }

    pub fn event(&mut self, event: usize, call: &str) -> Result<&mut Event, Refusal> {
        if !self.events.contains_key(&event) {
            self.violation(&format!("{call} of an event that is not there"));
        }
        self.events.get_mut(&event).ok_or(INVALID_HANDLE)
    }

    pub fn record_event(&mut self, event: usize, stream: usize) -> Result<(), Refusal> {
        self.event(event, "cuEventRecord")?;
        if self.is_recorded(stream) {
            self.violation("cuEventRecord on a stream that is recorded");
            self.spoil(stream);
            return Err(SPOILED);
        }
        let target = self.stream(stream, "cuEventRecord")?;
        target.push(Item::Mark(event));
        let at = (stream, target.put);
        let event = self.event(event, "cuEventRecord")?;
        (event.at, event.reached) = (Some(at), None);
        Ok(())
    }

    /// Has a stream wait for an event.
    pub fn wait_on_stream(&mut self, stream: usize, event: usize) -> Result<(), Refusal> {
        let at = self.event(event, "cuStreamWaitEvent")?.at;
        if self.is_recorded(stream) {
            self.violation("cuStreamWaitEvent, for work that is not recorded, on a stream that is");
            self.spoil(stream);
            return Err(SPOILED);
        }
        let target = self.stream(stream, "cuStreamWaitEvent")?;
        if let Some((stream, until)) = at {
            target.push(Item::Wait { stream, until });
        }
        Ok(())
    }

    /// Whether what was marked is done; `run` has it done.
    pub fn is_reached(&mut self, event: usize, call: &str, run: bool) -> Result<bool, Refusal> {
        let at = self.event(event, call)?.at;
        let Some((stream, until)) = at else { return Ok(true) };
        let reached = self.streams.get(&stream).is_none_or(|target| target.done >= until);
        if run {
            self.counted().waits += 1;
            self.run(stream, until);
        }
        Ok(reached)
    }

    pub fn begin_recording(&mut self, stream: usize) -> Result<(), Refusal> {
        let target = self.stream(stream, "cuStreamBeginCapture")?;
        if target.recording.is_some() {
            return Err(ILLEGAL_STATE);
        }
        let thread = std::thread::current().id();
        target.recording = Some(Recording { thread, nodes: Vec::new(), spoiled: false });
        RECORDS.with_borrow_mut(|streams| streams.push(stream));
        Ok(())
    }

    /// What was recorded.
    pub fn end_recording(&mut self, stream: usize) -> Result<usize, Refusal> {
        let recording = self.stream(stream, "cuStreamEndCapture")?.recording.take().ok_or(ILLEGAL_STATE)?;
        if recording.thread != std::thread::current().id() {
            self.violation("cuStreamEndCapture by another thread than began");
            return Err(UNMATCHED);
        }
        RECORDS.with_borrow_mut(|streams| streams.retain(|other| *other != stream));
        if recording.spoiled {
            return Err(SPOILED);
        }
        let graph = self.handle();
        self.counted().nodes = recording.nodes.len() as u64;
        if self.settings.stats || self.settings.trace {
            eprintln!("fake GPU: a graph of {} nodes", recording.nodes.len());
        }
        if self.settings.trace {
            recording.nodes.iter().for_each(|node| eprintln!("fake GPU: node {}", node.name));
        }
        self.graphs.insert(graph, recording.nodes);
        Ok(graph)
    }

    pub fn replay(&mut self, graph: usize, stream: usize) -> Result<(), Refusal> {
        let nodes = self.runnable.get(&graph).cloned().ok_or(INVALID_HANDLE)?;
        if self.is_recorded(stream) {
            self.violation("cuGraphLaunch on a stream that is recorded");
            self.spoil(stream);
            return Err(SPOILED);
        }
        let target = self.stream(stream, "cuGraphLaunch")?;
        nodes.into_iter().for_each(|node| target.push(Item::Work(node)));
        self.counted().replays += 1;
        Ok(())
    }
}
