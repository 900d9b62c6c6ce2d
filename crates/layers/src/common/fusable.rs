//! Layers that may be computed together with those before them, by what their prototxt says.

use lgm_proto::LayerParameter;
use lgm_proto::eltwise_parameter::EltwiseOp;

/// Whether a layer is a ReLU that clears what is negative.
pub(crate) fn is_plain_relu(param: &LayerParameter) -> bool {
    let relu = param.relu_param.unwrap_or_default();
    param.r#type() == "ReLU" && relu.negative_slope() == 0.0 && !relu.relu6()
}

/// Whether a layer adds two blobs as they are.
pub(crate) fn is_plain_sum_of_two(param: &LayerParameter) -> bool {
    let eltwise = param.eltwise_param.clone().unwrap_or_default();
    let plain = eltwise.operation() == EltwiseOp::Sum && eltwise.coeff.iter().all(|&c| c == 1.0);
    param.r#type() == "Eltwise" && param.bottom.len() == 2 && plain
}
