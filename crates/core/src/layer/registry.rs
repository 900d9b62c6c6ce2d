//! The layer types that nets can name, and what they are built to.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use lgm_proto::{LayerParameter, Phase};

use crate::{DType, DeviceLayer, Error, Format, Result, Run, Sink, Source};

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

/// A built layer, by what it does.
pub enum Node {
    /// Computes tops from bottoms.
    Compute(Compute),
    /// Brings data in.
    Source(Box<dyn Source>),
    /// Takes data out.
    Sink(Box<dyn Sink>),
}

impl Node {
    /// A layer that computes on the host and on a device.
    pub fn compute(layer: impl Everywhere + 'static) -> Result<Node> {
        Ok(Node::Compute(Compute::Everywhere(Box::new(layer))))
    }

    /// A layer without a device half. A net on a device runs it on the host between two copies.
    pub fn host_only(layer: impl Run + 'static) -> Result<Node> {
        Ok(Node::Compute(Compute::HostOnly(Box::new(layer))))
    }
}

/// A layer that has both halves.
pub trait Everywhere: Run + DeviceLayer {}

impl<L: Run + DeviceLayer> Everywhere for L {}

/// A layer that computes; it stands for its host half.
pub enum Compute {
    /// On the host and on a device.
    Everywhere(Box<dyn Everywhere>),
    /// On the host alone.
    HostOnly(Box<dyn Run>),
}

impl Compute {
    /// The device half, if there is one that can run the layer as planned.
    pub fn device(&self) -> Option<&dyn DeviceLayer> {
        match self {
            Compute::Everywhere(layer) if layer.is_supported() => Some(layer.as_ref()),
            _ => None,
        }
    }

    /// The same, for [`DeviceLayer::prepare`].
    pub fn device_mut(&mut self) -> Option<&mut dyn DeviceLayer> {
        match self {
            Compute::Everywhere(layer) if layer.is_supported() => Some(layer.as_mut()),
            _ => None,
        }
    }
}

impl Deref for Compute {
    type Target = dyn Run;

    fn deref(&self) -> &Self::Target {
        match self {
            Compute::Everywhere(layer) => layer.as_ref(),
            Compute::HostOnly(layer) => layer.as_ref(),
        }
    }
}

impl DerefMut for Compute {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Compute::Everywhere(layer) => layer.as_mut(),
            Compute::HostOnly(layer) => layer.as_mut(),
        }
    }
}

/// Builds a layer from its prototxt.
pub type Factory = fn(&LayerParameter, &BuildCx) -> Result<Node>;

/// A rule that computes layers together: given layers that follow one another, the one that computes what the first of them
/// do in fewer passes over memory, and how many of them; `None` where the rule does not hold.
pub type FusionRule = fn(&[&LayerParameter], &BuildCx) -> Result<Option<(Node, usize)>>;

/// A rule for layers that the one before them may apply as it writes its top ([`crate::Layer::fuse_relu`]): what takes
/// the place of such a layer; `None` for any other.
pub type EpilogueRule = fn(&LayerParameter) -> Option<Compute>;

/// A rule for layers of a type that is not built: the layer that is built in the place of one, in a net of the phase; `None`
/// for any other.
pub type StandInRule = fn(&LayerParameter, Phase) -> Result<Option<LayerParameter>>;

/// Makes a conversion of a blob, and of its gradient, from one format to another.
pub type ConversionFactory = fn(Format, Format) -> Result<Node>;

/// The layer types that nets can name, and what they compute together.
#[derive(Clone, Default)]
pub struct Registry {
    factories: BTreeMap<&'static str, Factory>,
    fusions: Vec<FusionRule>,
    epilogues: Vec<EpilogueRule>,
    stand_ins: Vec<StandInRule>,
    conversion: Option<ConversionFactory>,
}

impl Registry {
    /// Makes a type known. A type registered twice keeps the later factory.
    pub fn add(&mut self, kind: &'static str, factory: Factory) {
        self.factories.insert(kind, factory);
    }

