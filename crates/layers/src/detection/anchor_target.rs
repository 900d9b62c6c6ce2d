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
//! `positive_weight` p they are p / N of objects' and (1 − p) / N of background's, of N drawn of that kind. Host only; no gradient.
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
        Node::host_only(AnchorTarget { param: p, anchors, objects: Objects::default(), stream, positions: [0; 2] })
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
        let positive = draw(&mut draws, positive, (f64::from(p.fg_fraction()) * batch as f64) as usize);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Step};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

    fn layer(param: &str) -> String {
        format!(
            "layer {{ name: 'a' type: 'AnchorTarget' bottom: 's' bottom: 'g' bottom: 'i' top: 'l' top: 't' top: 'n' top: 'o' \
             anchor_target_param {{ {param} }} }}"
        )
    }

    /// Anchors of 16 by 16, 8 apart, in two rows of four: those of the first row begin at 0, 8, 16 and 24.
    const SMALL: &str = "feat_stride: 8 ratio: 1 scale: 1";

    /// labels, targets, inside and outside weights of eight anchors, on an image 24 high and 40 wide.
    fn run(param: &str, objects: &[f64], width: usize, batch: u64) -> Vec<Vec<f64>> {
        let shapes: [Shape; 3] = [[1, 2, 2, 4].into(), [objects.len() / width, width].into(), [1, 3].into()];
        let harness = Harness::new(&registry(), &layer(param), Phase::Train, DType::F64, &shapes).unwrap();
        let mut inputs = harness.forward_inputs(&[&[0.0; 16], objects, &[24.0, 40.0, 1.0]]).unwrap();
        inputs.step = Step { batch, ..inputs.step };
        harness.run(&inputs).unwrap().tops
    }

    #[test]
    fn cases() {
        let objects = Fill::Given(vec![10.0, 12.0, 40.0, 50.0, 1.0, 50.0, 4.0, 75.0, 40.0, 2.0]);
        let shares = Fill::Given(vec![0.0, 1.0, 0.0, 0.1, 0.1, 0.5, 0.6, 0.0]);
        let case = |param: &str, anchors: usize| {
            Case::new(layer(param)).bottom_of([1, 2 * anchors, 6, 8], Fill::Normal(0.0, 1.0))
        };
        let image = Fill::Given(vec![60.0, 80.0, 1.5]);
        check(
            &registry(),
            &[
                case("feat_stride: 10 scale: 2 scale: 3", 6)
                    .bottom_of([1, 2, 5], objects.clone())
                    .bottom_of([1, 3], image.clone()),
                case("feat_stride: 10 ratio: 1 scale: 2 batch_size: 8 clobber_positives: true positive_weight: 0.3", 1)
                    .bottom_of([2, 5], objects)
                    .bottom_of([3], image.clone()),
                case("feat_stride: 10 ratio: 1 scale: 2 allowed_border: 5", 1)
                    .bottom_of([1, 1, 1, 8], shares)
                    .bottom_of([1, 3], image),
            ],
        );
    }

    #[test]
    fn anchors_are_labelled_by_their_overlaps() {
        // The object is the second anchor, moved down by 2 and narrower by 4; a row of class 0 is none.
        let objects = [8.0, 2.0, 19.0, 17.0, 3.0, 0.0, 0.0, 9.0, 9.0, 0.0];
        let tops = run(SMALL, &objects, 5, 0);
        // They overlap it by 112 of 336, 168 of 280, 56 of 392 and 0; those below by 80 of 368, 120 of 328, and less.
        assert_eq!(tops[0], [-1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0]);
        let by = [-0.125, 0.125, 0.75f64.ln(), 0.0];
        for k in 0..4 {
            let mut want = [0.0; 8];
            want[1] = by[k];
            assert_close("targets", &tops[1][8 * k..][..8], &want, 1e-12);
            want[1] = 1.0;
            assert_eq!(tops[2][8 * k..][..8], want);
            let want = [0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0].map(|anchors| anchors / 6.0);
            assert_close("outside weights", &tops[3][8 * k..][..8], &want, 1e-12);
        }
        // As fractions of the image, and with one that is difficult.
        let shares = [0.0, 3.0, 0.0, 0.2, 2.0 / 24.0, 0.5, 0.75, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.4, 0.6, 1.0];
        let found = run(SMALL, &shares, 8, 0);
        found.iter().zip(&tops).for_each(|(found, want)| assert_close("of shares", found, want, 1e-12));
        let weighted = run(&format!("{SMALL} positive_weight: 0.4"), &objects, 5, 0);
        assert_close("weights", &weighted[3][..4], &[0.0, 0.4, 0.12, 0.12], 1e-7);
    }

    #[test]
    fn the_best_anchor_of_an_object_is_its() {
        // Small: it overlaps the first anchor by 16 of 256, and no other.
        let objects = [0.0, 0.0, 3.0, 3.0, 1.0];
        assert_eq!(run(SMALL, &objects, 5, 0)[0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(run(&format!("{SMALL} clobber_positives: true"), &objects, 5, 0)[0], [0.0; 8]);
        // Where there is no object, or none on the map, all is background.
        assert_eq!(run(SMALL, &[0.0, 0.0, 9.0, 9.0, 0.0], 5, 0)[0], [0.0; 8]);
        assert_eq!(run(SMALL, &[60.0, 0.0, 69.0, 9.0, 1.0], 5, 0)[0], [0.0; 8]);
    }

    #[test]
    fn as_many_are_drawn_as_asked_for_and_others_in_each_pass() {
        let objects = [0.0, 0.0, 15.0, 15.0, 1.0, 16.0, 8.0, 31.0, 23.0, 1.0];
        let labels =
            |batch| run(&format!("{SMALL} batch_size: 3 negative_overlap: 0.35"), &objects, 5, batch)[0].clone();
        let mut seen = [0; 8];
        for batch in 0..100 {
            let found = labels(batch);
            assert_eq!(found, labels(batch), "the same pass");
            let of = |label: f64| found.iter().filter(|l| **l == label).count();
            assert_eq!((of(1.0), of(0.0)), (1, 2), "{found:?}");
            (0..8).filter(|&i| found[i] >= 0.0).for_each(|i| seen[i] += 1);
        }
        assert!([0, 6].iter().all(|&i| (30..70).contains(&seen[i])), "{seen:?}");
        assert_eq!(seen.iter().sum::<i32>(), 300);
    }

    #[test]
    fn anchors_beyond_the_image_are_left_out() {
        // Those of 32 by 32, around the same centres: none lies on an image 24 high, and four hold the object.
        let big = "feat_stride: 8 ratio: 1 scale: 2";
        let objects = [0.0, 0.0, 9.0, 9.0, 1.0];
        assert_eq!(run(big, &objects, 5, 0)[0], [-1.0; 8]);
        let border = run(&format!("{big} allowed_border: 8"), &objects, 5, 0);
        assert_eq!(border[0].iter().filter(|l| **l == 1.0).count(), 4, "{:?}", border[0]);
    }

    #[test]
    fn mistakes_are_named() {
        let shapes: [Shape; 3] = [[1, 2, 2, 2].into(), [1, 5].into(), [1, 3].into()];
        for (param, needles) in [
            ("", &["anchor_target_param", "feat_stride of at least 1, found 0"][..]),
            ("feat_stride: 8 scale: 1 ratio: -1", &["every ratio", "-1"]),
            ("feat_stride: 8 batch_size: 0", &["batch_size"]),
            ("feat_stride: 8 positive_overlap: 1.5", &["positive_overlap", "1.5"]),
            ("feat_stride: 8 negative_overlap: nan", &["negative_overlap", "NaN"]),
            ("feat_stride: 8 fg_fraction: -0.5", &["fg_fraction", "-0.5"]),
            ("feat_stride: 8 positive_weight: 1", &["positive_weight", "1"]),
            ("feat_stride: 8", &["bottom 0", "9 anchors", "(1, 18, 2, 2)", "(1, 2, 2, 2)"]),
        ] {
            config_error(&registry(), &layer(param), &shapes, needles);
        }
        let small = layer(SMALL);
        let wrong = |objects: &[usize], image: &[usize], needles: &[&str]| {
            config_error(&registry(), &small, &[[1, 2, 2, 2].into(), objects.into(), image.into()], needles);
        };
        wrong(&[4, 6], &[1, 3], &["bottom 1", "5 numbers", "8", "(4, 6)"]);
        wrong(&[4, 5], &[1, 2], &["bottom 2", "(1, 2)"]);
        let harness = Harness::new(&registry(), &small, Phase::Train, DType::F64, &shapes).unwrap();
        for (object, needles) in [
            ([5.0, 0.0, 3.0, 9.0, 1.0], &["row 0", "x1 5", "x2 3"][..]),
            ([0.0, f64::NAN, 3.0, 9.0, 1.0], &["row 0", "NaN"]),
        ] {
            let inputs = harness.forward_inputs(&[&[0.0; 8], &object, &[24.0, 40.0, 1.0]]).unwrap();
            let text = harness.run(&inputs).err().unwrap().to_string();
            lgm_testkit::says(&text, needles);
        }
    }
}
