//! MultiBoxLoss: what a net of prior boxes, SSD, learns from: (1/Z) · (w · Σ loc + Σ conf).
//!
//! Every image's prior boxes are matched with its ground truth: each ground truth has the box that overlaps it most (of those that
//! are free, the largest overlaps first), and with `match_type: PER_PREDICTION` each box left has the ground truth that it overlaps
//! most, if by `overlap_threshold` at least. Boxes are the priors or, without `use_prior_for_matching`, what the predictions make of
//! them. With `ignore_cross_boundary_bbox` those that reach out of the image count as neither.
//!
//! loc, of each matched box and coordinate, is f(p − t), p the prediction, t that which would find the ground truth (`code_type`, in
//! units of the prior's variances), and f(d) = ½d² (`L2`), or this where ∣d∣ < 1, else ∣d∣ − ½ (`SMOOTH_L1`). With `bp_inside`
//! coordinates outside the image count 0. w is `loc_weight`.
//!
//! conf, of each box learned from, is −ln softmax(s)ₖ (`SOFTMAX`, a probability counting as the least normal single-precision
//! number at least), k the class of its ground truth, else `background_label_id`; or Σ over classes of the cross-entropy of σ(s)
//! with 1 for k and 0 for others (`LOGISTIC`). With `map_object_to_agnostic` the class of every object is the one after the
//! background.
//!
//! Learned from are the matched boxes and, of the others with an overlap below `neg_overlap`, those of the largest conf, up to
//! `neg_pos_ratio` times as many (`mining_type: MAX_NEGATIVE`); of all, the `sample_size` of the largest loc + conf
//! (`HARD_EXAMPLE`); or all (`NONE`; then LOGISTIC has no class for a box without an object). An `nms_param` leaves out of the
//! choice what overlaps a harder one by more than its `nms_threshold`, as priors (`use_prior_for_nms`) or as predicted. An image
//! without ground truth is not learned from unless by `NONE`.
//!
//! Z, at least 1, is the number of matched boxes (`normalization: VALID`, default), of all (`FULL`), of images (`BATCH_SIZE`), or 1
//! (`NONE`). A `propagate_down: false` of the first or second bottom leaves out loc or conf.
//!
//! Gradient, with matches and choice held fixed: dp = dL · w/Z · f′(p − t); ds = dL/Z · (softmax(s) − 1ₖ), or σ in its place. As in
//! SSD's Caffe, with `encode_variance_in_target` the loss has p and t over the variances, and the gradient is that by p over them.
//!
//! Bottoms: predictions `[N, P · 4]`, times the classes without `share_location`; scores `[N, P · num_classes]`; priors
//! `[1, 2, P · 4]`, boxes and their variances; ground truth `[1, 1, rows, 8]` (image, class, instance, xmin, ymin, xmax, ymax,
//! difficult), image −1 for no box. Difficult ones count only with `use_difficult_gt`. Top: the loss.
//!
//! Source: see [`super`]. Where we differ: a ground truth of a class or image that there is not is an error that names it; an
//! `nms_param` without `top_k` looks at all boxes (there at none); LOGISTIC without mining is right for every image (there for
//! the first).

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure};
use lgm_cpu::for_each_part;
use lgm_cpu::math::{exp, ln, sigmoid, softplus};
use lgm_proto::loss_parameter::NormalizationMode;
use lgm_proto::multi_box_loss_parameter::{ConfLossType, LocLossType, MatchType, MiningType};
use lgm_proto::{LayerParameter, LossParameter};

use self::image::Image;
use self::matching::{Apart, Matching, Mining};
use super::boxes::{Code, Corners};
use super::truth::{Truth, rows_of, truth};
use crate::common::loops::for_rows;
use crate::common::loss::fixed_normalizer;

mod device;
mod image;
mod matching;
#[cfg(test)]
mod tests;

/// The layer; see the module.
pub struct MultiBoxLoss {
    classes: usize,
    share_location: bool,
    background: usize,
    code: Code,
    matching: Matching,
    by_prior: bool,
    difficult: bool,
    agnostic: bool,
    bp_inside: bool,
    squared: bool,
    logistic: bool,
    loc_weight: f64,
    mining: Mining,
    apart: Option<Apart>,
    apart_by_prior: bool,
    /// Whether loc and conf are part of the loss.
    parts: [bool; 2],
    loss: LossParameter,
    images: usize,
    priors: usize,
    rows: usize,
}

