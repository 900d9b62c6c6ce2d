//! The layer types that nets can name, and what they are built to.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use lgm_proto::{LayerParameter, Phase};

use crate::{DType, DeviceLayer, Error, Result, Run, Sink, Source};

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
