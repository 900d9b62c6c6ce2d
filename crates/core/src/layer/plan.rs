//! What a layer asks for when it plans: tops, parameters, memory, and what may share it.

use lgm_proto::FillerParameter;

use crate::{BlobSpec, DType, Formats, Shape};

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
    /// Never changed by the solver, whatever the prototxt gives it as `lr_mult` and `decay_mult`. For a `state` that is not
    /// fixed, a rate in the prototxt is an error.
    pub fixed: bool,
    /// The layer's own forward may write it in TRAIN, besides the solver (weights brought to unit length).
    pub rescaled: bool,
    /// What a pass leaves for the next of the same net (a recurrent layer's hidden state): set by the layer's own forward, no
    /// other net's, in no file of weights, part of a solver's state. After all other parameters.
    pub carried: bool,
}

impl ParamSpec {
    /// A learned parameter filled by `filler` (constant zero when absent).
    pub fn new(shape: impl Into<Shape>, filler: Option<&FillerParameter>) -> Self {
        ParamSpec {
            shape: shape.into(),
            filler: filler.cloned().unwrap_or_default(),
            state: false,
            fixed: false,
            rescaled: false,
            carried: false,
        }
    }

    /// A learned parameter that starts at `value`.
    pub fn constant(shape: impl Into<Shape>, value: f32) -> Self {
        ParamSpec {
            filler: FillerParameter { value: Some(value), ..Default::default() },
            ..ParamSpec::new(shape, None)
        }
    }

    /// Whether a solver changes it, so that its gradient is wanted.
    pub fn is_learned(&self) -> bool {
        !self.state && !self.fixed
    }

    /// What a pass leaves for the next, zero at first.
    pub fn carried(shape: impl Into<Shape>) -> Self {
        ParamSpec { state: true, carried: true, ..ParamSpec::constant(shape, 0.0) }
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
    /// Tops of indices, labels or targets: what reads them has no gradient to give back (Pooling's mask). Where these are
    /// all tops of a layer without backward, gradients end there, though what it reads is learned.
    pub index_tops: Vec<usize>,
    /// The layer has no backward at all.
    pub no_backward: bool,
    /// The tops are planned with the most rows (first extent) that they can have; how many they have in a pass is
    /// [`HostLayer::rows`](crate::HostLayer::rows) or [`DeviceLayer::rows`](crate::DeviceLayer::rows).
    pub rows_vary: bool,
    /// Tops that count towards the loss unless the prototxt says otherwise: weight 1.
    pub losses: Vec<usize>,
    /// Multiply-adds, times two, of one forward call.
    pub flops: u64,
    /// On a device: how bottoms and tops are stored, as [`DeviceLayer::formats`](crate::DeviceLayer::formats) chose before
    /// [`DeviceLayer::prepare`](crate::DeviceLayer::prepare).
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
