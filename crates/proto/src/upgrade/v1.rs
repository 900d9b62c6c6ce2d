//! Second-generation layers to today's.

use prost_reflect::{DynamicMessage, ReflectMessage};

use crate::layer_types::v1_layer_type;
use crate::text::positions::Positions;
use crate::v1_layer_parameter::{DimCheckMode, LayerType};
use crate::{
    Fault, LayerParameter, NetParameter, ParamSpec, Result, TransformationParameter, V1LayerParameter, param_spec,
};

/// Moves the image transformations that some data layers held themselves to `transform_param`.
pub(super) fn move_transformations(net: &mut NetParameter) -> bool {
    let mut changed = false;
    for layer in &mut net.layers {
        let kind = layer.r#type();
        // The three messages have the four fields under the same names.
        macro_rules! take {
            ($param:ident) => {
                layer.$param.as_mut().map(|p| TransformationParameter {
                    scale: p.scale.take(),
                    mean_file: p.mean_file.take(),
                    crop_size: p.crop_size.take(),
                    mirror: p.mirror.take(),
                    ..Default::default()
                })
            };
        }
        let moved = match kind {
            LayerType::Data => take!(data_param),
            LayerType::ImageData => take!(image_data_param),
            LayerType::WindowData => take!(window_data_param),
            _ => None,
        };
        if let Some(moved) = moved.filter(|moved| *moved != TransformationParameter::default()) {
            changed = true;
            let transform = layer.transform_param.get_or_insert_default();
            transform.scale = moved.scale.or(transform.scale);
            transform.mean_file = moved.mean_file.or(transform.mean_file.take());
            transform.crop_size = moved.crop_size.or(transform.crop_size);
            transform.mirror = moved.mirror.or(transform.mirror);
        }
    }
    changed
}

/// Replaces all `layers` by `layer`. The order stays, and so do the positions.
pub(super) fn upgrade(net: &mut NetParameter, positions: &Positions) -> Result<()> {
    for (i, layer) in std::mem::take(&mut net.layers).into_iter().enumerate() {
        let at = || positions.layer(i).unwrap_or_else(|| positions.start());
        let upgraded = upgrade_layer(layer).map_err(|fault| fault.at(at()))?;
        net.layer.push(upgraded);
    }
    Ok(())
}

/// The fields that became others; all the rest kept their names and types.
const SPECIAL: [&str; 7] = ["type", "blobs", "param", "blob_share_mode", "blobs_lr", "weight_decay", "layer"];

fn upgrade_layer(mut layer: V1LayerParameter) -> Result<LayerParameter, Fault> {
    let kind = match layer.r#type {
        Some(number) => {
            let known =
                LayerType::try_from(number).map_err(|_| Fault::Upgrade(format!("unknown layer type {number}")))?;
            Some(v1_layer_type(known).to_owned())
        }
        None => None,
    };
    let param = param_specs(&layer)?;
    let blobs = std::mem::take(&mut layer.blobs);
    let mut upgraded = DynamicMessage::new(LayerParameter::default().descriptor());
    for (field, value) in layer.transcode_to_dynamic().take_fields() {
        match upgraded.descriptor().get_field_by_name(field.name()) {
            Some(same) if !SPECIAL.contains(&field.name()) => upgraded.set_field(&same, value),
            _ => {}
        }
    }
    let upgraded: LayerParameter = upgraded.transcode_to().map_err(|error| Fault::Upgrade(error.to_string()))?;
    Ok(LayerParameter { r#type: kind, param, blobs, ..upgraded })
}

/// Four lists side by side, of names, share modes, rates and decays, as one list of specs; only what was listed is set.
fn param_specs(layer: &V1LayerParameter) -> Result<Vec<ParamSpec>, Fault> {
    let count = [layer.param.len(), layer.blob_share_mode.len(), layer.blobs_lr.len(), layer.weight_decay.len()];
    let share_mode = |number: i32| match DimCheckMode::try_from(number) {
        Ok(DimCheckMode::Strict) => Ok(param_spec::DimCheckMode::Strict as i32),
        Ok(DimCheckMode::Permissive) => Ok(param_spec::DimCheckMode::Permissive as i32),
        Err(_) => Err(Fault::Upgrade(format!("unknown blob_share_mode {number}"))),
    };
    (0..count.into_iter().max().unwrap_or(0))
        .map(|i| {
            Ok(ParamSpec {
                name: layer.param.get(i).cloned(),
                share_mode: layer.blob_share_mode.get(i).map(|&mode| share_mode(mode)).transpose()?,
                lr_mult: layer.blobs_lr.get(i).copied(),
                decay_mult: layer.weight_decay.get(i).copied(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_like_in_a_layer_of_today() {
        let (old, new) = (V1LayerParameter::default().descriptor(), LayerParameter::default().descriptor());
        for field in old.fields().filter(|field| !SPECIAL.contains(&field.name())) {
            let same = new.get_field_by_name(field.name()).unwrap_or_else(|| panic!("{}", field.name()));
            assert_eq!((same.kind(), same.cardinality()), (field.kind(), field.cardinality()), "{}", field.name());
        }
    }
}
