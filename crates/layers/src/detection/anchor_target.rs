//! AnchorTarget: which anchors a region proposal network is to learn as objects and as background, and how the former are to be moved.
//!
//! Of the anchors (see Proposal) that reach no more than `allowed_border` pixels beyond the image, those are objects' that overlap one
//! by `positive_overlap` or more, or overlap an object as much as any anchor does; those are background that overlap every object by
//! less than `negative_overlap`. With `clobber_positives` the latter rule comes first. Of objects' anchors as many are drawn as make
//! `fg_fraction` of `batch_size`, of background what is left of `batch_size`; the others are not learned from.
//!
//! Bottoms: the scores, `[1, 2 · A, H, W]`, of which only the shape counts; objects, rows of (x1, y1, x2, y2, class) in pixels of the
//! image, of which the first and the last belong to the object, or rows as AnnotatedData makes them; the image's height, width and
//! scale, at least; a fourth is not read. A row of a class below 1, or an object that is marked as difficult, is none. Tops: labels
//! `[1, 1, A · H, W]`, 1 of an object, 0 of background and −1 of neither; how each anchor is to be moved, and what a difference from
//! that weighs inside and outside SmoothL1Loss, `[1, 4 · A, H, W]` each. The outside weights are 1 / N, of N anchors drawn, or with
//! `positive_weight` p they are p / N of objects' and (1 − p) / N of background's, of N drawn of that kind. No gradient.
//!
//! Source: Ren et al., "Faster R-CNN" (2015), and the Python layer of their code, which this one is in place of. Where we differ: an
//! object that no anchor overlaps has none, where all anchors become its there; targets of anchors that are not objects' are 0.
//! Draws come from the run's seed and the iteration.

use lgm_core::rng::{Philox, stream_id};
use lgm_core::{
    Arity, BlobSpec, BuildCx, Error, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, Shape, ensure,
};
use lgm_proto::{AnchorTargetParameter, LayerParameter};

use super::anchors::{Anchors, offsets};
use super::boxes::Corners;
use super::targets::{draw, most, overlaps};
use super::truth::Objects;

mod device;
#[cfg(test)]
mod tests;

/// The layer; see the module.
pub struct AnchorTarget {
    param: AnchorTargetParameter,
    anchors: Anchors,
    objects: Objects,
    stream: u64,
    positions: [usize; 2],
}

impl AnchorTarget {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let stream = stream_id(param.name(), "anchors");
        let p = param.anchor_target_param.clone().unwrap_or_default();
        let anchors = Anchors::new("anchor_target_param", p.feat_stride(), p.base_size(), &p.ratio, &p.scale)?;
        ensure!(p.batch_size() > 0, "batch_size must be at least 1");
        let parts = [
            ("positive_overlap", p.positive_overlap()),
            ("negative_overlap", p.negative_overlap()),
            ("fg_fraction", p.fg_fraction()),
        ];
        for (name, value) in parts {
            ensure!((0.0..=1.0).contains(&value), "{name} must be a number from 0 to 1, found {value}");
        }
        let weight = p.positive_weight();
        ensure!(
            weight < 0.0 || (weight > 0.0 && weight < 1.0),
            "positive_weight must lie between 0 and 1, or below 0 for none, found {weight}"
        );
        Node::compute(AnchorTarget { param: p, anchors, objects: Objects::default(), stream, positions: [0; 2] })
    }

    /// How many anchors are drawn as objects', at the most.
    fn most_positive(&self) -> usize {
        (f64::from(self.param.fg_fraction()) * f64::from(self.param.batch_size())) as usize
    }

    /// Whether an anchor lies on an image, of a height and a width.
    fn is_on<T: Float>(&self, [x1, y1, x2, y2]: Corners<T>, [height, width]: [T; 2]) -> bool {
        let border = T::of(self.param.allowed_border().into());
        x1 >= -border && y1 >= -border && x2 < width + border && y2 < height + border
    }

    /// The anchors, by their numbers, that may be learned as objects and as background, from their overlaps with `objects` objects.
    fn candidates<T: Float>(&self, overlaps: &[T], anchors: usize, objects: usize) -> [Vec<usize>; 2] {
        let p = &self.param;
        let (positive, negative) = (T::of(p.positive_overlap().into()), T::of(p.negative_overlap().into()));
        let row = |i: usize| &overlaps[i * objects..][..objects];
        let mut best = vec![T::zero(); objects];
        for i in 0..anchors {
            best.iter_mut().zip(row(i)).for_each(|(best, &overlap)| *best = best.max(overlap));
        }
        let mut found = [Vec::new(), Vec::new()];
        for i in 0..anchors {
            let (overlap, _) = most(row(i));
            let is_best = row(i).iter().zip(&best).any(|(overlap, best)| *overlap == *best && *best > T::zero());
            let is_background = overlap < negative;
            if (is_best || overlap >= positive) && !(is_background && p.clobber_positives()) {
                found[0].push(i);
            } else if is_background {
                found[1].push(i);
            }
        }
        found
    }
}

