//! What a layer is: a device-free half that plans shapes and memory ([`Layer`]), and a compute half for each memory
//! space ([`Run`]).
//!
//! A layer plans once, when the net is built, and says everything it needs: its tops, parameters, what it keeps for
//! backward, scratch, and which blobs backward reads. Running it then allocates nothing, synchronises nothing and reads
//! nothing back, so an iteration can be laid out in one arena and captured as one graph.

use lgm_proto::{FillerParameter, LayerParameter, Phase};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::space::{Host, HostQueue, Space, View, ViewMut};
use crate::{
    BlobSpec, DType, Device, Error, Fault, Float, Formats, Offer, PreparedConvolution, Result, Shape, with_float,
};

/// When a layer runs: everything a computation may depend on besides its blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The run's random seed.
    pub seed: u64,
    /// The solver's iteration, from 0.
    pub iter: u64,
    /// Forward passes this net has made before: in training, `iter * iter_size` + the sub-batch. Keys random draws.
    pub batch: u64,
}

/// What a layer is built from besides its own parameters.
#[derive(Clone, Copy, Debug)]
pub struct BuildCx {
    /// The phase the layer runs in: its own `phase` field if given, else the net's.
    pub phase: Phase,
    /// The element type of the net's blobs.
    pub dtype: DType,
    /// The run's random seed.
    pub seed: u64,
}

/// How many bottoms and tops a layer takes.
#[derive(Clone, Debug)]
pub struct Arity {
    /// Allowed number of bottoms.
    pub bottoms: RangeInclusive<usize>,
    /// Allowed number of tops.
    pub tops: RangeInclusive<usize>,
    /// There must be as many tops as bottoms.
    pub equal: bool,
    /// Missing tops, up to the least number allowed, are made up by the net (losses need no named top).
    pub auto_tops: bool,
}

impl Arity {
    /// Exactly so many bottoms and tops.
    pub fn exactly(bottoms: usize, tops: usize) -> Self {
        Arity::range(bottoms..=bottoms, tops..=tops)
    }

    /// Bottoms and tops within ranges.
    pub fn range(bottoms: RangeInclusive<usize>, tops: RangeInclusive<usize>) -> Self {
        Arity { bottoms, tops, equal: false, auto_tops: false }
    }

    /// The same, with missing tops made up by the net.
    pub fn with_auto_tops(self) -> Self {
        Arity { auto_tops: true, ..self }
    }

    /// One or more bottoms, each with its own top.
    pub fn pairs() -> Self {
        Arity { equal: true, ..Arity::range(1..=usize::MAX, 1..=usize::MAX) }
    }
}

/// A parameter a layer wants.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Extents; the element type is the net's.
    pub shape: Shape,
    /// How it starts.
    pub filler: FillerParameter,
    /// Set by the layer's own forward, never by the solver: its learning rate and decay are zero (BatchNorm's
    /// statistics).
    pub state: bool,
    /// Never changed at all: the solver leaves it as it was filled or loaded, whatever the prototxt gives it as `lr_mult`
    /// and `decay_mult`.
    pub fixed: bool,
}

impl ParamSpec {
    /// A learned parameter filled by `filler` (constant zero when absent).
    pub fn new(shape: impl Into<Shape>, filler: Option<&FillerParameter>) -> Self {
        ParamSpec { shape: shape.into(), filler: filler.cloned().unwrap_or_default(), state: false, fixed: false }
    }

    /// A learned parameter that starts at `value`.
    pub fn constant(shape: impl Into<Shape>, value: f32) -> Self {
        let filler = FillerParameter { value: Some(value), ..Default::default() };
        ParamSpec { shape: shape.into(), filler, state: false, fixed: false }
    }
}

/// How a top may share its bottom's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The top is the bottom's data unchanged (Reshape, Flatten, Split): when shared, both are absent from forward and
    /// there is nothing to write.
    View,
    /// Forward can overwrite the bottom with the top.
    InPlace,
}

