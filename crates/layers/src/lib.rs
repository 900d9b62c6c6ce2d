//! The layers of lgm-caffe, one file each: what it computes, its shapes, its host run and its tests.

use lgm_core::Registry;

mod common;
mod conversion;
#[cfg(test)]
mod device_extents;
#[cfg(test)]
mod guide;

/// Declares the layer modules and the types each registers: `file { "Type" => Struct, … }`. Every struct has
/// `pub(crate) fn build(&LayerParameter, &BuildCx) -> Result<Node>`.
macro_rules! layers {
    ($($module:ident { $($kind:literal => $layer:ident),+ $(,)? })*) => {
        $(pub mod $module;)*

        /// Adds every layer of this crate, and what they compute together, to a registry.
        pub fn register(registry: &mut Registry) {
            $($(registry.add($kind, $module::$layer::build);)+)*
            registry.add_fusion(batch_norm::FusedBatchNorm::of);
            registry.add_epilogue(relu::applied_before);
            registry.add_stand_in(detection::native);
            registry.convert_by(conversion::Conversion::build);
        }
    };
}

layers! {
    batch_norm { "BatchNorm" => BatchNorm, "BN" => Bn }
    pooling { "Pooling" => Pooling, "SPP" => Spp }
    convolution {
        "Convolution" => Convolution, "ConvolutionDepthwise" => Convolution, "DepthwiseConvolution" => Convolution,
        "Deconvolution" => Deconvolution, "Im2col" => Im2col,
    }
    lrn { "LRN" => Lrn }
    inner_product { "InnerProduct" => InnerProduct }
    embed { "Embed" => Embed }
    detection {
        "AnchorTarget" => AnchorTarget, "ProposalTarget" => ProposalTarget,
        "DetectionEvaluate" => DetectionEvaluate, "DetectionOutput" => DetectionOutput, "MultiBoxLoss" => MultiBoxLoss,
        "PriorBox" => PriorBox, "PriorBoxClustered" => PriorBoxClustered, "Proposal" => Proposal,
        "RegionLoss" => RegionLoss,
        "YoloDetectionOutput" => YoloDetectionOutput, "Yolov3DetectionOutput" => Yolov3DetectionOutput,
    }
    regions { "ROIAlign" => RoiAlign, "ROIPooling" => RoiPooling, "PSROIPooling" => PsRoiPooling }
    recurrent { "LSTM" => Lstm, "LSTMUnit" => LstmUnit, "RNN" => Rnn }
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
    relu { "ReLU" => ReLU, "ReLU6" => ReLU }
    prelu { "PReLU" => PReLU }
    sigmoid { "Sigmoid" => Sigmoid }
    tanh { "TanH" => TanH }
    swish { "Swish" => Swish }
    power { "Power" => Power }
    absval { "AbsVal" => AbsVal }
    bnll { "BNLL" => Bnll }
    clip { "Clip" => Clip }
    elu { "ELU" => Elu }
    exp { "Exp" => Exp }
    log { "Log" => Log }
    threshold { "Threshold" => Threshold }
    argmax { "ArgMax" => ArgMax }
    batch_reindex { "BatchReindex" => BatchReindex }
    crop { "Crop" => Crop }
    filter { "Filter" => Filter }
    gather { "Gather" => Gather }
    mean { "Mean" => Mean }
    mvn { "MVN" => Mvn }
    parameter { "Parameter" => Parameter }
    permute { "Permute" => Permute }
    axpy { "Axpy" => Axpy }
    flip { "Flip" => Flip }
    hard_swish { "HardSwish" => HardSwish }
    interp { "Interp" => Interp }
    normalize { "Normalize" => Normalize }
    reorg { "Reorg" => Reorg }
    shuffle_channel { "ShuffleChannel" => ShuffleChannel }
    squeeze { "Squeeze" => Squeeze }
    upsample { "Upsample" => Upsample }
    tile { "Tile" => Tile }
    softmax { "Softmax" => Softmax }
    softmax_loss { "SoftmaxWithLoss" => SoftmaxWithLoss, "SoftmaxWithLossOHEM" => SoftmaxWithLoss }
    euclidean_loss { "EuclideanLoss" => EuclideanLoss }
    contrastive_loss { "ContrastiveLoss" => ContrastiveLoss }
    hinge_loss { "HingeLoss" => HingeLoss }
    infogain_loss { "InfogainLoss" => InfogainLoss }
    multinomial_logistic_loss { "MultinomialLogisticLoss" => MultinomialLogisticLoss }
    sigmoid_cross_entropy_loss { "SigmoidCrossEntropyLoss" => SigmoidCrossEntropyLoss }
    center_loss { "CenterLoss" => CenterLoss }
    iou_loss { "IoULoss" => IouLoss }
    margin_contrastive_loss { "MarginContrastiveLoss" => MarginContrastiveLoss }
    margin_inner_product { "MarginInnerProduct" => MarginInnerProduct }
    margin_softmax_loss { "MarginSoftmaxLoss" => MarginSoftmaxLoss }
    new_loss { "NewLoss" => NewLoss }
    l1_loss { "L1Loss" => L1Loss }
    smooth_l1_loss { "SmoothL1Loss" => SmoothL1Loss, "SmoothL1LossOHEM" => SmoothL1LossOhem }
    box_annotator_ohem { "BoxAnnotatorOHEM" => BoxAnnotatorOhem }
    label_specific_add { "LabelSpecificAdd" => LabelSpecificAdd }
    spatial_transformer { "SpatialTransformer" => SpatialTransformer }
    accuracy { "Accuracy" => Accuracy }
    continuation_indicator { "ContinuationIndicator" => ContinuationIndicator }
    ctc {
        "CtcLoss" => CtcLoss, "CTCLoss" => CtcLossOfSteps, "CTCGreedyDecoder" => CtcGreedyDecoder,
        "LabelsequenceAccuracy" => LabelSequenceAccuracy,
    }
    seg_accuracy { "SegAccuracy" => SegAccuracy }
    reduction { "Reduction" => Reduction }
    lgm { "ClassDistance" => ClassDistance, "LGMLoss" => LgmLoss }
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

    #[test]
    fn types_are_known_that_treat_every_element_alone() {
        let kinds = registry().elementwise();
        assert!(["AbsVal", "Power", "ReLU", "Swish", "Threshold"].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
        assert!(!["PReLU", "Softmax", "Concat", "Convolution"].iter().any(|kind| kinds.contains(kind)), "{kinds:?}");
    }
}