/// What is the same for all images.
struct Batch<'a, T> {
    locations: &'a [T],
    scores: &'a [T],
    priors: &'a [T],
    /// The ground truths, each image's together, and where each image's begin, and the last one's end.
    truths: Vec<Truth<T>>,
    starts: Vec<usize>,
}

fn bad_variance(found: f64) -> Error {
    Error::config(format!("the variances of the priors must be positive, found {found}"))
}

fn not_in_batch(row: usize, image: f64, images: usize) -> Error {
    Error::config(format!(
        "row {row} of the ground truth is of image {image}, but the batch has {images}, numbered from 0"
    ))
}

fn four<T: Float>(from: &[T], i: usize) -> [T; 4] {
    std::array::from_fn(|k| from[4 * i + k])
}

impl MultiBoxLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let p = param.multibox_loss_param.clone().map(|p| *p).unwrap_or_default();
        let (classes, background) = (p.num_classes() as usize, p.background_label_id() as usize);
        ensure!(classes > 0, "multibox_loss_param needs a num_classes of at least 1");
        let logistic = p.conf_loss_type() == ConfLossType::Logistic;
        ensure!(
            logistic || background < classes,
            "background_label_id must be one of the {classes} classes of num_classes with SOFTMAX, found {background}"
        );
        for (name, value) in [
            ("loc_weight", p.loc_weight()),
            ("overlap_threshold", p.overlap_threshold()),
            ("neg_pos_ratio", p.neg_pos_ratio()),
            ("neg_overlap", p.neg_overlap()),
        ] {
            ensure!(value.is_finite() && value >= 0.0, "{name} must be a number of at least 0, found {value}");
        }
        let mining = match p.mining_type() {
            MiningType::None => Mining::All,
            MiningType::MaxNegative => Mining::Negatives { ratio: p.neg_pos_ratio(), overlap: p.neg_overlap() },
            MiningType::HardExample => {
                let size = usize::try_from(p.sample_size()).unwrap_or_default();
                ensure!(size > 0, "sample_size must be at least 1, found {}", p.sample_size());
                Mining::Hardest(size)
            }
        };
        let mines = !matches!(mining, Mining::All);
        if let Some(asked) = p.do_neg_mining {
            ensure!(
                asked == mines,
                "do_neg_mining: {asked} contradicts mining_type: {}; leave do_neg_mining out",
                p.mining_type().as_str_name()
            );
        }
        ensure!(
            p.share_location() || !mines,
            "with share_location: false every box must be learned from: give mining_type: NONE"
        );
        let agnostic = p.map_object_to_agnostic();
        ensure!(
            !agnostic || classes == 2 && background == 0,
            "map_object_to_agnostic needs a num_classes of 2 and a background_label_id of 0, found {classes} and {background}"
        );
        let nms = p.nms_param.filter(|nms| nms.nms_threshold() > 0.0);
        let top = |top: Option<i32>| top.and_then(|top| usize::try_from(top).ok()).unwrap_or(usize::MAX);
        let part = |i: usize| param.propagate_down.get(i).copied().unwrap_or(true);
        Node::compute(MultiBoxLoss {
            classes,
            share_location: p.share_location(),
            background,
            code: Code { kind: p.code_type(), scaled: !p.encode_variance_in_target() },
            matching: Matching {
                threshold: (p.match_type() == MatchType::PerPrediction).then(|| p.overlap_threshold()),
                inside: p.ignore_cross_boundary_bbox(),
            },
            by_prior: p.use_prior_for_matching(),
            difficult: p.use_difficult_gt(),
            agnostic,
            bp_inside: p.bp_inside(),
            squared: p.loc_loss_type() == LocLossType::L2,
            logistic,
            loc_weight: p.loc_weight().into(),
            mining,
            apart: nms.map(|nms| Apart { threshold: nms.nms_threshold(), top: top(nms.top_k) }),
            apart_by_prior: p.use_prior_for_nms(),
            parts: [part(0), part(1)],
            loss: param.loss_param.clone().unwrap_or_default(),
            images: 0,
            priors: 0,
            rows: 0,
        })
    }

    /// Predictions for each prior.
    fn locations(&self) -> usize {
        if self.share_location { 1 } else { self.classes }
    }

    fn batch<'a, T: Float>(
        &self,
        locations: &'a [T],
        scores: &'a [T],
        priors: &'a [T],
        rows: &[T],
    ) -> Result<Batch<'a, T>> {
        if let Some(v) = priors[4 * self.priors..].iter().find(|v| v.is_nan() || **v <= T::zero()) {
            return Err(bad_variance(v.f64()));
        }
        // With agnostic classes the net need not tell those of the data apart.
        let classes = if self.agnostic { usize::MAX } else { self.classes };
        let mut truths = Vec::new();
        for row in 0..self.rows {
            let Some(found) = truth(rows, row, classes, Some(self.background))? else { continue };
            if found.image >= self.images {
                return Err(not_in_batch(row, found.image as f64, self.images));
            }
            if self.difficult || !found.difficult {
                truths.push(found);
            }
        }
        truths.sort_by_key(|truth| truth.image);
        let starts = (0..=self.images).map(|image| truths.partition_point(|t| t.image < image)).collect();
        Ok(Batch { locations, scores, priors, truths, starts })
    }

    fn z(&self, matched: usize) -> f64 {
        let fixed = fixed_normalizer(&self.loss, NormalizationMode::Valid, self.images * self.priors, self.images);
        fixed.unwrap_or(matched as f64).max(1.0)
    }

    /// The class that a box is to have which is matched with a ground truth of `class`.
    fn target(&self, class: usize) -> usize {
        if self.agnostic { self.background + 1 } else { class }
    }

    /// The box that prediction `at` of prior `i` makes of it.
    fn decoded<T: Float>(&self, batch: &Batch<'_, T>, i: usize, at: usize) -> Corners<T> {
        let (corners, variances) = batch.priors.split_at(4 * self.priors);
        self.code.decode(four(corners, i), four(variances, i), four(batch.locations, at))
    }

    /// Where the prediction of an image, a prior and a class lies.
    fn at(&self, image: usize, i: usize, class: usize) -> usize {
        (image * self.priors + i) * self.locations() + class
    }

    /// The differences of prediction `at` of prior `i` from what would find a ground truth: 0 where they do not count.
    fn differences<T: Float>(&self, batch: &Batch<'_, T>, i: usize, at: usize, truth: &Truth<T>) -> [T; 4] {
        let (corners, variances) = batch.priors.split_at(4 * self.priors);
        let (prior, variances, prediction) = (four(corners, i), four(variances, i), four(batch.locations, at));
        let target = self.code.encode(prior, variances, truth.corners);
        let found = if self.by_prior { prior } else { self.code.decode(prior, variances, prediction) };
        std::array::from_fn(|k| {
            let d = prediction[k] - target[k];
            match self.bp_inside && (found[k] < T::zero() || found[k] > T::one()) {
                true => T::zero(),
                false if self.code.scaled => d,
                false => d / variances[k],
            }
        })
    }

    fn loc<T: Float>(&self, d: T) -> T {
        let half = T::of(0.5);
        if self.squared || d.abs() < T::one() { half * d * d } else { d.abs() - half }
    }

    fn slope<T: Float>(&self, d: T) -> T {
        if self.squared || d.abs() < T::one() { d } else { d.signum() }
    }

    /// conf of a box's scores before the part of its classes is taken off: ln Σ eˢ, or Σ ln (1 + eˢ).
    fn conf<T: Float>(&self, scores: &[T]) -> T {
        if self.logistic {
            return scores.iter().map(|&s| softplus(s)).sum();
        }
        let most = scores.iter().fold(T::neg_infinity(), |most, &s| most.max(s));
        most + ln(scores.iter().map(|&s| exp(s - most)).sum::<T>())
    }
}

