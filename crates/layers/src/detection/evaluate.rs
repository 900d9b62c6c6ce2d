//! DetectionEvaluate: which detections find a ground truth; what average precision is computed from (a solver's
//! `eval_type: "detection"`).
//!
//! In every image and class, in descending order of score, a detection is a true positive if the ground truth that it overlaps most
//! it overlaps by `overlap_threshold` at least, and no detection before it had that; else a false positive. Without
//! `evaluate_difficult_gt` one whose ground truth is difficult is neither, and such ground truth does not count.
//!
//! With a `name_size_file`, a line (name, height, width) for each image in the order of the data, from its first again after its last,
//! boxes are compared in whole pixels of the images, as they were before `resize_param`: cut to the image, a box's last pixel part
//! of it.
//!
//! Bottoms: detections `[1, 1, rows, 7]` (image, class, score, xmin, ymin, xmax, ymax), as DetectionOutput gives them; ground truth
//! `[1, 1, rows, 8]` (see MultiBoxLoss). Image or class −1 is none. Top `[1, 1, classes + rows, 5]`: for each class but the
//! background (−1, class, number of ground truths, −1, −1), then for each detection (image, class, score, 1 or 0 for a true
//! positive, 1 or 0 for a false one), by image, class and score. No gradient.
//!
//! Source: see [`super`]. SSD's Caffe makes the top as long as there are detections; here rows that are not used are −1. Where images
//! have sizes, that of an image is found by its number there as here, but there images without any detection in a batch that has
//! some are not counted.

use std::path::Path;

use lgm_core::{
    Arity, BlobSpec, BuildCx, Error, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Plan, Result, Shape, ensure,
};
use lgm_proto::resize_parameter::ResizeMode;
use lgm_proto::{LayerParameter, ResizeParameter, strings};

use super::boxes::{Corners, descending, iou, pixel_iou};
use super::truth::{Truth, rows_of, truth};

#[cfg(test)]
mod tests;

mod device;

/// The layer; see the module.
pub struct DetectionEvaluate {
    classes: usize,
    background: usize,
    threshold: f32,
    difficult: bool,
    /// Height and width of each image; none where boxes are compared as they are.
    sizes: Vec<[usize; 2]>,
    resize: Option<ResizeParameter>,
    rows: [usize; 2],
}

/// Numbers of a detection, and of a row of the top.
const DETECTION: usize = 7;
const ROW: usize = 5;

/// A detection, and what it is.
struct Detection<T> {
    image: usize,
    class: usize,
    score: T,
    corners: Corners<T>,
}

impl DetectionEvaluate {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let p = param.detection_evaluate_param.clone().map(|p| *p).unwrap_or_default();
        let (classes, threshold) = (p.num_classes() as usize, p.overlap_threshold());
        ensure!(classes > 0, "detection_evaluate_param needs a num_classes of at least 1");
        ensure!(threshold > 0.0, "overlap_threshold must be above 0, found {threshold}");
        let sizes = p
            .name_size_file
            .as_deref()
            .map(|file| read_sizes(&strings::to_path(file)))
            .transpose()?
            .unwrap_or_default();
        if let Some(resize) = &p.resize_param {
            let (height, width) = (resize.height(), resize.width());
            ensure!(height > 0 && width > 0, "resize_param needs height and width, found {height} and {width}");
        }
        Node::compute(DetectionEvaluate {
            classes,
            background: p.background_label_id() as usize,
            threshold,
            difficult: p.evaluate_difficult_gt(),
            sizes,
            resize: p.resize_param,
            rows: [0; 2],
        })
    }

    /// What is wrong with a row of detections.
    fn not_found(&self, row: usize, image: f64, class: f64) -> Error {
        Error::config(format!(
            "row {row} of the detections is of image {image} and class {class}; classes go from 0 to {}, of which {} is the background",
            self.classes - 1,
            self.background
        ))
    }

    fn looked_for(&self) -> impl Iterator<Item = usize> {
        (0..self.classes).filter(|&class| class != self.background)
    }

    /// The detections, by image, class and score.
    fn detections<T: Float>(&self, rows: &[T]) -> Result<Vec<Detection<T>>> {
        let mut found = Vec::new();
        for (i, row) in rows.chunks_exact(DETECTION).enumerate() {
            let (image, class) = (row[0].trunc().f64(), row[1].trunc().f64());
            if image == -1.0 || class == -1.0 {
                continue;
            }
            let is_class = (0.0..self.classes as f64).contains(&class) && class as usize != self.background;
            if !(is_class && (0.0..1e9).contains(&image)) {
                return Err(self.not_found(i, image, class));
            }
            let corners = std::array::from_fn(|k| row[3 + k]);
            found.push(Detection { image: image as usize, class: class as usize, score: row[2], corners });
        }
        found.sort_by(|a, b| (a.image, a.class).cmp(&(b.image, b.class)).then_with(|| descending(a.score, b.score)));
        Ok(found)
    }

    fn truths<T: Float>(&self, rows: &[T]) -> Result<Vec<Truth<T>>> {
        let all = (0..self.rows[1]).map(|row| truth(rows, row, self.classes, Some(self.background)));
        let mut found = all.filter_map(Result::transpose).collect::<Result<Vec<_>>>()?;
        found.sort_by_key(|truth| (truth.image, truth.class));
        Ok(found)
    }

    /// A box in pixels of an image of a height and width, which was resized for the net.
    fn in_pixels<T: Float>(&self, corners: Corners<T>, [height, width]: [usize; 2]) -> Corners<T> {
        let clip = |corners: Corners<T>, [y, x]: [T; 2]| -> Corners<T> {
            std::array::from_fn(|k| corners[k].min(if k % 2 == 0 { x } else { y }).max(T::zero()))
        };
        let scale = |corners: Corners<T>, [y, x]: [T; 2]| -> Corners<T> {
            std::array::from_fn(|k| corners[k] * if k % 2 == 0 { x } else { y })
        };
        let size = [T::of(height as f64), T::of(width as f64)];
        let unit = [T::one(); 2];
        let Some(resize) = &self.resize else { return scale(clip(corners, unit), size) };
        let to_net = [resize.height_scale(), resize.width_scale()];
        match resize.resize_mode() {
            ResizeMode::FitSmallSize if !to_net.contains(&0) => {
                clip(scale(corners, to_net.map(|side| T::of(side.into()))), size)
            }
            ResizeMode::FitLargeSizeAndPad => {
                let (y, x) = (f64::from(resize.height()), f64::from(resize.width()));
                let aspect = width as f64 / height as f64;
                // What of the padded image is the image, on each side of its middle.
                let half = [(x / aspect / y).min(1.0) * 0.5, (y * aspect / x).min(1.0) * 0.5];
                let back = |k: usize| {
                    let half = T::of(half[(k + 1) % 2]);
                    (corners[k] - T::of(0.5) + half) / (half + half)
                };
                scale(clip(std::array::from_fn(back), unit), size)
            }
            _ => scale(clip(corners, unit), size),
        }
    }
}

