//! Binary files: caffemodels, solver states, mean images.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod blob;
mod weights;
pub(crate) mod wire;

use std::fs;
use std::path::Path;

use prost::Message;
use prost_reflect::ReflectMessage;

pub use weights::{LayerWeights, Weights, read_weights};
pub(crate) use wire::outline;

use crate::error::BinaryFault;
use crate::text::{Parsed, Positions};
use crate::{Error, NetParameter, Result};

/// The first bytes of an HDF5 file.
pub(crate) const HDF5_SIGNATURE: &[u8] = b"\x89HDF\r\n\x1a\n";

/// The bytes of a message, as protobuf stores it. Strings get the bytes that [`crate::strings`] made them of.
pub fn encode(message: &impl ReflectMessage) -> Vec<u8> {
    wire::with_own_bytes(message.encode_to_vec(), &message.descriptor())
}

/// Reads a binary file that holds one message: a solver state, a mean image. For a net, [`read_net_binary`]; for the
/// weights of one, [`read_weights`].
///
/// # Errors
/// [`Error::Io`]; [`Error::Binary`] for a file that is empty, damaged, cut short or of another kind.
pub fn read_binary<M: Message + ReflectMessage + Default>(path: impl AsRef<Path>) -> Result<M> {
    let path = path.as_ref();
    decode(&read(path)?, path)
}

/// Reads a binary net with all its layers' parameters and upgrades it to today's format. Of a net that must only give its
/// weights, [`read_weights`] takes any fork's.
///
/// # Errors
/// As [`read_binary`], and [`Error::Text`] for an older net that cannot be upgraded.
pub fn read_net_binary(path: impl AsRef<Path>) -> Result<Parsed<NetParameter>> {
    let path = path.as_ref();
    let message = decode_net(&read(path)?, path)?;
    let positions = Positions::none(path);
    let mut net = Parsed { message, positions, notices: Vec::new(), warnings: Vec::new() };
    net.upgrade()?;
    Ok(net)
}

/// A net from its bytes, as it stands: nothing is upgraded. `path` is for messages only.
///
/// BVLC Caffe and its forks use one number of a layer's fields for different messages; the layer's type says whose it is.
///
/// # Errors
/// [`Error::Binary`].
pub fn decode_net(bytes: &[u8], path: &Path) -> Result<NetParameter> {
    decode(&wire::settle_fork_fields(bytes), path)
}

/// A message from its bytes.
fn decode<M: Message + ReflectMessage + Default>(bytes: &[u8], path: &Path) -> Result<M> {
    check_start(bytes, path)?;
    let text = wire::with_utf8(bytes, &M::default().descriptor());
    M::decode(&text[..]).map_err(|error| Error::binary(path, wire::fault(bytes, error)))
}

/// Refuses bytes that are of another kind at first sight.
pub(crate) fn check_start(bytes: &[u8], path: &Path) -> Result<()> {
    if bytes.is_empty() {
        return Err(Error::binary(path, BinaryFault::Empty));
    }
    if bytes.starts_with(HDF5_SIGNATURE) {
        return Err(Error::binary(path, BinaryFault::Hdf5));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(path, "read"))
}
