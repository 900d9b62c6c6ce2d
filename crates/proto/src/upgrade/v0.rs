//! First-generation layers to the second generation.

use std::collections::HashMap;

use crate::layer_types::v0_layer_type;
use crate::text::positions::Positions;
use crate::v1_layer_parameter::LayerType;
use crate::{
    ConcatParameter, ConvolutionParameter, DataParameter, DropoutParameter, Fault, Hdf5DataParameter,
    ImageDataParameter, InfogainLossParameter, InnerProductParameter, LrnParameter, NetParameter, PoolingParameter,
    Result, TransformationParameter, V0LayerParameter, V1LayerParameter, WindowDataParameter, pooling_parameter,
    v0_layer_parameter,
};

/// Layers that only pad their bottom; the layer behind takes the padding over.
const PADDING: &str = "padding";

/// Replaces the first-generation half of every layer. Settings that a layer's type does not have are added to
/// `ignored`.
pub(super) fn upgrade(net: &mut NetParameter, positions: &mut Positions, ignored: &mut Vec<String>) -> Result<()> {
    merge_padding(net, positions)?;
    for (i, layer) in net.layers.iter_mut().enumerate() {
        let Some(old) = layer.layer.take() else { continue };
        let at = || positions.layer(i).unwrap_or_else(|| positions.start());
        let kind = match old.r#type.as_deref() {
            Some(name) => Some(
                v0_layer_type(name)
                    .ok_or_else(|| Fault::Upgrade(format!("unknown first-generation layer type '{name}'")).at(at()))?,
            ),
            None => None,
        };
        let name = old.name().to_owned();
        let left = upgrade_layer(layer, old, kind);
        if !left.is_empty() {
            let kind = kind.map_or("no type", |kind| kind.as_str_name());
            ignored.push(format!("{}: layer '{name}' ({kind}) has no use for {}; ignored", at(), left.join(", ")));
        }
    }
    Ok(())
}

/// Drops the padding layers; the convolution or pooling behind one takes its `pad` and its bottom.
fn merge_padding(net: &mut NetParameter, positions: &mut Positions) -> Result<()> {
    let old = std::mem::take(&mut net.layers);
    let paths = std::mem::take(positions.layers_mut());
    let mut kept_paths = Vec::new();
    // The padding layer, if it was one, that wrote each blob last.
    let mut writers: HashMap<&str, Option<&V1LayerParameter>> = HashMap::new();
    writers.extend(net.input.iter().map(|input| (input.as_str(), None)));

    for (i, layer) in old.iter().enumerate() {
        let path = paths.get(i).cloned().flatten();
        let kind = v0_type(layer);
        let fail = |what: String| {
            let at = path.as_deref().and_then(|path| positions.get(path)).unwrap_or_else(|| positions.start());
            Fault::Upgrade(what).at(at)
        };
        let mut upgraded = layer.clone();
        for bottom in &layer.bottom {
            let writer = writers
                .get(bottom.as_str())
                .ok_or_else(|| fail(format!("bottom '{bottom}' is no input and no top of an earlier layer")))?;
            let Some(padding) = writer else { continue };
            if kind != "conv" && kind != "pool" {
                return Err(fail(format!("padding can only precede a layer of type conv or pool, not '{kind}'")));
            }
            let ([source], [_], [_]) = (&padding.bottom[..], &padding.top[..], &layer.bottom[..]) else {
                return Err(fail("a padding layer and the layer behind it need exactly one bottom and top".into()));
            };
            upgraded.bottom = vec![source.clone()];
            upgraded.layer.get_or_insert_default().pad = Some(padding.layer.as_ref().map_or(0, V0LayerParameter::pad));
        }
        let is_padding = kind == PADDING;
        writers.extend(layer.top.iter().map(|top| (top.as_str(), is_padding.then_some(layer))));
        if !is_padding {
            net.layers.push(upgraded);
            kept_paths.push(path);
        }
    }
    *positions.layers_mut() = kept_paths;
    Ok(())
}

