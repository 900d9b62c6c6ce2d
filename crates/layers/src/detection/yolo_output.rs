//! YoloDetectionOutput and Yolov3DetectionOutput: what a net of YOLO's second or third version found, a row for each detection.
//!
//! Each bottom is a grid of cells with `num_box` boxes each, of 5 + `num_classes` channels: x, y, w, h, objectness o and a score sₖ for
//! each class. A box has its centre at ((column + σ(x)) / columns, (row + σ(y)) / rows) of the image and the sides
//! eʷ · a / columns and eʰ · b / rows, where (a, b) is its anchor in cells. Its confidence is σ(o) · max σ(sₖ), in the second version
//! σ(o) · max softmax(s)ₖ. Of the boxes above `confidence_threshold` those are found that overlap no better one, of whatever class,
//! by more than `nms_threshold`.
//!
//! The second version has one or two bottoms, and their anchors are `biases`, a pair for each box. The third has `mask_group_num`
//! bottoms; `biases` are pairs of pixels, `mask` says which of them a box of a bottom has, and `anchors_scale` what a cell of a
//! bottom is in pixels. With its `gaussian_box` x, y, w and h are each followed by how uncertain they are, u: the confidence is
//! multiplied by the mean of 1 − σ(u).
//!
//! Bottoms [N, `num_box` · (5 + `num_classes`), rows, columns], 9 with `gaussian_box`. Top [1, 1, boxes, 7]: image, class from 1 on,
//! confidence, x and y of the first and the last corner, by image and confidence; rows that are not used are as DetectionOutput's. No gradient.
//!
//! Source: Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger" (2017) and "YOLOv3: An Incremental Improvement" (2018); the
//! layers of MobileNet-YOLO's Caffe. Those have one list for all images of a batch, as of image 0; here each image has its own.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Device, DeviceLayer, DeviceQueue, Error, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    Plan, Result, Shape, args, ensure,
};
use lgm_cpu::for_each_part;
use lgm_cpu::math::{exp, sigmoid};
use lgm_proto::LayerParameter;

use super::boxes::{Corners, descending, iou, suppress};
use super::lists::Lists;
use super::output::unused;
use crate::common::launch::extent;

#[cfg(test)]
mod tests;

/// The layer of the second version; see the module.
pub struct YoloDetectionOutput {
    classes: usize,
    confidence: f32,
    overlap: f32,
    /// Of each bottom, or of all, the anchors of its boxes in cells.
    anchors: Vec<Vec<[f64; 2]>>,
    bottoms: [usize; 2],
    /// Scores are turned to probabilities by a softmax, not each by itself.
    softmax: bool,
    gaussian: bool,
    images: usize,
    /// Rows and columns of each bottom.
    grids: Vec<[usize; 2]>,
}

/// That of the third; see the module.
pub struct Yolov3DetectionOutput;

/// Numbers of a row of the top.
const ROW: usize = 7;

/// Pairs of biases.
fn pairs(biases: &[f32]) -> Result<Vec<[f64; 2]>> {
    let (pairs, rest) = biases.as_chunks::<2>();
    ensure!(rest.is_empty(), "biases are pairs of width and height, found {} of them", biases.len());
    let wrong = biases.iter().find(|side| !(side.is_finite() && **side > 0.0));
    ensure!(
        wrong.is_none(),
        "biases are sides of boxes and must be positive, found {}",
        wrong.copied().unwrap_or_default()
    );
    Ok(pairs.iter().map(|pair| pair.map(f64::from)).collect())
}

fn check(classes: u32, boxes: u32, overlap: f32) -> Result<()> {
    ensure!(classes > 0 && boxes > 0, "num_classes and num_box must be at least 1, found {classes} and {boxes}");
    ensure!((0.0..=1.0).contains(&overlap), "nms_threshold must be from 0 to 1, found {overlap}");
    Ok(())
}