/// What a layer needs, given its bottoms' shapes. Start from [`Plan::new`] and set what differs.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The tops' specs.
    pub tops: Vec<BlobSpec>,
    /// Parameters, in the order of the prototxt's `param` entries and of saved weights.
    pub params: Vec<ParamSpec>,
    /// Memory that forward writes and backward reads.
    pub saved: Vec<BlobSpec>,
    /// Memory used within one forward or one backward call.
    pub scratch: Vec<BlobSpec>,
    /// (top, bottom) pairs that may share data memory, and how. The bottom is then absent from forward's inputs.
    pub share_data: Vec<(usize, usize, Sharing)>,
    /// (top, bottom) pairs whose diffs may share memory. The top's diff is then absent from backward's inputs and the
    /// bottom's diff holds it on entry.
    pub share_diff: Vec<(usize, usize)>,
    /// Bottoms whose data backward reads.
    pub backward_bottoms: Vec<usize>,
    /// Tops whose data backward reads.
    pub backward_tops: Vec<usize>,
    /// Bottoms that no gradient can flow to (labels).
    pub no_gradient: Vec<usize>,
    /// The layer has no backward at all.
    pub no_backward: bool,
    /// Tops that count towards the loss unless the prototxt says otherwise: weight 1.
    pub losses: Vec<usize>,
    /// Multiply-adds, times two, of one forward call.
    pub flops: u64,
    /// On a device: how bottoms and tops are stored, as [`Run::formats`] chose before [`Run::prepare`].
    pub formats: Formats,
}

impl Plan {
    /// A plan with the given tops and nothing else.
    pub fn new(tops: Vec<BlobSpec>) -> Self {
        Plan { tops, ..Default::default() }
    }

    /// The plan of an element-wise layer: one top like the bottom, in place if the net wants, both ways.
    pub fn elementwise(bottom: &BlobSpec) -> Self {
        Plan {
            tops: vec![bottom.clone()],
            share_data: vec![(0, 0, Sharing::InPlace)],
            share_diff: vec![(0, 0)],
            ..Default::default()
        }
    }

    /// The plan of a loss: one scalar top of weight 1, no gradient to the second bottom.
    pub fn loss(dtype: DType) -> Self {
        let tops = vec![BlobSpec::new(Shape::scalar(), dtype)];
        Plan { tops, no_gradient: vec![1], losses: vec![0], ..Default::default() }
    }
}

/// Small named numbers that a snapshot must keep so that a resumed run equals one that never stopped: a data position,
/// the value a schedule has reached. Integers up to 2^53 are exact.
pub type State = BTreeMap<String, f64>;

/// The device-free half of a layer.
pub trait Layer: Send {
    /// How many bottoms and tops the layer takes.
    fn arity(&self) -> Arity;

    /// Works out shapes and memory. Called once, before anything runs; `tops` is the number of tops asked for.
    ///
    /// # Errors
    /// When the bottoms do not suit the layer's parameters.
    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan>;

    /// Asked once, before [`Run::prepare`], of a layer whose only top goes to a ReLU and nowhere
    /// else. `true` is the promise that from now on forward, in every space, writes max(y, 0) where it wrote y, at no more
    /// than the ReLU's cost. Backward stays as it is: the top's diff is still that by y.
    fn rectify(&mut self) -> bool {
        false
    }

    /// Called once before each training iteration (not each sub-batch) of a TRAIN net; schedules advance here. `iter`
    /// counts from 0. Returns what to log.
    fn begin_iteration(&mut self, _iter: u64) -> Vec<String> {
        Vec::new()
    }

    /// What a snapshot must keep of this layer besides its parameters.
    fn state(&self) -> State {
        State::new()
    }

    /// Takes up a state written by [`Layer::state`].
    ///
    /// # Errors
    /// When the state is not this layer's.
    fn restore(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }

    /// The layer's device half, if it has one: `Some(self)`. A layer without runs on the host between two copies.
    fn device(&self) -> Option<&dyn Run<Device>> {
        None
    }

    /// As [`Layer::device`], for [`Run::prepare`].
    fn device_mut(&mut self) -> Option<&mut dyn Run<Device>> {
        None
    }

    /// The numbers, always as many, that schedules change from one iteration to the next; a device run finds them at
    /// [`Fwd::dynamic`]. Asked for after [`Layer::begin_iteration`].
    fn dynamic(&self) -> Vec<f32> {
        Vec::new()
    }

    /// What a device run's fault record means; the first word is not zero.
    fn explain(&self, fault: Fault) -> Error {
        Error::internal(format!("a kernel reported the fault {fault:?}"))
    }
}

