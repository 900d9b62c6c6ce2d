//! What a test case is.

use lgm_core::rng::Sequence;
use lgm_core::{Phase, Shape};

use crate::npz::Recorded;

/// How a case's numbers come about.
#[derive(Clone, Debug)]
pub enum Fill {
    /// Normal, with mean and standard deviation.
    Normal(f64, f64),
    /// Uniform between two bounds.
    Uniform(f64, f64),
    /// Whole numbers from 0 up to, and without, the bound.
    Labels(usize),
    /// These.
    Given(Vec<f64>),
}

impl Fill {
    pub(crate) fn values(&self, n: usize, rng: &mut Sequence) -> Vec<f64> {
        match self {
            Fill::Normal(mean, std) => (0..n).map(|_| rng.gaussian(*mean, *std)).collect(),
            Fill::Uniform(lo, hi) => (0..n).map(|_| rng.uniform(*lo, *hi)).collect(),
            Fill::Labels(classes) => (0..n).map(|_| rng.below(*classes) as f64).collect(),
            Fill::Given(values) => values.clone(),
        }
    }
}

/// A layer with its inputs, and how to check it.
#[derive(Clone, Debug)]
pub struct Case {
    pub(crate) layer: String,
    pub(crate) phase: Phase,
    pub(crate) bottoms: Vec<(Shape, Fill)>,
    pub(crate) params: Vec<Option<Fill>>,
    pub(crate) recorded: Option<Recorded>,
    pub(crate) name: String,
    pub(crate) kinks: Vec<(usize, f64, f64)>,
    pub(crate) flat_tops: Vec<usize>,
    pub(crate) step: f64,
    pub(crate) tolerance: f64,
    pub(crate) gradients: bool,
}

impl Case {
    /// A layer as prototxt, in TRAIN, without bottoms as yet.
    pub fn new(layer: impl Into<String>) -> Case {
        let layer = layer.into();
        Case {
            name: layer.clone(),
            layer,
            phase: Phase::Train,
            bottoms: Vec::new(),
            params: Vec::new(),
            recorded: None,
            kinks: Vec::new(),
            flat_tops: Vec::new(),
            step: 1e-4,
            tolerance: 1e-6,
            gradients: true,
        }
    }

    /// A case recorded from Caffe, `layers/pool_0`.
    ///
    /// # Panics
    /// When the recorded file is absent or damaged.
    pub fn golden(name: &str) -> Case {
        let recorded = Recorded::golden(name);
        let text = recorded.text("layer").unwrap_or_else(|| panic!("{name}: no layer is recorded"));
        let text = &recorded.with_files(text);
        let layer = crate::parse_layer(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let bottoms = layer.bottom.iter().map(|b| {
            let (shape, values) = recorded.array(b).unwrap_or_else(|| panic!("{name}: bottom {b} is not recorded"));
            (shape.clone(), Fill::Given(values.to_vec()))
        });
        let params = (0..).map_while(|i| recorded.array(&format!("param_{i}")));
        Case {
            name: name.into(),
            bottoms: bottoms.collect(),
            params: params.map(|(_, v)| Some(Fill::Given(v.to_vec()))).collect(),
            phase: if recorded.text("phase") == Some("TEST") { Phase::Test } else { Phase::Train },
            recorded: Some(recorded.clone()),
            ..Case::new(text)
        }
    }

    /// One more bottom, of standard normal numbers.
    pub fn bottom(self, shape: impl Into<Shape>) -> Case {
        self.bottom_of(shape, Fill::Normal(0.0, 1.0))
    }

    /// One more bottom.
    pub fn bottom_of(mut self, shape: impl Into<Shape>, draw: Fill) -> Case {
        self.bottoms.push((shape.into(), draw));
        self
    }

    /// Parameter `i` is drawn so; one not mentioned starts from its filler, each element moved by up to 0.3 (state is
    /// left as filled).
    pub fn param(mut self, i: usize, draw: Fill) -> Case {
        self.params.resize(self.params.len().max(i + 1), None);
        self.params[i] = Some(draw);
        self
    }

    /// Runs in TEST.
    pub fn test_phase(self) -> Case {
        Case { phase: Phase::Test, ..self }
    }

    /// Elements of bottom `bottom` within `range` of `at` are left out of the finite differences.
    pub fn kink(mut self, bottom: usize, at: f64, range: f64) -> Case {
        self.kinks.push((bottom, at, range));
        self
    }

    /// Top `top` passes no gradient down (a mask, an accuracy).
    pub fn flat_top(mut self, top: usize) -> Case {
        self.flat_tops.push(top);
        self
    }

    /// Step of the finite differences and the largest relative difference allowed (1e-4 and 1e-6 unless told).
    pub fn precision(self, step: f64, tolerance: f64) -> Case {
        Case { step, tolerance, ..self }
    }

    /// No finite differences: the layer's backward is not the gradient of its forward, on purpose.
    pub fn without_gradients(self) -> Case {
        Case { gradients: false, ..self }
    }
}