impl Layer for AnchorTarget {
    fn arity(&self) -> Arity {
        Arity::range(3..=4, 4..=4)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (scores, anchors) = (&bottoms[0].shape, self.anchors.len());
        if scores.len() != 4 || scores[0] != 1 || scores[1] != 2 * anchors {
            let what = format!("the scores, bottom 0, of one image and {anchors} anchors (ratios times scales),");
            let map = |axis: usize| scores.get(axis).copied().unwrap_or(1);
            let expected = Shape::from([1, 2 * anchors, map(2), map(3)]);
            return Err(Error::Shape { what, expected, found: scores.clone() });
        }
        self.objects = Objects::of(&bottoms[1], 1)?;
        let image = &bottoms[2].shape;
        ensure!(image.count() >= 3, "bottom 2 must hold the image's height, width and scale, found shape {image}");
        self.positions = [scores[2], scores[3]];
        let top = |channels: usize, height: usize| bottoms[0].with_shape(Shape::from([1, channels, height, scores[3]]));
        let moves = || top(4 * anchors, scores[2]);
        let tops = vec![top(1, anchors * scores[2]), moves(), moves(), moves()];
        Ok(Plan { no_backward: true, index_tops: (0..tops.len()).collect(), ..Plan::new(tops) })
    }
}

impl HostLayer for AnchorTarget {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let image = io.bottom::<T>(2)?;
        let objects = self.objects.read(io.bottom::<T>(1)?, Some([image[0], image[1]]), None)?;
        let [height, width] = self.positions;
        let area = height * width;
        let mut anchors: Vec<(usize, usize)> = Vec::new();
        let mut boxes: Vec<Corners<T>> = Vec::new();
        for at in 0..area {
            for (a, corners) in self.anchors.around::<T>(at, width).enumerate() {
                if self.is_on(corners, [image[0], image[1]]) {
                    anchors.push((a, at));
                    boxes.push(corners);
                }
            }
        }
        let overlaps = overlaps(&boxes, &objects);
        let [positive, negative] = self.candidates(&overlaps, boxes.len(), objects.len());
        let (p, step) = (&self.param, io.call.step);
        let mut draws = Philox::new(step.seed, self.stream).from(step.batch << 32);
        let batch = p.batch_size() as usize;
        let positive = draw(&mut draws, positive, self.most_positive());
        let negative = draw(&mut draws, negative, batch - positive.len());

        let weight = f64::from(p.positive_weight());
        let [of_positive, of_negative] = match weight > 0.0 {
            true => [weight / positive.len() as f64, (1.0 - weight) / negative.len() as f64],
            false => [1.0 / (positive.len() + negative.len()) as f64; 2],
        };
        let (labels, moves, inside, outside) = (io.top::<T>(0)?, io.top::<T>(1)?, io.top::<T>(2)?, io.top::<T>(3)?);
        labels.fill(-T::one());
        [&mut *moves, &mut *inside, &mut *outside].into_iter().for_each(|top| top.fill(T::zero()));
        for (chosen, label, weight) in [(&positive, T::one(), of_positive), (&negative, T::zero(), of_negative)] {
            for &i in chosen {
                let (a, at) = anchors[i];
                labels[a * area + at] = label;
                (0..4).for_each(|k| outside[(4 * a + k) * area + at] = T::of(weight));
            }
        }
        for &i in &positive {
            let ((a, at), (_, object)) = (anchors[i], most(&overlaps[i * objects.len()..][..objects.len()]));
            for (k, by) in offsets(boxes[i], objects[object].corners).into_iter().enumerate() {
                moves[(4 * a + k) * area + at] = by;
                inside[(4 * a + k) * area + at] = T::one();
            }
        }
        Ok(())
    }
}
