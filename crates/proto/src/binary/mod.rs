//! Binary files: caffemodels, solver states, mean images.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod blob;
mod weights;
mod wire;

use std::fs;
use std::path::Path;

use prost::Message;

pub use weights::{LayerWeights, Weights, read_weights};
pub(crate) use wire::outline;

use crate::text::{Parsed, Positions};
use crate::upgrade::upgrade_net;
use crate::{Error, NetParameter, Result};

/// The first bytes of an HDF5 file.
pub(crate) const HDF5_SIGNATURE: &[u8] = b"\x89HDF\r\n\x1a\n";

/// The bytes of a message, as protobuf stores it.
pub fn encode(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// Reads a binary file that holds one message: a solver state, a mean image. For a net, [`read_net_binary`]; for the
/// weights of one, [`read_weights`].
///
/// # Errors
/// [`Error::Io`]; [`Error::Binary`] for a file that is empty, damaged, cut short or of another kind.
pub fn read_binary<M: Message + Default>(path: impl AsRef<Path>) -> Result<M> {
    let path = path.as_ref();
    decode(&read(path)?, path)
}

/// Reads a binary net with all its layers' parameters and brings it up to date. Of a net that must only give its
/// weights, [`read_weights`] takes any fork's.
///
/// # Errors
/// As [`read_binary`], and [`Error::Text`] for an older net that cannot be upgraded.
pub fn read_net_binary(path: impl AsRef<Path>) -> Result<Parsed<NetParameter>> {
    let path = path.as_ref();
    let mut message = decode_net(&read(path)?, path)?;
    let mut positions = Positions::none(path);
    let notices = upgrade_net(&mut message, &mut positions)?;
    Ok(Parsed { message, positions, notices, warnings: Vec::new() })
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

fn decode<M: Message + Default>(bytes: &[u8], path: &Path) -> Result<M> {
    if bytes.is_empty() {
        return Err(Error::binary(path, "the file is empty"));
    }
    if bytes.starts_with(HDF5_SIGNATURE) {
        return Err(Error::binary(
            path,
            "expected a protobuf file, found an HDF5 file; name it with the extension .h5",
        ));
    }
    M::decode(bytes).map_err(|error| {
        let what = wire::fault(bytes).unwrap_or_else(|| format!("does not hold what was expected ({error})"));
        Error::binary(path, format!("damaged, cut short, or not a binary file of Caffe's: {what}"))
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(path, "read"))
}