/// The heights and widths that a file gives, a line (name, height, width) an image.
fn read_sizes(path: &Path) -> Result<Vec<[usize; 2]>> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let text = strings::of_file(&bytes);
    let mut sizes = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| (1..1 << 20).contains(n));
        match fields[..] {
            [] => {}
            [_, height, width] if number(height).is_some() && number(width).is_some() => {
                sizes.extend(number(height).zip(number(width)).map(|(height, width)| [height, width]));
            }
            _ => {
                let what = format!("line {} must be an image's name, height and width, found '{line}'", i + 1);
                return Err(Error::data(path, what));
            }
        }
    }
    match sizes.is_empty() {
        true => Err(Error::data(path, "there is no image in it: expected lines of a name, a height and a width")),
        false => Ok(sizes),
    }
}

impl Layer for DetectionEvaluate {
    fn arity(&self) -> Arity {
        Arity::exactly(2, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        ensure!(
            shape.last() == Some(&DETECTION),
            "bottom 0, the detections, must have rows of {DETECTION} numbers (image, class, score, xmin, ymin, xmax, ymax), \
             found shape {shape}"
        );
        self.rows = [shape.count() / DETECTION, rows_of(&bottoms[1], 1)?];
        let top = bottoms[0].with_shape(Shape::from([1, 1, self.looked_for().count() + self.rows[0], ROW]));
        // How many images went before, which is where in the file the batch's sizes are.
        let params = if self.sizes.is_empty() { vec![] } else { vec![ParamSpec::carried([1])] };
        Ok(Plan { no_backward: true, params, ..Plan::new(vec![top]) })
    }
}

impl HostLayer for DetectionEvaluate {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let detections = self.detections(io.bottom::<T>(0)?)?;
        let truths = self.truths(io.bottom::<T>(1)?)?;
        let mut before = 0;
        if !self.sizes.is_empty() {
            // Of images without a detection the number of the last may be there.
            let images = io.bottom::<T>(0)?.chunks_exact(DETECTION).map(|row| row[0].trunc().f64());
            let images = images.filter(|image| (0.0..1e9).contains(image)).map(|image| image as usize).max();
            let images = images.max(truths.last().map(|t| t.image));
            let carried = &mut io.param_mut::<T>(0)?[0];
            before = carried.f64() as usize;
            *carried = T::of(((before + images.map_or(0, |image| image + 1)) % self.sizes.len()) as f64);
        }
        let counts = |t: &&Truth<T>| self.difficult || !t.difficult;
        let mut rows = io.top::<T>(0)?.chunks_exact_mut(ROW);
        for (class, row) in self.looked_for().zip(&mut rows) {
            let positives = truths.iter().filter(|t| t.class == class).filter(counts).count();
            row.copy_from_slice(&[-1.0, class as f64, positives as f64, -1.0, -1.0].map(T::of));
        }
        for of_class in detections.chunk_by(|a, b| (a.image, a.class) == (b.image, b.class)) {
            let Detection { image, class, .. } = of_class[0];
            let from = truths.partition_point(|t| (t.image, t.class) < (image, class));
            let to = truths.partition_point(|t| (t.image, t.class) <= (image, class));
            let truths = &truths[from..to];
            let size = (!self.sizes.is_empty()).then(|| self.sizes[(before + image) % self.sizes.len()]);
            let overlap = |a: Corners<T>, b: Corners<T>| match size {
                Some(size) => pixel_iou(self.in_pixels(a, size), self.in_pixels(b, size)),
                None => iou(a, b),
            };
            let mut found = vec![false; truths.len()];
            for (detection, row) in of_class.iter().zip(&mut rows) {
                let overlaps = truths.iter().map(|t| overlap(detection.corners, t.corners)).enumerate();
                let best = overlaps.reduce(|best, next| if next.1 > best.1 { next } else { best });
                let best = best.filter(|&(_, overlap)| overlap >= T::of(self.threshold.into()));
                let is = match best {
                    Some((t, _)) if !self.difficult && truths[t].difficult => [0.0, 0.0],
                    Some((t, _)) if !std::mem::replace(&mut found[t], true) => [1.0, 0.0],
                    _ => [0.0, 1.0],
                };
                row[..3].copy_from_slice(&[T::of(image as f64), T::of(class as f64), detection.score]);
                row[3..].copy_from_slice(&is.map(T::of));
            }
        }
        rows.for_each(|row| row.fill(-T::one()));
        Ok(())
    }
}
