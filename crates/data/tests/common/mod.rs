//! What the tests of the sources share: running one, and comparing runs.

#![allow(dead_code)]

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};

use lgm_core::{BlobSpec, BuildCx, DType, Node, Phase, Registry, Result, Shape, Source, State, Step, ViewMut};
use lgm_proto::LayerParameter;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// An opened source and its tops' shapes.
pub struct Running {
    pub source: Box<dyn Source>,
    pub shapes: Vec<Shape>,
}

pub fn cx(phase: Phase, seed: u64) -> BuildCx {
    BuildCx { phase, dtype: DType::F32, seed }
}

/// Builds a layer by its type, as a net does, and opens it.
pub fn open(layer: &LayerParameter, cx: &BuildCx) -> Result<Running> {
    listen();
    let mut registry = Registry::default();
    lgm_data::register(&mut registry);
    match registry.build(layer, cx)? {
        Node::Source(source) => start(source, layer.top.len()),
        _ => panic!("{} is not a source", layer.r#type()),
    }
}

/// What any thread warned of since [`listen`].
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Listener;

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Listener {
    fn enabled(&self, about: &Metadata<'_>) -> bool {
        *about.level() <= Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        WARNINGS.lock().unwrap().push(text.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Keeps warnings from now on; before anything is done, so that no event is met without it.
pub fn listen() {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| tracing::subscriber::set_global_default(Listener).unwrap());
}

/// The warnings that name something, a folder of one test say; they are given once.
pub fn warned(of: &str) -> Vec<String> {
    WARNINGS.lock().unwrap().extract_if(.., |text| text.contains(of)).collect()
}

/// Restores a changed state, which is none of the data's, and checks that the run begins anew, with one warning that names
/// the layer and says `why`; before anything was loaded, and after.
pub fn begins_anew(make: &dyn Fn() -> Running, layer: &str, change: &dyn Fn(&mut State), why: &str) {
    listen();
    let want = [make().next(), make().next()];
    assert!(want[0] == want[1], "every run begins alike");
    for loaded in [0, 2] {
        let mut run = make();
        (0..loaded).for_each(|_| drop(run.next()));
        let mut state = run.source.state();
        change(&mut state);
        warned(why);
        run.source.restore(&state).unwrap();
        assert!(run.next() == want[0], "{why}");
        let told = warned(why);
        assert!(told.len() == 1 && told[0].starts_with(&format!("{layer}: ")), "expected '{why}': {told:?}");
        assert!(told[0].contains("begin at the first record"), "{told:?}");
    }
}

pub fn start(mut source: Box<dyn Source>, tops: usize) -> Result<Running> {
    let shapes = source.open(tops)?;
    Ok(Running { source, shapes })
}

/// The text of the error that opening, or loading the first batches, gives.
pub fn error(layer: &LayerParameter, cx: &BuildCx) -> String {
    let result = open(layer, cx).and_then(|mut run| (0..8).try_for_each(|_| run.try_next().map(drop)));
    result.expect_err("expected an error").to_string()
}

impl Running {
    pub fn try_next(&mut self) -> Result<Vec<Vec<f32>>> {
        let specs: Vec<BlobSpec> = self.shapes.iter().map(|s| BlobSpec::new(s.clone(), DType::F32)).collect();
        let mut tops: Vec<Vec<f32>> = specs.iter().map(|s| vec![f32::NAN; s.shape.count()]).collect();
        let mut views: Vec<ViewMut<'_, _>> =
            tops.iter_mut().zip(&specs).map(|(t, s)| ViewMut::of_slice(t, s).unwrap()).collect();
        self.source.load(&Step { seed: 0, iter: 0, batch: 0 }, &mut views)?;
        Ok(tops)
    }

    pub fn next(&mut self) -> Vec<Vec<f32>> {
        self.try_next().unwrap()
    }

    /// One top of the next batches, joined.
    pub fn collect(&mut self, top: usize, batches: usize) -> Vec<f32> {
        (0..batches).flat_map(|_| self.next().swap_remove(top)).collect()
    }
}

/// Runs to each of several batches, saves the state there, and checks that a fresh source restored from it goes on with
/// the same bits.
pub fn resumes_exactly(make: &dyn Fn() -> Running, batches: usize) {
    let mut whole = make();
    let states: Vec<State> = (0..batches)
        .map(|_| {
            let state = whole.source.state();
            whole.next();
            state
        })
        .collect();
    let mut again = make();
    let expected: Vec<_> = (0..batches).map(|_| again.next()).collect();
    for at in [0, 1, batches / 2, batches - 2] {
        let mut resumed = make();
        if at % 2 == 1 {
            // Also from a source that has run and read ahead already.
            resumed.next();
        }
        resumed.source.restore(&states[at]).unwrap();
        assert_eq!(resumed.source.state(), states[at]);
        for (i, want) in expected.iter().enumerate().skip(at) {
            assert_eq!(&resumed.next(), want, "batch {i} of a run resumed at {at}");
        }
    }
}

/// A JPEG of 37 x 53 pixels.
pub fn jpeg() -> Vec<u8> {
    let recorded = lgm_testkit::Recorded::golden("images/opencv");
    recorded.array("file_444.jpg").unwrap().1.iter().map(|&byte| byte as u8).collect()
}

/// A folder of recorded values.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}
