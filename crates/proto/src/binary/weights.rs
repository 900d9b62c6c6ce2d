//! The learned values of a caffemodel, whatever fork wrote it.

use std::path::Path;

use prost::Message;

use super::{check_start, read, wire};
use crate::layer_types::{v0_layer_type, v1_layer_type};
use crate::v1_layer_parameter::LayerType;
use crate::{BlobProto, Error, Result, strings};

/// A net's learned values, layer by layer in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// The net's name.
    pub name: String,
    /// All layers, also those without values.
    pub layers: Vec<LayerWeights>,
    /// Whether the file is of the first or second generation (`layers`).
    pub older: bool,
}

/// One layer's learned values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerWeights {
    /// The layer's name.
    pub name: String,
    /// The layer's type in today's spelling, as in "Convolution". A number for a type that only a fork's second
    /// generation had.
    pub kind: String,
    /// The values, in the order of the layer's parameters.
    pub blobs: Vec<BlobProto>,
}

/// Reads names and learned values of a caffemodel of any generation and any fork; everything else in it is passed over.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::Binary`] for a file that is empty, damaged, cut short or of another kind.
pub fn read_weights(path: impl AsRef<Path>) -> Result<Weights> {
    let path = path.as_ref();
    Weights::decode(&read(path)?, path)
}

impl Weights {
    /// The weights from a caffemodel's bytes. `path` is for messages only.
    ///
    /// # Errors
    /// [`crate::Error::Binary`], as [`read_weights`].
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        check_start(bytes, path)?;
        let net = Net::decode(bytes).map_err(|error| Error::binary(path, wire::fault(bytes, error)))?;
        let older = !net.layers.is_empty();
        let layers =
            net.layers.into_iter().map(LayerWeights::from).chain(net.layer.into_iter().map(LayerWeights::from));
        Ok(Weights { name: text(net.name), layers: layers.collect(), older })
    }
}

// The messages of the schema cut down to what weights need. Names are bytes: old files hold them in any encoding.

#[derive(Clone, PartialEq, Message)]
struct Net {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    layers: Vec<V1Layer>,
    #[prost(message, repeated, tag = "100")]
    layer: Vec<Layer>,
}

#[derive(Clone, PartialEq, Message)]
struct Layer {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    kind: Vec<u8>,
    #[prost(message, repeated, tag = "7")]
    blobs: Vec<BlobProto>,
}

#[derive(Clone, PartialEq, Message)]
struct V1Layer {
    #[prost(bytes = "vec", tag = "4")]
    name: Vec<u8>,
    #[prost(int32, tag = "5")]
    kind: i32,
    #[prost(message, repeated, tag = "6")]
    blobs: Vec<BlobProto>,
    #[prost(message, optional, tag = "1")]
    first_generation: Option<V0Layer>,
}

#[derive(Clone, PartialEq, Message)]
struct V0Layer {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    kind: Vec<u8>,
    #[prost(message, repeated, tag = "50")]
    blobs: Vec<BlobProto>,
}

impl From<Layer> for LayerWeights {
    fn from(layer: Layer) -> Self {
        LayerWeights { name: text(layer.name), kind: text(layer.kind), blobs: layer.blobs }
    }
}

impl From<V1Layer> for LayerWeights {
    fn from(layer: V1Layer) -> Self {
        if let Some(old) = layer.first_generation {
            let kind = text(old.kind);
            let kind = v0_layer_type(&kind).map_or(kind, |kind| v1_layer_type(kind).to_owned());
            return LayerWeights { name: text(old.name), kind, blobs: old.blobs };
        }
        let kind = match LayerType::try_from(layer.kind) {
            Ok(kind) => v1_layer_type(kind).to_owned(),
            Err(_) => layer.kind.to_string(),
        };
        LayerWeights { name: text(layer.name), kind, blobs: layer.blobs }
    }
}

fn text(bytes: Vec<u8>) -> String {
    strings::from_bytes(&bytes).into_owned()
}
