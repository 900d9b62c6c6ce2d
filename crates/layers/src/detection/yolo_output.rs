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
//! confidence, x and y of the first and the last corner, by image and confidence; rows that are not used are −1. Host only; no
//! gradient.
//!
//! Source: Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger" (2017) and "YOLOv3: An Incremental Improvement" (2018); the
//! layers of MobileNet-YOLO's Caffe. Those have one list for all images of a batch, as of image 0; here each image has its own.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Error, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, Shape, ensure,
};
use lgm_cpu::for_each_part;
use lgm_cpu::math::{exp, sigmoid};
use lgm_proto::LayerParameter;

use super::boxes::{Corners, descending, iou, suppress};

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
        Node::host_only(YoloDetectionOutput {
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
        Node::host_only(YoloDetectionOutput {
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
        rows.for_each(|row| row.fill(-T::one()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Harness, assert_close, check, config_error};

    fn third(bottoms: usize, param: &str) -> String {
        let bottoms: String = (0..bottoms).map(|b| format!("bottom: 'b{b}' ")).collect();
        format!(
            "layer {{ name: 'y' type: 'Yolov3DetectionOutput' {bottoms} top: 'd' yolov3_detection_output_param {{ {param} }} }}"
        )
    }

    fn second(bottoms: usize, param: &str) -> String {
        third(bottoms, param).replace("Yolov3D", "YoloD").replace("yolov3_d", "yolo_d")
    }

    const THIRD: &str = "num_classes: 3 num_box: 2 mask_group_num: 2 mask: 2 mask: 3 mask: 0 mask: 1 anchors_scale: 32 anchors_scale: 16
                         biases: 10 biases: 14 biases: 23 biases: 27 biases: 37 biases: 58 biases: 81 biases: 82";
    const SECOND: &str = "num_classes: 3 num_box: 2 biases: 1 biases: 0.5 biases: 2 biases: 3";

    #[test]
    fn cases() {
        let two =
            |text: String, channels: usize| Case::new(text).bottom([2, channels, 3, 2]).bottom([2, channels, 6, 4]);
        let of_third = |more: &str, channels: usize| two(third(2, &format!("{THIRD} {more}")), channels);
        check(
            &registry(),
            &[
                of_third("", 16),
                of_third("confidence_threshold: 0.3 nms_threshold: 0.1", 16),
                of_third("gaussian_box: true confidence_threshold: 0.1", 24),
                two(second(2, SECOND), 16),
                Case::new(second(1, &format!("{SECOND} confidence_threshold: 0.2"))).bottom([1, 16, 4, 4]),
            ],
        );
    }

    /// The first row found in the first of two images, each of one row of two cells, whose channels are these, cell by cell.
    fn first(text: &str, channels: &[[f64; 2]]) -> Vec<f64> {
        let shape: Shape = [2, channels.len(), 1, 2].into();
        let harness = Harness::new(&registry(), text, Phase::Test, DType::F64, &[shape]).unwrap();
        let mut second = channels.to_vec();
        let objectness = channels.len() - 3;
        second[objectness] = [-50.0; 2];
        let out = harness.run(&harness.forward_inputs(&[&[channels, &second].concat().concat()]).unwrap()).unwrap();
        assert!(out.tops[0][7..].iter().all(|v| *v == -1.0), "{:?}", out.tops[0]);
        out.tops[0][..7].to_vec()
    }

    #[test]
    fn boxes_are_where_their_cells_say() {
        // The centre of the first cell; half the image wide and, as the image is one cell high, twice the cell high, doubled.
        let channels =
            [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [f64::ln(2.0), 0.0], [0.0, -50.0], [0.0, 0.0], [f64::ln(3.0), 0.0]];
        let corners = [0.25 - 0.25, 0.5 - 2.0, 0.25 + 0.25, 0.5 + 2.0];
        let param = "num_classes: 2 num_box: 1 mask_group_num: 1 mask: 0 anchors_scale: 10 biases: 10 biases: 20 confidence_threshold: 0.1";
        let row = |confidence: f64| [&[0.0, 2.0, confidence][..], &corners].concat();
        assert_close("third", &first(&third(1, param), &channels), &row(0.5 * 0.75), 1e-9);
        let param = "num_classes: 2 num_box: 1 biases: 1 biases: 2 confidence_threshold: 0.1";
        assert_close("second", &first(&second(1, param), &channels), &row(0.5 * 0.75), 1e-9);
        let param =
            param.replace("confidence", "mask_group_num: 1 mask: 0 anchors_scale: 1 gaussian_box: true confidence");
        let sure = [f64::ln(3.0), 0.0];
        let [x, y, w, h, rest @ ..] = channels;
        let channels = [&[x, sure, y, sure, w, [0.0; 2], h, [0.0; 2]], &rest[..]].concat();
        assert_close("gaussian", &first(&third(1, &param), &channels), &row(0.5 * 0.75 * 0.375), 1e-9);
    }

    #[test]
    fn mistakes_are_named() {
        let shapes: [Shape; 2] = [[1, 16, 2, 2].into(), [1, 16, 4, 4].into()];
        for (param, needles) in [
            (THIRD.replace("num_classes: 3", "num_classes: 0"), &["num_classes"][..]),
            (format!("{THIRD} nms_threshold: 2"), &["nms_threshold", "found 2"]),
            (THIRD.replace("mask_group_num: 2", "mask_group_num: 0"), &["mask_group_num"]),
            (THIRD.replace("mask: 3", ""), &["mask must be given 4 times", "found 3"]),
            (THIRD.replace("anchors_scale: 16", ""), &["anchors_scale must be given 2 times", "found 1"]),
            (THIRD.replace("anchors_scale: 16", "anchors_scale: 0"), &["anchors_scale", "found 0"]),
            (THIRD.replace("mask: 3", "mask: 4"), &["mask 4", "4 pairs"]),
            (THIRD.replace("biases: 82", ""), &["pairs", "found 7"]),
            (THIRD.replace("biases: 82", "biases: -1"), &["positive", "found -1"]),
            (THIRD.replace("num_classes: 3", "num_classes: 4"), &["bottom 0", "18", "(1, 16, 2, 2)"]),
        ] {
            config_error(&registry(), &third(2, &param), &shapes, needles);
        }
        for (param, needles) in [
            (format!("{SECOND} coords: 5"), &["coords", "found 5"][..]),
            (SECOND.replace("biases: 2 biases: 3", ""), &["2 boxes", "found 1 pairs"]),
        ] {
            config_error(&registry(), &second(2, &param), &shapes, needles);
        }
    }
}
