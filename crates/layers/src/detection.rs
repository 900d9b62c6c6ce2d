//! Detection: with prior boxes, as the Single Shot MultiBox Detector, whose boxes are (xmin, ymin, xmax, ymax) as fractions of the
//! image's width and height; and by region proposals, as Faster R-CNN.
//!
//! Source: Liu et al., "SSD: Single Shot MultiBox Detector" (2016); the layers of its Caffe.

mod boxes;
mod output;
mod prior_box;
mod proposal;

pub use output::DetectionOutput;
pub use prior_box::PriorBox;
pub use proposal::Proposal;
