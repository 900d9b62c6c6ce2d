//! Detection: with prior boxes, as the Single Shot MultiBox Detector, whose boxes are (xmin, ymin, xmax, ymax) as fractions of the
//! image's width and height; by region proposals, as Faster R-CNN; and by cells of a grid, as YOLO.
//!
//! Source: Liu et al., "SSD: Single Shot MultiBox Detector" (2016); the layers of its Caffe.

use lgm_core::{BlobSpec, Error, Result, ensure};

mod anchor_target;
mod anchors;
mod boxes;
mod evaluate;
#[cfg(test)]
mod faults;
mod lists;
mod multibox_loss;
mod output;
mod prior_box;
mod proposal;
mod proposal_target;
mod python;
mod region_loss;
mod targets;
mod truth;
mod yolo_output;

pub use anchor_target::AnchorTarget;
pub use evaluate::DetectionEvaluate;
pub use multibox_loss::MultiBoxLoss;
pub use output::DetectionOutput;
pub use prior_box::{PriorBox, PriorBoxClustered};
pub use proposal::Proposal;
pub use proposal_target::ProposalTarget;
pub(crate) use python::native;
pub use region_loss::RegionLoss;
pub use yolo_output::{YoloDetectionOutput, Yolov3DetectionOutput};

/// The number of images and of priors, of predictions (so many for each prior), scores and priors: the first three bottoms.
///
/// # Errors
/// When their shapes do not agree.
fn check_predictions(bottoms: &[BlobSpec], locations: usize, classes: usize) -> Result<(usize, usize)> {
    let priors = &bottoms[2].shape;
    ensure!(
        priors.len() == 3 && priors[1] == 2 && priors[2].is_multiple_of(4) && priors[2] > 0,
        "bottom 2, the priors, must be of shape (1, 2, 4 · priors), found {priors}"
    );
    let (images, priors) = (bottoms[0].shape.first().copied().unwrap_or_default(), priors[2] / 4);
    for (i, (what, each)) in [("the predictions", 4 * locations), ("the scores", classes)].into_iter().enumerate() {
        let (shape, wanted) = (&bottoms[i].shape, lgm_core::count(&[priors, each]));
        if shape.is_empty() || shape[0] != images || shape.count_from(1) != wanted {
            let what = format!("bottom {i}, {what} for {priors} priors,");
            return Err(Error::Shape { what, expected: [images, wanted].into(), found: shape.clone() });
        }
    }
    Ok((images, priors))
}