/// The compute half of a layer in one memory space.
pub trait Run<S: Space>: Layer {
    /// The formats in which this space's run takes the bottoms and gives the tops. Asked for after [`Layer::plan`],
    /// perhaps more than once; what comes otherwise is converted. On the host there is one format.
    fn formats(&self, _offer: &Offer<'_>) -> Formats {
        Formats::default()
    }

    /// Called once after [`Layer::plan`] and before memory is laid out, with that plan: changes what this space needs
    /// otherwise (saved memory, scratch, what backward reads). On the host a plan stands as it is.
    ///
    /// # Errors
    /// When the space cannot run the layer.
    fn prepare(&mut self, _queue: &S::Queue, _plan: &mut Plan) -> Result<()> {
        Ok(())
    }

    /// The convolutions that its passes make for each bottom, as [`Run::prepare`] settled them.
    fn convolutions(&self) -> Vec<PreparedConvolution> {
        Vec::new()
    }

    /// Computes the tops from the bottoms and the parameters.
    ///
    /// # Errors
    /// When the bottoms hold values the layer cannot take (a label outside its classes, say).
    fn forward(&self, queue: &S::Queue, io: Fwd<'_, S>) -> Result<()>;

    /// Computes the bottoms' diffs (overwriting them) and adds to the parameters' diffs.
    ///
    /// # Errors
    /// As for forward.
    fn backward(&self, queue: &S::Queue, io: Bwd<'_, S>) -> Result<()>;
}

/// The host compute half, written once for every host element type. Gives [`Run`]`<`[`Host`]`>`.
pub trait HostRun: Layer {
    /// See [`Run::forward`].
    ///
    /// # Errors
    /// See [`Run::forward`].
    fn forward<T: Float>(&self, io: Fwd<'_, Host>) -> Result<()>;

    /// See [`Run::backward`]. Layers that set [`Plan::no_backward`] leave this out.
    ///
    /// # Errors
    /// See [`Run::backward`].
    fn backward<T: Float>(&self, _io: Bwd<'_, Host>) -> Result<()> {
        Err(Error::internal("this layer has no backward pass"))
    }
}

impl<L: HostRun> Run<Host> for L {
    fn forward(&self, _queue: &HostQueue, io: Fwd<'_, Host>) -> Result<()> {
        with_float!(io.dtype, T => HostRun::forward::<T>(self, io))
    }

    fn backward(&self, _queue: &HostQueue, io: Bwd<'_, Host>) -> Result<()> {
        with_float!(io.dtype, T => HostRun::backward::<T>(self, io))
    }
}

/// A list of optional read-only windows.
pub type Views<'a, S> = SmallVec<[Option<View<'a, S>>; 4]>;
/// A list of optional exclusive windows; taking one out leaves `None`.
pub type ViewsMut<'a, S> = SmallVec<[Option<ViewMut<'a, S>>; 4]>;

/// The inputs and outputs of a forward call.
///
/// The typed accessors of a host call hand out slices that live as long as the call; each exclusive one can be taken
/// once.
pub struct Fwd<'a, S: Space> {
    /// When this is.
    pub step: &'a Step,
    /// The element type of every blob here.
    pub dtype: DType,
    /// On a device: how bottoms and tops, and their diffs, are stored.
    pub formats: &'a Formats,
    /// Input data. `None`: the bottom shares memory with a top, which holds its data on entry.
    pub bottoms: Views<'a, S>,
    /// Output data. `None`: the top is a view of a bottom ([`Sharing::View`]) and there is nothing to write.
    pub tops: ViewsMut<'a, S>,
    /// Parameters; only those planned as state may be written.
    pub params: ViewsMut<'a, S>,
    /// Memory for backward. Absent (`None`) in a net that runs no backward.
    pub saved: ViewsMut<'a, S>,
    /// Scratch, uninitialised in effect.
    pub scratch: ViewsMut<'a, S>,
    /// On a device: the address of six 32-bit words that tell when this is, as [`Step`] does: seed, iteration and batch,
    /// the low word of each first. What a layer draws must be keyed by these, not by `step`, since work may be replayed.
    pub clock: Option<S::Addr>,
    /// On a device: the address of the layer's [`Layer::dynamic`] numbers.
    pub dynamic: Option<S::Addr>,
    /// On a device: the address of the layer's fault record, four words, to be written when the first is zero.
    pub fault: Option<S::Addr>,
}