impl Yolov3DetectionOutput {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let p = param.yolov3_detection_output_param.as_deref().cloned().unwrap_or_default();
        check(p.num_classes(), p.num_box(), p.nms_threshold())?;
        let (groups, boxes) = (p.mask_group_num() as usize, p.num_box() as usize);
        ensure!(groups > 0, "mask_group_num, the number of bottoms, must be at least 1");
        let counts = [
            ("mask", p.mask.len(), lgm_core::count(&[groups, boxes])),
            ("anchors_scale", p.anchors_scale.len(), groups),
        ];
        for (name, found, wanted) in counts {
            ensure!(
                found == wanted,
                "{name} must be given {wanted} times for mask_group_num {groups}, found {found} times"
            );
        }
        ensure!(!p.anchors_scale.contains(&0), "anchors_scale, the pixels of a cell, must be positive, found 0");
        let pairs = pairs(&p.biases)?;
        let anchor = |mask: &u32, scale: u32| {
            let pair = pairs.get(*mask as usize).ok_or_else(|| {
                Error::config(format!(
                    "mask {mask} names none of the {} pairs of biases, which count from 0",
                    pairs.len()
                ))
            })?;
            Ok(pair.map(|side| side / f64::from(scale)))
        };
        let of_bottom = |(masks, scale): (&[u32], &u32)| masks.iter().map(|mask| anchor(mask, *scale)).collect();
        Node::compute(YoloDetectionOutput {
            classes: p.num_classes() as usize,
            confidence: p.confidence_threshold(),
            overlap: p.nms_threshold(),
            anchors: p.mask.chunks(boxes).zip(&p.anchors_scale).map(of_bottom).collect::<Result<_>>()?,
            bottoms: [groups; 2],
            softmax: false,
            gaussian: p.gaussian_box(),
            images: 0,
            grids: Vec::new(),
        })
    }
}

impl YoloDetectionOutput {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let p = param.yolo_detection_output_param.as_deref().cloned().unwrap_or_default();
        check(p.num_classes(), p.num_box(), p.nms_threshold())?;
        ensure!(p.coords() == 4, "coords must be 4, x, y, width and height of a box; found {}", p.coords());
        let anchors = pairs(&p.biases)?;
        let (found, wanted) = (anchors.len(), p.num_box() as usize);
        ensure!(
            found >= wanted,
            "biases must be a pair for each of the {wanted} boxes of num_box, found {found} pairs"
        );
        Node::compute(YoloDetectionOutput {
            classes: p.num_classes() as usize,
            confidence: p.confidence_threshold(),
            overlap: p.nms_threshold(),
            anchors: vec![anchors[..wanted].to_vec()],
            bottoms: [1, 2],
            softmax: true,
            gaussian: false,
            images: 0,
            grids: Vec::new(),
        })
    }

    fn anchors(&self, bottom: usize) -> &[[f64; 2]] {
        &self.anchors[bottom.min(self.anchors.len() - 1)]
    }

    /// Channels of a box before its classes.
    fn before(&self) -> usize {
        if self.gaussian { 9 } else { 5 }
    }

    fn channels(&self) -> usize {
        self.before() + self.classes
    }

    /// Boxes of an image.
    fn boxes(&self) -> usize {
        let of = |(b, grid): (usize, &[usize; 2])| lgm_core::count(&[self.anchors(b).len(), grid[0], grid[1]]);
        self.grids.iter().enumerate().map(of).sum()
    }

    /// The best class, and the probability that it is there if an object is.
    fn best<T: Float>(&self, score: impl Fn(usize) -> T) -> (usize, T) {
        let best = (1..self.classes).fold(0, |best, k| if score(k) > score(best) { k } else { best });
        let most = score(best);
        if self.softmax {
            let sum: T = (0..self.classes).map(|k| exp(score(k) - most)).sum();
            return (best, T::one() / sum);
        }
        (best, sigmoid(most))
    }

    /// What is found in an image: confidence, class and box.
    fn detect<T: Float>(&self, bottoms: &[&[T]], image: usize) -> Vec<(T, usize, Corners<T>)> {
        let (before, channels) = (self.before(), self.channels());
        let apart = if self.gaussian { 2 } else { 1 };
        let mut found = Vec::new();
        for (b, (grid, bottom)) in self.grids.iter().zip(bottoms).enumerate() {
            let ([rows, columns], anchors) = (*grid, self.anchors(b));
            let area = rows * columns;
            for (n, anchor) in anchors.iter().enumerate() {
                let sides = [(anchor[0], columns), (anchor[1], rows)].map(|(side, cells)| T::of(side / cells as f64));
                let numbers = &bottom[(image * anchors.len() + n) * channels * area..][..channels * area];
                for at in 0..area {
                    let number = |c: usize| numbers[c * area + at];
                    let (class, probability) = self.best(|k| number(before + k));
                    let mut confidence = sigmoid(number(before - 1)) * probability;
                    if self.gaussian {
                        let sure: T = (0..4).map(|c| T::one() - sigmoid(number(2 * c + 1))).sum();
                        confidence *= sure * T::of(0.25);
                    }
                    if confidence > T::of(self.confidence.into()) {
                        let place = |c: usize, cell: usize, cells: usize| {
                            (T::of(cell as f64) + sigmoid(number(c * apart))) / T::of(cells as f64)
                        };
                        let (x, y) = (place(0, at % columns, columns), place(1, at / columns, rows));
                        let [w, h] = [2, 3].map(|c| T::of(0.5) * exp(number(c * apart)) * sides[c - 2]);
                        found.push((confidence, class, [x - w, y - h, x + w, y + h]));
                    }
                }
            }
        }
        found.sort_by(|a, b| descending(a.0, b.0));
        let corners: Vec<Corners<T>> = found.iter().map(|f| f.2).collect();
        suppress(&corners, iou, self.overlap, 1.0, usize::MAX).into_iter().map(|k| found[k]).collect()
    }
}

