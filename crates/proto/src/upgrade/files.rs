//! Whole files in today's format, with what the Rust types do not hold: fields of forks, and the arrays of weights.

use std::borrow::Cow;
use std::path::Path;

use prost_reflect::prost::Message;
use prost_reflect::{DynamicMessage, ReflectMessage, Value};

use super::{Report, solver, upgrade_net};
use crate::binary::{check_start, encode, wire};
use crate::error::WireFault;
use crate::text::positions::Positions;
use crate::text::{parse_as, typed, untyped};
use crate::{BlobProto, Error, NetParameter, Result, SolverParameter, forks, to_text, whole};

/// A file in today's format.
#[derive(Clone, Debug)]
pub struct Upgraded<'a> {
    /// The file's bytes. Those of a binary file that was up to date are its own.
    pub bytes: Cow<'a, [u8]>,
    /// The steps, a line each, for the log. None if the file was up to date.
    pub notices: Vec<String>,
    /// Settings of the file that today's format has no place for, a sentence each.
    pub ignored: Vec<String>,
}

/// A net's prototxt in today's format, as protobuf prints it. Comments are not kept.
///
/// # Errors
/// [`Error::Text`] for text that is no net, with [`crate::Fault::Upgrade`] for a net that cannot be upgraded.
pub fn upgrade_net_text(text: &[u8], file: &Path) -> Result<Upgraded<'static>> {
    let (original, mut positions) = parse_as(text, file, &whole(&NetParameter::default().descriptor()))?;
    let mut net: NetParameter = typed(&original, &positions)?;
    let Report { notices, ignored } = upgrade_net(&mut net, &mut positions)?;
    let upgraded = if notices.is_empty() { original } else { with_dropped(&net, &original, &positions)? };
    Ok(Upgraded { bytes: Cow::Owned(to_text(&upgraded).into_bytes()), notices, ignored })
}

/// A solver's prototxt in today's format, as protobuf prints it. Comments are not kept.
///
/// # Errors
/// [`Error::Text`] for text that is no solver, with [`crate::Fault::Upgrade`] for a solver that cannot be upgraded.
pub fn upgrade_solver_text(text: &[u8], file: &Path) -> Result<Upgraded<'static>> {
    let (original, positions) = parse_as(text, file, &whole(&SolverParameter::default().descriptor()))?;
    let mut message: SolverParameter = typed(&original, &positions)?;
    let notices = solver::upgrade_type(&mut message, &positions)?;
    let mut upgraded = untyped(&message, &positions)?;
    forks::restore(&original, &mut upgraded);
    Ok(Upgraded { bytes: Cow::Owned(to_text(&upgraded).into_bytes()), notices, ignored: Vec::new() })
}

/// A binary net in today's format. Arrays of weights are copied as they are stored, and so are layers that are up to
/// date.
///
/// # Errors
/// [`Error::Binary`] for bytes that are no net; [`Error::Text`] with [`crate::Fault::Upgrade`] for a net that cannot be
/// upgraded.
pub fn upgrade_net_binary<'a>(bytes: &'a [u8], file: &Path) -> Result<Upgraded<'a>> {
    check_start(bytes, file)?;
    let damaged = |fault: WireFault| Error::binary(file, fault);
    let settled = wire::settle_fork_fields(bytes);
    let (outline, blobs) = wire::without_blobs(&settled).map_err(damaged)?;
    // One at a time: together they may be most of the memory there is.
    blobs.iter().try_for_each(|blob| BlobProto::decode(*blob).map(drop)).map_err(|error| damaged(error.into()))?;
    let descriptor = whole(&NetParameter::default().descriptor());
    let outline = wire::with_utf8(&outline, &descriptor);
    let original =
        DynamicMessage::decode(descriptor, &outline[..]).map_err(|error| damaged(wire::fault(bytes, error)))?;
    let old = NetParameter::decode(&outline[..]).map_err(|error| damaged(error.into()))?;

    let mut positions = Positions::of_layers(file, old.layers.len(), old.layer.len());
    let mut net = old.clone();
    let Report { notices, mut ignored } = upgrade_net(&mut net, &mut positions)?;
    if notices.is_empty() {
        return Ok(Upgraded { bytes: Cow::Borrowed(bytes), notices, ignored });
    }
    let mut upgraded = with_dropped(&net, &original, &positions)?;
    let layers = upgraded.take_field_by_name("layer");
    let mut out = encode(&upgraded);
    let as_stored = wire::layers(bytes).map_err(damaged)?;
    for (i, layer) in layers.iter().flat_map(|layers| layers.as_list().unwrap_or_default()).enumerate() {
        let index = positions.layer_path(i).and_then(|path| index_of(path, "layer"));
        let kept = index.filter(|&index| old.layer.get(index) == net.layer.get(i)).and_then(|i| as_stored.get(i));
        match (kept, layer) {
            (Some(kept), _) => wire::put_layer(&mut out, kept),
            (None, Value::Message(layer)) => {
                wire::put_layer(&mut out, &wire::with_blobs(&encode(layer), &blobs).map_err(damaged)?);
            }
            _ => {}
        }
    }
    let numbers: Vec<String> = unknown_fields(&original).map(|number| number.to_string()).collect();
    if !numbers.is_empty() {
        let file = file.display();
        ignored.push(format!("{file}: fields that no known fork has are left out: numbers {}", numbers.join(", ")));
    }
    Ok(Upgraded { bytes: Cow::Owned(out), notices, ignored })
}

/// An upgraded net with the fields of the original that the Rust types do not have.
fn with_dropped(net: &NetParameter, original: &DynamicMessage, positions: &Positions) -> Result<DynamicMessage> {
    let mut upgraded = untyped(net, positions)?;
    forks::restore(original, &mut upgraded);
    if let Some(Value::List(layers)) = upgraded.get_field_by_name_mut("layer") {
        for (i, layer) in layers.iter_mut().enumerate() {
            let list = |name: &str| {
                let index = index_of(positions.layer_path(i)?, name)?;
                original.get_field_by_name(name)?.as_list()?.get(index).cloned()
            };
            if let (Some(Value::Message(old)), Value::Message(new)) = (list("layers").or_else(|| list("layer")), layer)
            {
                forks::restore(&old, new);
            }
        }
    }
    Ok(upgraded)
}

/// The index in a path such as `layers[2]` to an element of the list of this name.
fn index_of(path: &str, list: &str) -> Option<usize> {
    match path.strip_prefix(list)? {
        "" => Some(0),
        index => index.strip_prefix('[')?.strip_suffix(']')?.parse().ok(),
    }
}

/// The numbers of the fields that the schema does not have.
fn unknown_fields(message: &DynamicMessage) -> Box<dyn Iterator<Item = u32> + '_> {
    let inside = message.fields().flat_map(|(_, value)| match value {
        Value::List(values) => values.as_slice(),
        single => std::slice::from_ref(single),
    });
    let below = inside.filter_map(Value::as_message).flat_map(unknown_fields);
    Box::new(message.unknown_fields().map(|field| field.number()).chain(below))
}