    /// Adds a rule that computes layers together.
    pub fn add_fusion(&mut self, rule: FusionRule) {
        self.fusions.push(rule);
    }

    /// Adds a rule for layers that the one before them may apply.
    pub fn add_epilogue(&mut self, rule: EpilogueRule) {
        self.epilogues.push(rule);
    }

    /// Adds a rule for layers that others are built in the place of.
    pub fn add_stand_in(&mut self, rule: StandInRule) {
        self.stand_ins.push(rule);
    }

    /// The layer that is built in the place of this one by the first rule that has any.
    ///
    /// # Errors
    /// When the layer sets what such a rule does not know.
    pub fn stand_in(&self, layer: &LayerParameter, phase: Phase) -> Result<Option<LayerParameter>> {
        self.stand_ins.iter().find_map(|rule| rule(layer, phase).transpose()).transpose()
    }

    /// Sets how blobs are converted between formats.
    pub fn convert_by(&mut self, factory: ConversionFactory) {
        self.conversion = Some(factory);
    }

    /// By the first rule that holds, the layer that computes for the first of `run`, and for how many of them.
    ///
    /// # Errors
    /// When a layer's parameters are wrong.
    pub fn fuse(&self, run: &[&LayerParameter], cx: &BuildCx) -> Result<Option<(Node, usize)>> {
        for rule in &self.fusions {
            if let Some(fused) = rule(run, cx)? {
                return Ok(Some(fused));
            }
        }
        Ok(None)
    }

    /// What takes the place of a layer that the one before it applies, if it is of such a kind.
    pub fn epilogue(&self, param: &LayerParameter) -> Option<Compute> {
        self.epilogues.iter().find_map(|rule| rule(param))
    }

    /// A conversion from one format to another.
    ///
    /// # Errors
    /// When none is registered.
    pub fn conversion(&self, from: Format, to: Format) -> Result<Node> {
        let factory = self.conversion.ok_or_else(|| Error::internal("no conversion between formats is registered"))?;
        factory(from, to)
    }

    /// The types known, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.factories.keys().copied()
    }

    /// The types whose layers, without parameters of their own, treat every element alone.
    pub fn elementwise(&self) -> Vec<&'static str> {
        let cx = BuildCx { phase: Phase::Train, dtype: DType::F32, seed: 0 };
        let is_elementwise = |kind: &&'static str| {
            let param = LayerParameter {
                name: Some("layer".into()),
                r#type: Some(kind.to_string()),
                bottom: vec!["bottom".into()],
                top: vec!["top".into()],
                ..Default::default()
            };
            matches!(self.build(&param, &cx), Ok(Node::Compute(layer)) if layer.is_elementwise())
        };
        self.kinds().filter(is_elementwise).collect()
    }

    /// Builds a layer.
    ///
    /// # Errors
    /// When the type is unknown (the message names the nearest known one) or its parameters are wrong.
    pub fn build(&self, param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let kind = param.r#type();
        match self.factories.get(kind) {
            Some(factory) => factory(param, cx),
            None => Err(self.unknown(kind).unwrap_or_else(|| Error::internal("a layer type without a factory"))),
        }
    }

    /// What to tell of a type that is none of those known: the nearest one, or where none is near all of them; `None` of
    /// one that is known.
    pub fn unknown(&self, kind: &str) -> Option<Error> {
        if self.factories.contains_key(kind) {
            return None;
        }
        if kind.is_empty() {
            return Some(Error::config("type is missing; give one, as in type: \"Convolution\""));
        }
        let hint = crate::nearest(kind, self.kinds()).map(str::to_string);
        let among = match hint {
            Some(_) => String::new(),
            None => format!(" (known types: {})", self.kinds().collect::<Vec<_>>().join(", ")),
        };
        Some(Error::Unknown { what: "unknown layer type".into(), found: kind.into(), hint, among })
    }
}
