//! DetectionOutput: what a net of prior boxes found, a row for each detection.
//!
//! For every image and class but `background_label_id`, the boxes with a score above `confidence_threshold`, the `nms_param.top_k`
//! best of them, and of those none that overlaps a better one by more than `nms_param.nms_threshold` (times `eta` after each box
//! that is kept, down to one half); then the `keep_top_k` best of the image. A box is what its prediction makes of its prior:
//! corners plus offsets (`code_type: CORNER`), offsets in units of the prior's sides (`CORNER_SIZE`), or offsets of the centre in such
//! units and logarithms of the sides' ratios (`CENTER_SIZE`); offsets are in units of the prior's variances unless
//! `variance_encoded_in_target`. With `share_location` all classes have one prediction.
//!
//! Bottoms: predictions `[N, P · 4]`, times the classes without `share_location`; scores `[N, P · num_classes]`; priors
//! `[1, 2, P · 4]`, boxes and their variances; optionally the images that `visualize` draws on, which are not read. Top `[1, 1, rows, 7]`: image, class, score, x and y of the first and the last corner,
//! by image, then class, then score. No gradient.
//!
//! Source: see [`super`]. SSD's Caffe makes the top as long as there are detections. Here it has room for all there can be, and
//! rows that are not used are −1, but the first of them has the last image's number, so that images without a detection are known. `save_output_param` and `visualize` have no effect.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Device, DeviceLayer, DeviceQueue, Float, Fwd, Grid, Host, HostLayer, Layer, Node, Plan,
    Result, Shape, args, ensure,
};
use lgm_cpu::for_each_part;
use lgm_proto::LayerParameter;

use super::boxes::{Code, Corners, Suppression, descending};
use super::lists::Lists;
use crate::common::launch::extent;

#[cfg(test)]
mod tests;

/// The layer; see the module.
pub struct DetectionOutput {
    classes: usize,
    share_location: bool,
    background: Option<usize>,
    code: Code,
    suppression: Suppression,
    keep: Option<usize>,
    least: f32,
    images: usize,
    priors: usize,
}

/// Numbers of a row.
const ROW: usize = 7;

/// A number that counts where it is not negative.
fn limit(value: i32) -> Option<usize> {
    usize::try_from(value).ok()
}

impl DetectionOutput {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let p = param.detection_output_param.clone().map(|p| *p).unwrap_or_default();
        let classes = p.num_classes() as usize;
        ensure!(classes > 0, "detection_output_param needs a num_classes of at least 1");
        let nms = p.nms_param.unwrap_or_default();
        let (threshold, eta) = (nms.nms_threshold(), nms.eta());
        ensure!(threshold >= 0.0, "nms_threshold must be a number of at least 0, found {threshold}");
        ensure!(eta > 0.0 && eta <= 1.0, "eta must be above 0 and at most 1, found {eta}");
        let top = nms.top_k.and_then(limit);
        let least = p.confidence_threshold.unwrap_or(f32::MIN);
        ensure!(!least.is_nan(), "confidence_threshold must be a number, found {least}");
        if p.save_output_param.as_ref().is_some_and(|save| !save.output_directory().is_empty()) {
            tracing::warn!("save_output_param has no effect: detections are in the top alone");
        }
        Node::compute(DetectionOutput {
            classes,
            share_location: p.share_location(),
            background: limit(p.background_label_id()),
            code: Code { kind: p.code_type(), scaled: !p.variance_encoded_in_target() },
            suppression: Suppression { threshold, top, eta },
            keep: limit(p.keep_top_k()),
            least,
            images: 0,
            priors: 0,
        })
    }

    /// Predictions for each prior.
    fn locations(&self) -> usize {
        if self.share_location { 1 } else { self.classes }
    }

    /// Classes that are looked for.
    fn looked_for(&self) -> impl Iterator<Item = usize> {
        let background = self.background;
        (0..self.classes).filter(move |&c| Some(c) != background)
    }

    /// Rows that an image may have.
    fn rows(&self) -> usize {
        let of_class = self.suppression.top.map_or(self.priors, |top| top.min(self.priors));
        let all = lgm_core::count(&[self.looked_for().count(), of_class]);
        self.keep.map_or(all, |keep| keep.min(all))
    }

    /// What is found in an image: class, score and box.
    fn detect<T: Float>(&self, locations: &[T], scores: &[T], priors: &[T]) -> Vec<(usize, T, Corners<T>)> {
        let four = |from: &[T], i: usize| -> [T; 4] { std::array::from_fn(|k| from[4 * i + k]) };
        let (corners, variances) = priors.split_at(4 * self.priors);
        let mut found = Vec::new();
        for class in self.looked_for() {
            let location = if self.share_location { 0 } else { class };
            let decoded = |i: usize| {
                let prediction = four(locations, i * self.locations() + location);
                self.code.decode(four(corners, i), four(variances, i), prediction)
            };
            let score = |i: usize| scores[i * self.classes + class];
            let kept = self.suppression.kept(self.priors, T::of(self.least.into()), score, decoded);
            found.extend(kept.into_iter().map(|(score, _, corners)| (class, score, corners)));
        }
        if let Some(keep) = self.keep.filter(|&keep| keep < found.len()) {
            found.sort_by(|a, b| descending(a.1, b.1));
            found.truncate(keep);
            found.sort_by_key(|&(class, ..)| class);
        }
        found
    }
}

