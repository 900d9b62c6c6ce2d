//! The layers of lgm-caffe, one file each: what it computes, its shapes, its host run and its tests.

use lgm_core::{BuildCx, Compute, Node, Registry, Result};
use lgm_proto::LayerParameter;

mod conversion;
mod fused_batch_norm;
mod labels;
pub mod margin_schedule;
mod on_device;
mod pointwise;

/// Declares the layer modules and the types each registers: `file { "Type" => Struct, … }`. Every struct has
/// `pub(crate) fn build(&LayerParameter, &BuildCx) -> Result<Node>`.
macro_rules! layers {
    ($($module:ident { $($kind:literal => $layer:ident),+ $(,)? })*) => {
        $(pub mod $module;)*

        /// Adds every layer of this crate to a registry.
        pub fn register(registry: &mut Registry) {
            $($(registry.add($kind, $module::$layer::build);)+)*
        }
    };
}

pub use conversion::Conversion;

layers! {
    batch_norm { "BatchNorm" => BatchNorm }
    pooling { "Pooling" => Pooling }
    convolution { "Convolution" => Convolution }
    lrn { "LRN" => Lrn }
    inner_product { "InnerProduct" => InnerProduct }
    embed { "Embed" => Embed }
    scale { "Scale" => Scale }
    bias { "Bias" => Bias }
    eltwise { "Eltwise" => Eltwise }
    silence { "Silence" => Silence }
    input { "Input" => Input }
    dummy_data { "DummyData" => DummyData }
    dropout { "Dropout" => Dropout }
    split { "Split" => Split }
    slice { "Slice" => Slice }
    reshape { "Reshape" => Reshape }
    flatten { "Flatten" => Flatten }
    concat { "Concat" => Concat }
    relu { "ReLU" => ReLU }
    prelu { "PReLU" => PReLU }
    sigmoid { "Sigmoid" => Sigmoid }
    tanh { "TanH" => TanH }
    power { "Power" => Power }
    softmax { "Softmax" => Softmax }
    softmax_loss { "SoftmaxWithLoss" => SoftmaxWithLoss }
    euclidean_loss { "EuclideanLoss" => EuclideanLoss }
    accuracy { "Accuracy" => Accuracy }
    reduction { "Reduction" => Reduction }
    class_distance { "ClassDistance" => ClassDistance }
    lgm_loss { "LGMLoss" => LgmLoss }
}

/// One layer that computes what the first of `run`'s layers compute one after another in fewer passes over memory, and
/// how many of them; `None` when there is none.
///
/// # Errors
/// When a layer's parameters are wrong.
pub fn fuse(run: &[&LayerParameter], cx: &BuildCx) -> Result<Option<(Node, usize)>> {
    fused_batch_norm::FusedBatchNorm::of(run, cx)
}

/// The layer that takes the place of a ReLU that the layer below applies ([`lgm_core::Layer::fuse_relu`]); `None` for a layer
/// that is no ReLU, or has a negative slope.
pub fn fused_relu(param: &LayerParameter) -> Option<Compute> {
    relu::is_plain(param).then(|| Compute::Everywhere(Box::new(relu::ReLU::done())))
}

#[cfg(test)]
mod tests {
    use lgm_core::Registry;

    /// A registry with every layer of this crate.
    pub(crate) fn registry() -> Registry {
        let mut registry = Registry::default();
        super::register(&mut registry);
        registry
    }
}
