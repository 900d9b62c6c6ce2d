//! What a net asks for that there is not, all of it before anything is built: layer types, and fields and values of
//! forks that would change results.

use lgm_core::{Error, Registry, Result};
use lgm_proto::{LayerParameter, Positions};

use super::filter::Placed;

/// Whether every layer, `kept` by its number in the net, is of a known type and sets only what is carried out.
///
/// # Errors
/// All that is missing, each with its layer and place.
pub fn check(layers: &[Placed], kept: &[usize], positions: &Positions, registry: &Registry) -> Result<()> {
    let text = |(at, what): (_, &str)| Error::Proto(lgm_proto::Fault::Unsupported(what.to_owned()).at(at));
    let mut faults: Vec<Error> = positions.refused_outside_layers().into_iter().map(text).collect();
    let mut listed = false;
    let unknown: Vec<_> = layers.iter().rev().map(|(layer, _)| missing(layer, registry, &mut listed)).collect();
    for (((layer, at), &i), missing) in layers.iter().zip(kept).zip(unknown.into_iter().rev()) {
        // What a layer of an unknown type sets would only be noise beside the type.
        match missing {
            Some(fault) => faults.push(fault.in_layer(layer.name(), layer.r#type(), at.as_ref())),
            None => faults.extend(
                positions
                    .refused_in_layer(i)
                    .into_iter()
                    .map(|(at, what)| text((at, &format!("layer '{}' ({}): {what}", layer.name(), layer.r#type())))),
            ),
        }
    }
    match faults.len() {
        0 => Ok(()),
        1 => faults.pop().map_or(Ok(()), Err),
        _ => Err(Error::Several(faults)),
    }
}

/// Why a layer's type is none that there is. All that there are is said once, which `listed` remembers.
fn missing(layer: &LayerParameter, registry: &Registry, listed: &mut bool) -> Option<Error> {
    let mut unknown = registry.unknown(layer.r#type())?;
    if layer.r#type() == "Python" {
        let class = match &layer.python_param {
            Some(python) => format!("the class '{}' of the Python module '{}'", python.layer(), python.module()),
            None => "a Python class, whose name no python_param gives".into(),
        };
        return Some(Error::config(format!(
            "the layer is {class}, and lgm-caffe runs no Python within a net; write it \
             with built-in layers (of Python layers, those of rpn.anchor_target_layer, rpn.proposal_layer and \
             rpn.proposal_target_layer are built as AnchorTarget, Proposal and ProposalTarget), or leave it out \
             (exclude {{ phase: … }}) and bring what it makes in by Input, HDF5Data or AnnotatedData"
        )));
    }
    if let Error::Unknown { hint, among, .. } = &mut unknown {
        if let Some(today) = lgm_proto::layer_type_of_older(layer.r#type()) {
            *hint = Some(today.into());
            among.clear();
        }
        match lgm_proto::forks_of_layer(layer.r#type()) {
            Some(forks) => {
                *hint = None;
                *among = format!(", which is a layer of forks of Caffe ({forks}) and not carried out");
            }
            None if hint.is_none() && std::mem::replace(listed, true) => among.clear(),
            None => {}
        }
    }
    Some(unknown)
}