/// The inputs and outputs of a backward call.
pub struct Bwd<'a, S: Space> {
    /// When this is: the same as in the forward call.
    pub step: &'a Step,
    /// The element type of every blob here.
    pub dtype: DType,
    /// On a device: how bottoms and tops, and their diffs, are stored.
    pub formats: &'a Formats,
    /// Input data of those bottoms that the plan says backward reads.
    pub bottoms: Views<'a, S>,
    /// Output data of those tops that the plan says backward reads.
    pub tops: Views<'a, S>,
    /// Gradient of the loss by each top. `None`: it shares memory with a bottom's diff, which holds it on entry.
    pub top_diffs: Views<'a, S>,
    /// Gradient of the loss by each bottom, to be overwritten. `None`: not wanted.
    pub bottom_diffs: ViewsMut<'a, S>,
    /// Parameters.
    pub params: Views<'a, S>,
    /// Gradient of the loss by each parameter, to be added to. `None`: not wanted.
    pub param_diffs: ViewsMut<'a, S>,
    /// What forward left.
    pub saved: Views<'a, S>,
    /// Scratch, uninitialised in effect.
    pub scratch: ViewsMut<'a, S>,
    /// On a device: the address of six 32-bit words that tell when this is, as [`Step`] does: seed, iteration and batch,
    /// the low word of each first. What a layer draws must be keyed by these, not by `step`, since work may be replayed.
    pub clock: Option<S::Addr>,
    /// On a device: the address of the layer's [`Layer::dynamic`] numbers.
    pub dynamic: Option<S::Addr>,
    /// On a device: the address of the layer's fault record, four words, to be written when the first is zero.
    pub fault: Option<S::Addr>,
}

fn need<'a, T: Float>(views: &Views<'a, Host>, i: usize, what: &str) -> Result<&'a [T]> {
    opt(views, i)?.ok_or_else(|| Error::internal(format!("{what} {i} is not among a layer's inputs")))
}

fn opt<'a, T: Float>(views: &Views<'a, Host>, i: usize) -> Result<Option<&'a [T]>> {
    views.get(i).copied().flatten().map(|v| v.slice()).transpose()
}

fn take_opt<'a, T: Float>(views: &mut ViewsMut<'a, Host>, i: usize) -> Result<Option<&'a mut [T]>> {
    views.get_mut(i).and_then(Option::take).map(ViewMut::into_slice).transpose()
}

fn take<'a, T: Float>(views: &mut ViewsMut<'a, Host>, i: usize, what: &str) -> Result<&'a mut [T]> {
    take_opt(views, i)?.ok_or_else(|| Error::internal(format!("{what} {i} is absent or was taken before")))
}

impl<'a> Fwd<'a, Host> {
    /// Data of bottom `i`, which must not share memory with a top.
    ///
    /// # Errors
    /// When it does, or has another element type.
    pub fn bottom<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.bottoms, i, "bottom")
    }

    /// Data of bottom `i`, or `None` when it shares memory with a top.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn bottom_unless_shared<T: Float>(&self, i: usize) -> Result<Option<&'a [T]>> {
        opt(&self.bottoms, i)
    }

    /// Takes the data of top `i`.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn top<T: Float>(&mut self, i: usize) -> Result<&'a mut [T]> {
        take(&mut self.tops, i, "top")
    }

    /// Takes parameter `i` for reading.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn param<T: Float>(&mut self, i: usize) -> Result<&'a [T]> {
        self.param_mut(i).map(|p| &*p)
    }

    /// Takes parameter `i` for writing; for parameters planned as state.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn param_mut<T: Float>(&mut self, i: usize) -> Result<&'a mut [T]> {
        take(&mut self.params, i, "parameter")
    }

    /// Takes saved memory `i`; `None` in a net that runs no backward.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn saved<T: Float>(&mut self, i: usize) -> Result<Option<&'a mut [T]>> {
        take_opt(&mut self.saved, i)
    }

    /// Takes scratch memory `i`.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn scratch<T: Float>(&mut self, i: usize) -> Result<&'a mut [T]> {
        take(&mut self.scratch, i, "scratch")
    }
}