impl Layer for YoloDetectionOutput {
    fn arity(&self) -> Arity {
        Arity::range(self.bottoms[0]..=self.bottoms[1], 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.images = bottoms[0].shape.first().copied().unwrap_or_default();
        self.grids = Vec::new();
        for (i, bottom) in bottoms.iter().enumerate() {
            let (shape, channels) = (&bottom.shape, lgm_core::count(&[self.anchors(i).len(), self.channels()]));
            ensure!(
                shape.len() == 4 && shape[0] == self.images && shape[1] == channels,
                "bottom {i} must be of shape ({}, num_box · ({} + num_classes) = {channels}, rows, columns), found {shape}",
                self.images,
                self.before()
            );
            self.grids.push([shape[2], shape[3]]);
        }
        let rows = lgm_core::count(&[self.images, self.boxes()]);
        let top = bottoms[0].with_shape(Shape::from([1, 1, rows, ROW]));
        Ok(Plan { no_backward: true, no_gradient: (0..bottoms.len()).collect(), ..Plan::new(vec![top]) })
    }
}

impl HostLayer for YoloDetectionOutput {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let bottoms = (0..self.grids.len()).map(|b| io.bottom::<T>(b)).collect::<Result<Vec<_>>>()?;
        let mut found = vec![Vec::new(); self.images];
        for_each_part(&mut found, 1, |image, found| found[0] = self.detect(&bottoms, image));
        let mut rows = io.top::<T>(0)?.chunks_exact_mut(ROW);
        for (image, found) in found.iter().enumerate() {
            for ((confidence, class, corners), row) in found.iter().zip(&mut rows) {
                row[..3].copy_from_slice(&[T::of(image as f64), T::of((class + 1) as f64), *confidence]);
                row[3..].copy_from_slice(corners);
            }
        }
        unused(rows, self.images);
        Ok(())
    }
}

impl YoloDetectionOutput {
    fn lists(&self) -> Lists {
        Lists {
            images: self.images,
            classes: 1,
            background: None,
            boxes: self.boxes(),
            scores: 1,
            locations: 1,
            top: None,
            most: None,
            keep: None,
            least: self.confidence,
            threshold: self.overlap,
            eta: 1.0,
            pixels: false,
        }
    }
}

impl DeviceLayer for YoloDetectionOutput {
    /// The anchors of each bottom, in shares of the image.
    fn constants(&self) -> Vec<f32> {
        let of = |(b, [rows, columns]): (usize, &[usize; 2])| {
            let cells = [*columns, *rows];
            let shares = move |anchor: &[f64; 2]| [0, 1].map(|k| (anchor[k] / cells[k] as f64) as f32);
            self.anchors(b).iter().flat_map(shares)
        };
        self.grids.iter().enumerate().flat_map(of).collect()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let all = self.images * self.boxes();
        plan.scratch = [all, all, 4 * all].map(|floats| plan.tops[0].with_shape([floats])).to_vec();
        self.lists().plan(plan)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (confidences, kinds, boxes) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?);
        let (mut first, mut anchors) = (0, io.call.constants);
        for (b, &[rows, columns]) in self.grids.iter().enumerate() {
            let each = self.anchors(b).len();
            let args = args![
                confidences,
                kinds,
                boxes,
                io.bottom(b)?,
                anchors,
                extent(self.images)?,
                extent(each)?,
                extent(rows)?,
                extent(columns)?,
                extent(self.classes)?,
                extent(first)?,
                extent(self.boxes())?,
                u32::from(self.softmax),
                u32::from(self.gaussian)
            ];
            io.launch("yolo_boxes", Grid::elements(self.images * each * rows * columns), args)?;
            (first, anchors) = (first + each * rows * columns, anchors.floats(2 * each));
        }
        let listed = self.lists().make(&mut io, 3, (confidences, boxes, Some(kinds)))?;
        let y = io.top(0)?;
        self.lists().write(io.call, y, self.images * self.boxes(), &listed)
    }
}
