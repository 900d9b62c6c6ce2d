//! Detection: with prior boxes, as the Single Shot MultiBox Detector has it, boxes being x and y of their first and their last
//! corner in parts of the image's width and height; and by regions that are proposed, as Faster R-CNN.
//!
//! Source: Liu et al., "SSD: Single Shot MultiBox Detector" (2016); the layers of its Caffe.

mod boxes;
mod output;
mod prior_box;
mod proposal;

pub use output::DetectionOutput;
pub use prior_box::PriorBox;
pub use proposal::Proposal;