impl Layer for DetectionOutput {
    fn arity(&self) -> Arity {
        Arity::range(3..=4, 1..=1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        (self.images, self.priors) = super::check_predictions(bottoms, self.locations(), self.classes)?;
        let rows = lgm_core::count(&[self.images, self.rows()]);
        let top = bottoms[0].with_shape(Shape::from([1, 1, rows, ROW]));
        Ok(Plan { no_backward: true, ..Plan::new(vec![top]) })
    }
}

impl HostLayer for DetectionOutput {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (locations, scores, priors) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.bottom::<T>(2)?);
        let y = io.top::<T>(0)?;
        let (per_location, per_score) = (self.priors * self.locations() * 4, self.priors * self.classes);
        let mut found = vec![Vec::new(); self.images];
        for_each_part(&mut found, 1, |image, found| {
            let locations = &locations[image * per_location..][..per_location];
            found[0] = self.detect(locations, &scores[image * per_score..][..per_score], priors);
        });
        let mut rows = y.chunks_exact_mut(ROW);
        for (image, found) in found.iter().enumerate() {
            for ((class, score, corners), row) in found.iter().zip(&mut rows) {
                row[..3].copy_from_slice(&[T::of(image as f64), T::of(*class as f64), *score]);
                row[3..].copy_from_slice(corners);
            }
        }
        unused(rows, self.images);
        Ok(())
    }
}

/// Fills rows behind the last detection of so many images.
pub(super) fn unused<'a, T: Float>(rows: impl Iterator<Item = &'a mut [T]>, images: usize) {
    for (i, row) in rows.enumerate() {
        row.fill(-T::one());
        if i == 0 {
            row[0] = T::of(images as f64 - 1.0);
        }
    }
}

impl DetectionOutput {
    fn lists(&self) -> Lists {
        Lists {
            images: self.images,
            classes: self.looked_for().count(),
            background: self.background,
            boxes: self.priors,
            scores: self.classes,
            locations: self.locations(),
            top: self.suppression.top,
            most: None,
            keep: self.keep,
            least: self.least,
            threshold: self.suppression.threshold,
            eta: self.suppression.eta,
            pixels: false,
        }
    }

    /// Predictions of the batch.
    fn predictions(&self) -> usize {
        self.images * self.priors * self.locations()
    }
}

impl DeviceLayer for DetectionOutput {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![plan.tops[0].with_shape([4 * self.predictions()])];
        self.lists().plan(plan)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (predictions, scores, priors) = (io.bottom(0)?, io.bottom(1)?, io.bottom(2)?);
        let (boxes, [code, scaled]) = (io.scratch(0)?, self.code.args());
        let (count, locations) = (extent(self.priors)?, extent(self.locations())?);
        let args = args![boxes, predictions, priors, code, scaled, count, locations, extent(self.images)?];
        io.launch("detection_decode", Grid::elements(self.predictions()), args)?;
        let listed = self.lists().make(&mut io, 1, (scores, boxes, None))?;
        let y = io.top(0)?;
        self.lists().write(io.call, y, self.images * self.rows(), &listed)
    }
}