impl Layer for MultiBoxLoss {
    fn arity(&self) -> Arity {
        Arity::range(4..=4, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        (self.images, self.priors) = super::check_predictions(bottoms, self.locations(), self.classes)?;
        self.rows = rows_of(&bottoms[3], 3)?;
        ensure!(self.rows <= 1 << 24, "the ground truth has {} rows, more than single precision counts", self.rows);
        let (matched, boxes) = ([self.images, self.priors, self.locations()], [self.images, self.priors]);
        Ok(Plan {
            saved: vec![bottoms[0].with_shape(matched), bottoms[0].with_shape(boxes)],
            scratch: vec![bottoms[0].with_shape(boxes)],
            backward_bottoms: vec![0, 1, 2, 3],
            no_gradient: vec![2, 3],
            flops: 4 * bottoms[1].shape.count() as u64,
            ..Plan::loss(bottoms[0].dtype)
        })
    }
}

/// The place of an image's ground truth that forward left, −1 for none.
fn kept<T: Float>(place: T) -> Option<usize> {
    (place >= T::zero()).then(|| place.f64() as usize)
}

impl HostLayer for MultiBoxLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let batch = self.batch(io.bottom::<T>(0)?, io.bottom(1)?, io.bottom(2)?, io.bottom(3)?)?;
        let mut images: Vec<Option<Image<T>>> = (0..self.images).map(|_| None).collect();
        for_each_part(&mut images, 1, |n, image| image[0] = Some(self.matched(&batch, n)));
        let mut images: Vec<Image<T>> = images.into_iter().flatten().collect();
        let confs = io.scratch::<T>(0)?;
        let least = T::of(f64::from(f32::MIN_POSITIVE).ln());
        for_rows(confs, 1, 8 * self.classes, |at, conf| {
            let (n, i) = (at / self.priors, at % self.priors);
            let scores = &batch.scores[at * self.classes..][..self.classes];
            let matches = images[n].matches.iter().map(|m| m[i].truth());
            let own: T = self.targets(&batch, n, matches).map(|class| scores[class]).sum();
            let loss = self.conf(scores) - own;
            // Not the other way round, so that what is no number stays so.
            conf[0] = if !self.logistic && loss > -least { -least } else { loss };
        });
        let (confs, mut sums) = (&*confs, vec![[0.0; 2]; self.images]);
        let mut both: Vec<(&mut Image<T>, &mut [f64; 2])> = images.iter_mut().zip(&mut sums).collect();
        for_each_part(&mut both, 1, |n, both| {
            let (image, sums) = &mut both[0];
            **sums = self.learned(&batch, n, image, &confs[n * self.priors..][..self.priors]);
        });
        let matched = images.iter().flat_map(|image| image.matches.iter().flatten());
        let z = self.z(matched.filter(|m| m.truth().is_some()).count());
        let weights = [if self.parts[0] { self.loc_weight } else { 0.0 }, if self.parts[1] { 1.0 } else { 0.0 }];
        let loss: f64 = (0..2).map(|k| weights[k] * sums.iter().map(|sums| sums[k]).sum::<f64>()).sum();
        io.top::<T>(0)?[0] = T::of(loss / z);
        if let (Some(places), Some(chosen)) = (io.saved::<T>(0)?, io.saved::<T>(1)?) {
            let (each, locations) = (self.priors.max(1), self.locations());
            for ((n, places), chosen) in places.chunks_mut(each * locations).enumerate().zip(chosen.chunks_mut(each)) {
                let image = &images[n];
                for (at, place) in places.iter_mut().enumerate() {
                    let found = image.matches[at % locations][at / locations].truth();
                    *place = found.map_or(-T::one(), |t| T::of(t as f64));
                }
                for (to, &from) in chosen.iter_mut().zip(&image.chosen) {
                    *to = if from { T::one() } else { T::zero() };
                }
            }
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let batch = self.batch(io.bottom::<T>(0)?, io.bottom(1)?, io.bottom(2)?, io.bottom(3)?)?;
        let (places, chosen) = (io.saved::<T>(0)?, io.saved::<T>(1)?);
        let matched = places.iter().filter(|place| kept(**place).is_some()).count();
        let scale = io.top_diff::<T>(0)?[0].f64() / self.z(matched);
        let (locations, classes) = (self.locations(), self.classes);
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            let scale = T::of(if self.parts[0] { scale * self.loc_weight } else { 0.0 });
            for_rows(dx, 4, 64, |at, dx| {
                let (n, i) = (at / locations / self.priors, at / locations % self.priors);
                dx.fill(T::zero());
                let Some(place) = kept(places[at]) else { return };
                let differences = self.differences(&batch, i, at, &batch.truths[batch.starts[n] + place]);
                dx.iter_mut().zip(differences).for_each(|(dx, d)| *dx = scale * self.slope(d));
            });
        }
        if let Some(ds) = io.bottom_diff::<T>(1)? {
            let scale = T::of(if self.parts[1] { scale } else { 0.0 });
            for_rows(ds, classes, 8 * classes, |at, ds| {
                if chosen[at] == T::zero() {
                    return ds.fill(T::zero());
                }
                let scores = &batch.scores[at * classes..][..classes];
                if self.logistic {
                    ds.iter_mut().zip(scores).for_each(|(ds, &s)| *ds = scale * sigmoid(s));
                } else {
                    let whole = self.conf(scores);
                    ds.iter_mut().zip(scores).for_each(|(ds, &s)| *ds = scale * exp(s - whole));
                }
                let matches = places[at * locations..][..locations].iter().map(|&place| kept(place));
                self.targets(&batch, at / self.priors, matches).for_each(|class| ds[class] -= scale);
            });
        }
        Ok(())
    }
}