fn v0_type(layer: &V1LayerParameter) -> &str {
    layer.layer.as_ref().map_or("", V0LayerParameter::r#type)
}

/// `None` for a message in which nothing is set: Caffe leaves such a message out.
fn unless_empty<M: Default + PartialEq>(message: M) -> Option<M> {
    (message != M::default()).then_some(message)
}

/// Moves the fields of `old` to where the second generation has them. Gives the names of those that were set but have
/// no place in a layer of this type.
fn upgrade_layer(
    layer: &mut V1LayerParameter,
    mut old: V0LayerParameter,
    kind: Option<LayerType>,
) -> Vec<&'static str> {
    layer.name = old.name.take().or(layer.name.take());
    layer.r#type = kind.map(i32::from);
    layer.blobs.append(&mut old.blobs);
    layer.blobs_lr.append(&mut old.blobs_lr);
    layer.weight_decay.append(&mut old.weight_decay);
    layer.transform_param = unless_empty(TransformationParameter {
        scale: old.scale.take(),
        mean_file: old.meanfile.take(),
        crop_size: old.cropsize.take(),
        mirror: old.mirror.take(),
        ..layer.transform_param.take().unwrap_or_default()
    });
    match kind {
        Some(LayerType::Convolution) => {
            layer.convolution_param = unless_empty(ConvolutionParameter {
                num_output: old.num_output.take(),
                bias_term: old.biasterm.take(),
                weight_filler: old.weight_filler.take(),
                bias_filler: old.bias_filler.take(),
                pad: old.pad.take().into_iter().collect(),
                kernel_size: old.kernelsize.take().into_iter().collect(),
                stride: old.stride.take().into_iter().collect(),
                group: old.group.take(),
                ..Default::default()
            });
        }
        Some(LayerType::InnerProduct) => {
            layer.inner_product_param = unless_empty(InnerProductParameter {
                num_output: old.num_output.take(),
                bias_term: old.biasterm.take(),
                weight_filler: old.weight_filler.take(),
                bias_filler: old.bias_filler.take(),
                ..Default::default()
            });
        }
        Some(LayerType::Pooling) => {
            layer.pooling_param = unless_empty(PoolingParameter {
                pool: old.pool.take().map(pool_method),
                pad: old.pad.take(),
                kernel_size: old.kernelsize.take(),
                stride: old.stride.take(),
                ..Default::default()
            });
        }
        Some(LayerType::Dropout) => {
            layer.dropout_param =
                unless_empty(DropoutParameter { dropout_ratio: old.dropout_ratio.take(), ..Default::default() });
        }
        Some(LayerType::Lrn) => {
            layer.lrn_param = unless_empty(LrnParameter {
                local_size: old.local_size.take(),
                alpha: old.alpha.take(),
                beta: old.beta.take(),
                k: old.k.take(),
                ..Default::default()
            });
        }
        Some(LayerType::Concat) => {
            layer.concat_param =
                unless_empty(ConcatParameter { concat_dim: old.concat_dim.take(), ..Default::default() });
        }
        Some(LayerType::Data) => {
            layer.data_param = unless_empty(DataParameter {
                source: old.source.take(),
                batch_size: old.batchsize.take(),
                rand_skip: old.rand_skip.take(),
                ..Default::default()
            });
        }
        Some(LayerType::Hdf5Data) => {
            layer.hdf5_data_param = unless_empty(Hdf5DataParameter {
                source: old.source.take(),
                batch_size: old.batchsize.take(),
                ..Default::default()
            });
        }
        Some(LayerType::ImageData) => {
            // Negative sizes meant nothing; as an unsigned number they would mean a huge one.
            let size = |pixels: Option<i32>| pixels.and_then(|pixels| u32::try_from(pixels).ok());
            layer.image_data_param = unless_empty(ImageDataParameter {
                source: old.source.take(),
                batch_size: old.batchsize.take(),
                rand_skip: old.rand_skip.take(),
                shuffle: old.shuffle_images.take(),
                new_height: size(old.new_height.take()),
                new_width: size(old.new_width.take()),
                ..Default::default()
            });
        }
        Some(LayerType::WindowData) => {
            layer.window_data_param = unless_empty(WindowDataParameter {
                source: old.source.take(),
                batch_size: old.batchsize.take(),
                fg_threshold: old.det_fg_threshold.take(),
                bg_threshold: old.det_bg_threshold.take(),
                fg_fraction: old.det_fg_fraction.take(),
                context_pad: old.det_context_pad.take(),
                crop_mode: old.det_crop_mode.take(),
                ..Default::default()
            });
        }
        Some(LayerType::InfogainLoss) => {
            layer.infogain_loss_param =
                unless_empty(InfogainLossParameter { source: old.source.take(), ..Default::default() });
        }
        Some(LayerType::Hdf5Output) => layer.hdf5_output_param = old.hdf5_output_param.take(),
        _ => {}
    }
    old.r#type = None;
    left_over(&old)
}

fn pool_method(old: i32) -> i32 {
    use pooling_parameter::PoolMethod as New;
    use v0_layer_parameter::PoolMethod as Old;
    match Old::try_from(old) {
        Ok(Old::Max) => New::Max.into(),
        Ok(Old::Ave) => New::Ave.into(),
        Ok(Old::Stochastic) => New::Stochastic.into(),
        // The number of no method in either generation; whoever builds the layer refuses it.
        Err(_) => old,
    }
}

/// The names of the fields that are still set.
fn left_over(old: &V0LayerParameter) -> Vec<&'static str> {
    macro_rules! set {
        ($($field:ident)*) => { [$((stringify!($field), old.$field.is_some())),*] };
    }
    let fields = set!(num_output biasterm weight_filler bias_filler pad kernelsize group stride pool dropout_ratio
        local_size alpha beta k source batchsize rand_skip det_fg_threshold det_bg_threshold det_fg_fraction
        det_context_pad det_crop_mode new_num new_channels new_height new_width shuffle_images concat_dim
        hdf5_output_param);
    fields.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
}
