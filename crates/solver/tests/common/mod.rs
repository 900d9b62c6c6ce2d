//! What the tests of the solver share: runs in a folder of their own, and what they log.

#![allow(dead_code)]

use std::cell::RefCell;
use std::fmt::Debug;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Mutex, Once};

use lgm_core::{Registry, Result, Shape, Storage};
use lgm_cuda::Gpu;
use lgm_cuda::sim::Order;
use lgm_data::convert::{Format, convert_mnist};
use lgm_proto::{Parsed, SolverParameter};
use lgm_solver::{Outcome, Solver, Watch};
use tempfile::TempDir;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

pub fn registry() -> Registry {
    lgm_testkit::registry(&[lgm_layers::register, lgm_data::register])
}

thread_local! {
    /// What this thread has logged, while somebody wants to know.
    static LOG: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

thread_local! {
    /// The device that this thread's solvers run on, if on one.
    static GPU: RefCell<Option<Rc<dyn Gpu>>> = const { RefCell::new(None) };
}

/// Runs `body` with solvers on a device, unless there is no C++ compiler.
pub fn on_a_device(body: impl FnOnce()) {
    on_a_device_storing(Storage::default(), body);
}

/// The same on one that would have blobs stored so.
pub fn on_a_device_storing(storage: Storage, body: impl FnOnce()) {
    if let Some(gpu) = lgm_testkit::device(Order::Reversed, None, storage) {
        GPU.set(Some(gpu));
        body();
        GPU.set(None);
    }
}

fn gpu() -> Option<Rc<dyn Gpu>> {
    GPU.with_borrow(Clone::clone)
}

/// A thread that logs this text is held up for as long as it stands here.
pub static HELD: Mutex<Option<String>> = Mutex::new(None);

/// Sends the texts of events to their thread's log.
struct Collect;

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Collect {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("lgm_")
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        while HELD.lock().unwrap().as_ref().is_some_and(|held| text.0 == *held) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        LOG.with_borrow_mut(|log| log.as_mut().map(|log| log.push(text.0)));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Runs `body` and gives what it logged besides what it gave.
pub fn logged<R>(body: impl FnOnce() -> R) -> (R, Vec<String>) {
    LOG.set(Some(Vec::new()));
    let result = body();
    (result, LOG.take().unwrap_or_default())
}

/// A folder with data, in which solvers run.
pub struct Folder(pub TempDir);

impl Folder {
    pub fn new() -> Self {
        // Once for all tests, and before anything is logged: an event first met without a subscriber may stay off.
        static COLLECT: Once = Once::new();
        COLLECT.call_once(|| tracing::subscriber::set_global_default(Collect).unwrap());
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Text of a path in the folder, for a prototxt.
    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.at(name)
    }

    /// A solver's prototxt; `DIR` in it stands for this folder.
    pub fn parse(&self, text: &str) -> Parsed<SolverParameter> {
        let text = text.replace("DIR", self.0.path().to_str().unwrap());
        lgm_proto::parse_solver(text.as_bytes(), &self.path("solver.prototxt")).unwrap()
    }

    pub fn solver(&self, text: &str) -> Result<Solver> {
        Solver::new_on(&self.parse(text), &registry(), gpu().as_ref())
    }

    /// Trains to the end; the solver and the log.
    pub fn train(&self, text: &str) -> (Solver, Vec<String>) {
        logged(|| finish(self.solver(text).unwrap(), &mut ()))
    }

    /// Resumes from a state file and trains to the end.
    pub fn resume(&self, text: &str, state: &str) -> (Solver, Vec<String>) {
        let resume = || Solver::resume_on(&self.parse(text), &registry(), self.path(state), gpu().as_ref());
        logged(|| finish(resume().unwrap(), &mut ()))
    }

    /// The error of building and training.
    pub fn error(&self, text: &str) -> String {
        let result = self.solver(text).and_then(|mut s| s.solve(&mut ()).map(drop));
        result.expect_err("this solver was accepted").to_string()
    }

    /// Files in the folder whose names contain `part`, sorted.
    pub fn files(&self, part: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().to_str().unwrap().to_string());
        let mut names: Vec<_> = names.filter(|n| n.contains(part)).collect();
        names.sort();
        names
    }

    /// An HDF5 file `NAME.h5` of `rows` images of 2 x 6 x 6 and labels 0 to 2, listed by `NAME.txt`.
    pub fn images(&self, name: &str, rows: usize) {
        let pixels: Vec<f32> = (0..rows * 72).map(|i| ((i * 7919 + i / 72 * 31) % 255) as f32 / 255.0 - 0.5).collect();
        let labels: Vec<f32> = (0..rows).map(|i| (i * 5 % 3) as f32).collect();
        let file = self.path(&format!("{name}.h5"));
        let shapes = (Shape::from([rows, 2, 6, 6]), Shape::from([rows]));
        lgm_data::hdf5::write_f32(&file, &[("data", &shapes.0, &pixels), ("label", &shapes.1, &labels)]).unwrap();
        self.write(&format!("{name}.txt"), &format!("{}\n", file.display()));
    }

    /// An LMDB folder of `rows` images of 1 x 3 x 4 and labels 0 to 2.
    pub fn lmdb(&self, name: &str, rows: usize) {
        let idx = |name: &str, magic: u32, extents: &[usize], values: Vec<u8>| {
            let header = [magic].into_iter().chain(extents.iter().map(|&e| e as u32)).flat_map(u32::to_be_bytes);
            std::fs::write(self.path(name), header.chain(values).collect::<Vec<_>>()).unwrap();
            self.path(name)
        };
        let pixels = (0..rows * 12).map(|i| (i * 37 % 251) as u8).collect();
        let images = idx("images.idx", 0x0803, &[rows, 3, 4], pixels);
        let labels = idx("labels.idx", 0x0801, &[rows], (0..rows).map(|i| (i % 3) as u8).collect());
        convert_mnist(images, labels, self.path(name), Format::Lmdb, &mut |_, _| ()).unwrap();
    }
}

pub fn finish(mut solver: Solver, watch: &mut dyn Watch) -> Solver {
    assert_eq!(solver.solve(watch).unwrap(), Outcome::Done);
    solver
}

/// Every layer's parameters, as bits.
pub fn params(solver: &Solver) -> Vec<(String, Vec<Vec<u64>>)> {
    let net = solver.net();
    let bits = |(_, values): (Shape, Vec<f64>)| values.iter().map(|v| v.to_bits()).collect();
    let layer = |name: &str| net.layer_params(name).unwrap().into_iter().map(bits).collect::<Vec<Vec<u64>>>();
    net.layers().map(|(name, _)| (name.to_string(), layer(name))).filter(|(_, p)| !p.is_empty()).collect()
}

/// What a log tells of losses and outputs: without times and file names, and without what comes before iteration
/// `from`.
pub fn results(log: &[String], from: i32) -> Vec<String> {
    let mut iteration = -1;
    let mut kept = Vec::new();
    for line in log {
        if let Some(rest) = line.strip_prefix("Iteration ") {
            iteration = rest.split([' ', ',']).next().unwrap().parse().unwrap();
        }
        let rate = |line: &str| match (line.find(" ("), line.find("), loss")) {
            (Some(a), Some(b)) => format!("{}{}", &line[..a], &line[b + 1..]),
            _ => line.to_string(),
        };
        let tells = ["Iteration ", "    Train net", "    Test net", "Test loss", "mul_margin"];
        if iteration >= from && tells.iter().any(|t| line.starts_with(t)) {
            kept.push(rate(line));
        }
    }
    kept
}
