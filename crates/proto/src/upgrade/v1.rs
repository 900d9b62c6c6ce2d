//! Second-generation layers to today's.

use crate::text::positions::Positions;
use crate::v1_layer_parameter::{DimCheckMode, LayerType};
use crate::{
    Error, LayerParameter, NetParameter, ParamSpec, Result, TransformationParameter, V1LayerParameter, param_spec,
};

/// Today's name for a second-generation layer type.
pub fn layer_type(kind: LayerType) -> &'static str {
    match kind {
        LayerType::None => "",
        LayerType::Absval => "AbsVal",
        LayerType::Accuracy => "Accuracy",
        LayerType::Argmax => "ArgMax",
        LayerType::Bnll => "BNLL",
        LayerType::Concat => "Concat",
        LayerType::ContrastiveLoss => "ContrastiveLoss",
        LayerType::Convolution => "Convolution",
        LayerType::Data => "Data",
        LayerType::Deconvolution => "Deconvolution",
        LayerType::Dropout => "Dropout",
        LayerType::DummyData => "DummyData",
        LayerType::Eltwise => "Eltwise",
        LayerType::EuclideanLoss => "EuclideanLoss",
        LayerType::Exp => "Exp",
        LayerType::Flatten => "Flatten",
        LayerType::Hdf5Data => "HDF5Data",
        LayerType::Hdf5Output => "HDF5Output",
        LayerType::HingeLoss => "HingeLoss",
        LayerType::Im2col => "Im2col",
        LayerType::ImageData => "ImageData",
        LayerType::InfogainLoss => "InfogainLoss",
        LayerType::InnerProduct => "InnerProduct",
        LayerType::Lrn => "LRN",
        LayerType::MemoryData => "MemoryData",
        LayerType::MultinomialLogisticLoss => "MultinomialLogisticLoss",
        LayerType::Mvn => "MVN",
        LayerType::Pooling => "Pooling",
        LayerType::Power => "Power",
        LayerType::Relu => "ReLU",
        LayerType::Sigmoid => "Sigmoid",
        LayerType::SigmoidCrossEntropyLoss => "SigmoidCrossEntropyLoss",
        LayerType::Silence => "Silence",
        LayerType::Slice => "Slice",
        LayerType::Softmax => "Softmax",
        LayerType::SoftmaxLoss => "SoftmaxWithLoss",
        LayerType::Split => "Split",
        LayerType::Tanh => "TanH",
        LayerType::Threshold => "Threshold",
        LayerType::WindowData => "WindowData",
    }
}

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
        let upgraded = upgrade_layer(layer)
            .map_err(|what| Error::Text { at: positions.layer(i).unwrap_or_else(|| positions.start()), what })?;
        net.layer.push(upgraded);
    }
    Ok(())
}

fn upgrade_layer(layer: V1LayerParameter) -> Result<LayerParameter, String> {
    let kind = match layer.r#type {
        Some(number) => {
            let known = LayerType::try_from(number).map_err(|_| format!("unknown layer type {number}"))?;
            Some(layer_type(known).to_owned())
        }
        None => None,
    };
    let param = param_specs(&layer)?;
    Ok(LayerParameter {
        name: layer.name,
        r#type: kind,
        bottom: layer.bottom,
        top: layer.top,
        include: layer.include,
        exclude: layer.exclude,
        loss_weight: layer.loss_weight,
        param,
        blobs: layer.blobs,
        accuracy_param: layer.accuracy_param,
        argmax_param: layer.argmax_param,
        concat_param: layer.concat_param,
        contrastive_loss_param: layer.contrastive_loss_param,
        convolution_param: layer.convolution_param,
        data_param: layer.data_param,
        dropout_param: layer.dropout_param,
        dummy_data_param: layer.dummy_data_param,
        eltwise_param: layer.eltwise_param,
        exp_param: layer.exp_param,
        hdf5_data_param: layer.hdf5_data_param,
        hdf5_output_param: layer.hdf5_output_param,
        hinge_loss_param: layer.hinge_loss_param,
        image_data_param: layer.image_data_param,
        infogain_loss_param: layer.infogain_loss_param,
        inner_product_param: layer.inner_product_param,
        loss_param: layer.loss_param,
        lrn_param: layer.lrn_param,
        memory_data_param: layer.memory_data_param,
        mvn_param: layer.mvn_param,
        pooling_param: layer.pooling_param,
        power_param: layer.power_param,
        relu_param: layer.relu_param,
        sigmoid_param: layer.sigmoid_param,
        slice_param: layer.slice_param,
        softmax_param: layer.softmax_param,
        tanh_param: layer.tanh_param,
        threshold_param: layer.threshold_param,
        transform_param: layer.transform_param,
        window_data_param: layer.window_data_param,
        ..Default::default()
    })
}

/// Four lists side by side, of names, share modes, rates and decays, as one list of specs; only what was listed is set.
fn param_specs(layer: &V1LayerParameter) -> Result<Vec<ParamSpec>, String> {
    let count = [layer.param.len(), layer.blob_share_mode.len(), layer.blobs_lr.len(), layer.weight_decay.len()];
    let share_mode = |number: i32| match DimCheckMode::try_from(number) {
        Ok(DimCheckMode::Strict) => Ok(param_spec::DimCheckMode::Strict as i32),
        Ok(DimCheckMode::Permissive) => Ok(param_spec::DimCheckMode::Permissive as i32),
        Err(_) => Err(format!("unknown blob_share_mode {number}")),
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