impl<'a> Bwd<'a, Host> {
    /// Data of bottom `i`, planned as read by backward.
    ///
    /// # Errors
    /// When it was not planned so, or has another element type.
    pub fn bottom<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.bottoms, i, "bottom")
    }

    /// Data of top `i`, planned as read by backward.
    ///
    /// # Errors
    /// When it was not planned so, or has another element type.
    pub fn top<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.tops, i, "top")
    }

    /// Diff of top `i`, which must not share memory with a bottom's diff.
    ///
    /// # Errors
    /// When it does, or has another element type.
    pub fn top_diff<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.top_diffs, i, "top diff")
    }

    /// Diff of top `i`, or `None` when it shares memory with a bottom's diff.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn top_diff_unless_shared<T: Float>(&self, i: usize) -> Result<Option<&'a [T]>> {
        opt(&self.top_diffs, i)
    }

    /// Takes the diff of bottom `i`; `None` when nothing asks for it.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn bottom_diff<T: Float>(&mut self, i: usize) -> Result<Option<&'a mut [T]>> {
        take_opt(&mut self.bottom_diffs, i)
    }

    /// Parameter `i`.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn param<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.params, i, "parameter")
    }

    /// Takes the diff of parameter `i`, to be added to; `None` when nothing asks for it.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn param_diff<T: Float>(&mut self, i: usize) -> Result<Option<&'a mut [T]>> {
        take_opt(&mut self.param_diffs, i)
    }

    /// What forward left in saved memory `i`.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn saved<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.saved, i, "saved memory")
    }

    /// Takes scratch memory `i`.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn scratch<T: Float>(&mut self, i: usize) -> Result<&'a mut [T]> {
        take(&mut self.scratch, i, "scratch")
    }
}

/// A layer that brings data in from outside: it has no bottoms and fills its tops on the host, ahead of the pass.
pub trait Source: Send {
    /// Opens the data and gives the tops' shapes; `tops` is the number of tops asked for.
    ///
    /// # Errors
    /// When the data is missing or unsuitable.
    fn open(&mut self, tops: usize) -> Result<Vec<Shape>>;

    /// Fills the tops with the next batch.
    ///
    /// # Errors
    /// When the data cannot be read.
    fn load(&mut self, step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()>;

    /// The position of the next batch.
    fn state(&self) -> State;

    /// Moves to a position given by [`Source::state`].
    ///
    /// # Errors
    /// When the position is not one of this data.
    fn restore(&mut self, state: &State) -> Result<()>;
}

/// A layer that takes data out: it has no tops and reads its bottoms on the host, after the pass.
pub trait Sink: Send {
    /// Checks the bottoms' shapes.
    ///
    /// # Errors
    /// When the bottoms are unsuitable.
    fn open(&mut self, bottoms: &[BlobSpec]) -> Result<()>;

    /// Takes one batch.
    ///
    /// # Errors
    /// When it cannot be written.
    fn store(&mut self, bottoms: &[View<'_, Host>]) -> Result<()>;
}

/// A built layer, by what it does.
pub enum Node {
    /// Computes tops from bottoms.
    Compute(Box<dyn Run<Host>>),
    /// Brings data in.
    Source(Box<dyn Source>),
    /// Takes data out.
    Sink(Box<dyn Sink>),
}

impl Node {
    /// A compute layer.
    pub fn compute(layer: impl Run<Host> + 'static) -> Result<Node> {
        Ok(Node::Compute(Box::new(layer)))
    }
}

/// Builds a layer from its prototxt.
pub type Factory = fn(&LayerParameter, &BuildCx) -> Result<Node>;

/// The layer types that nets can name.
#[derive(Clone, Default)]
pub struct Registry {
    factories: BTreeMap<&'static str, Factory>,
}

impl Registry {
    /// Makes a type known. A type registered twice keeps the later factory.
    pub fn add(&mut self, kind: &'static str, factory: Factory) {
        self.factories.insert(kind, factory);
    }

    /// The types known, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.factories.keys().copied()
    }

    /// Builds a layer.
    ///
    /// # Errors
    /// When the type is unknown (the message names the nearest known one) or its parameters are wrong.
    pub fn build(&self, param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let kind = param.r#type();
        match self.factories.get(kind) {
            Some(factory) => factory(param, cx),
            None => {
                let hint = crate::nearest(kind, self.kinds()).map(|n| format!("; did you mean '{n}'?"));
                let known: Vec<_> = self.kinds().collect();
                Err(Error::config(format!(
                    "unknown layer type '{kind}'{} (known types: {})",
                    hint.unwrap_or_default(),
                    known.join(", ")
                )))
            }
        }
    }
}
