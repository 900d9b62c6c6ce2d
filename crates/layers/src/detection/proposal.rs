//! Proposal: the regions that a region proposal network proposes.
//!
//! Around every position of the maps, `feat_stride` pixels of the image apart, lie A anchors: boxes of each `ratio` of height to width
//! (0.5, 1 and 2 unless given) and each `scale` (8, 16 and 32), about as large as a square of `base_size` times the scale. A position's predictions move an anchor's centre in
//! units of its sides and scale these by their exponential; the box is cut to the image, and left out where a side is less than
//! `min_size` times the image's scale. Of the `pre_nms_topn` best by score, those are taken that overlap no better one by more than
//! `nms_thresh`, up to `post_nms_topn`.
//!
//! Bottoms: scores `[1, 2 · A, H, W]`, the anchors' as background before those as objects; predictions `[1, 4 · A, H, W]`, x, y, width
//! and height of each anchor; the image's height, width and scale, at least. Tops: regions `[post_nms_topn, 5]`, an image's number (0)
//! and x and y of the first and the last pixel, the best first; their scores `[post_nms_topn, 1]`, if asked for. No gradient.
//!
//! Source: Ren et al., "Faster R-CNN" (2015); the layer of this name of Intel's and other forks of Caffe. Those make the tops as long
//! as there are regions. Here rows that are not used are zero: a region of the image's first pixel, of score 0.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Device, DeviceLayer, DeviceQueue, Error, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    Plan, Result, Shape, args, ensure,
};
use lgm_proto::{LayerParameter, ProposalParameter};

use super::anchors::Anchors;
use super::boxes::{Corners, descending, pixel_iou, suppress};
use super::lists::Lists;
use crate::common::launch::extent;

/// The layer; see the module.
pub struct Proposal {
    param: ProposalParameter,
    anchors: Anchors,
    positions: [usize; 2],
}

/// Numbers of a region.
const ROW: usize = 5;

impl Proposal {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.proposal_param.clone().map(|p| *p).unwrap_or_default();
        let anchors =
            Anchors::new("proposal_param", param.feat_stride(), param.base_size(), &param.ratio, &param.scale)?;
        ensure!(param.post_nms_topn() > 0, "post_nms_topn must be at least 1");
        ensure!(param.nms_thresh() >= 0.0, "nms_thresh must be a number of at least 0, found {}", param.nms_thresh());
        Node::compute(Proposal { param, anchors, positions: [0; 2] })
    }

    /// The box that a position's predictions make of an anchor, cut to the image; `None` where it is too small.
    fn moved<T: Float>(&self, [x1, y1, x2, y2]: Corners<T>, by: [T; 4], image: [T; 2], least: T) -> Option<Corners<T>> {
        let (one, half) = (T::one(), T::of(0.5));
        let along = |first: T, last: T, shift: T, scale: T, extent: T| {
            let side = last - first + one;
            let (center, half_side) = (first + half * side + shift * side, half * scale.exp() * side);
            let clip = |v: T| v.max(T::zero()).min(extent - one);
            [clip(center - half_side), clip(center + half_side)]
        };
        let [x1, x2] = along(x1, x2, by[0], by[2], image[1]);
        let [y1, y2] = along(y1, y2, by[1], by[3], image[0]);
        // Written so that what is no number is left out.
        (x2 - x1 + one >= least && y2 - y1 + one >= least).then_some([x1, y1, x2, y2])
    }
}

impl Layer for Proposal {
    fn arity(&self) -> Arity {
        Arity::range(3..=3, 1..=2)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let scores = &bottoms[0].shape;
        let anchors = self.anchors.len();
        ensure!(
            scores.len() == 4,
            "bottom 0 must have 4 axes (images, 2 · anchors, height, width), found shape {scores}"
        );
        self.positions = [scores[2], scores[3]];
        for (i, channels) in [(0, 2 * anchors), (1, 4 * anchors)] {
            let (expected, found) = (Shape::from([1, channels, scores[2], scores[3]]), bottoms[i].shape.clone());
            if found != expected {
                let what = format!("bottom {i}, of one image and {anchors} anchors (ratios times scales),");
                return Err(Error::Shape { what, expected, found });
            }
        }
        let image = &bottoms[2].shape;
        ensure!(image.count() >= 3, "bottom 2 must hold the image's height, width and scale, found shape {image}");
        let rows = self.param.post_nms_topn() as usize;
        let top = |width: usize| bottoms[0].with_shape(Shape::from([rows, width]));
        Ok(Plan {
            no_backward: true,
            index_tops: (0..tops).collect(),
            ..Plan::new([top(ROW), top(1)].into_iter().take(tops).collect())
        })
    }
}

impl HostLayer for Proposal {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (scores, predictions, image) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.bottom::<T>(2)?);
        let (p, count) = (&self.param, self.anchors.len());
        let [height, width] = self.positions;
        let area = height * width;
        let (extents, least) = ([image[0], image[1]], T::of(p.min_size().into()) * image[2]);
        let mut found: Vec<(T, Corners<T>)> = Vec::new();
        for at in 0..area {
            for (a, anchor) in self.anchors.around(at, width).enumerate() {
                let by = std::array::from_fn(|k| predictions[(4 * a + k) * area + at]);
                let corners = self.moved(anchor, by, extents, least);
                found.extend(corners.map(|corners| (scores[(count + a) * area + at], corners)));
            }
        }
        found.sort_by(|a, b| descending(a.0, b.0));
        found.truncate(usize::try_from(p.pre_nms_topn()).unwrap_or(usize::MAX));
        let boxes: Vec<Corners<T>> = found.iter().map(|&(_, corners)| corners).collect();
        let kept = suppress(&boxes, pixel_iou, p.nms_thresh(), 1.0, p.post_nms_topn() as usize);
        let regions = io.top::<T>(0)?;
        regions.fill(T::zero());
        regions.chunks_exact_mut(ROW).zip(&kept).for_each(|(row, &k)| row[1..].copy_from_slice(&boxes[k]));
        if io.tops.len() > 1 {
            let top = io.top::<T>(1)?;
            top.fill(T::zero());
            top.iter_mut().zip(&kept).for_each(|(top, &k)| *top = found[k].0);
        }
        Ok(())
    }
}

impl Proposal {
    fn lists(&self) -> Lists {
        let [height, width] = self.positions;
        Lists {
            images: 1,
            classes: 1,
            background: None,
            boxes: height * width * self.anchors.len(),
            scores: 1,
            locations: 1,
            top: usize::try_from(self.param.pre_nms_topn()).ok(),
            most: Some(self.param.post_nms_topn() as usize),
            keep: None,
            least: 0.0,
            threshold: self.param.nms_thresh(),
            eta: 1.0,
            pixels: true,
        }
    }
}

impl DeviceLayer for Proposal {
    fn constants(&self) -> Vec<f32> {
        self.anchors.of_first().0
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let boxes = self.lists().boxes;
        plan.scratch = [boxes, 4 * boxes].map(|floats| plan.tops[0].with_shape([floats])).to_vec();
        self.lists().plan(plan)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (scores, predictions, image) = (io.bottom(0)?, io.bottom(1)?, io.bottom(2)?);
        let (listed, boxes) = (io.scratch(0)?, io.scratch(1)?);
        let ([height, width], lists) = (self.positions, self.lists());
        let (count, stride) = (extent(self.anchors.len())?, self.anchors.of_first().1);
        let args = args![
            listed,
            boxes,
            scores,
            predictions,
            image,
            io.call.constants,
            count,
            stride,
            extent(height)?,
            extent(width)?,
            self.param.min_size() as f32
        ];
        io.launch("proposal_boxes", Grid::elements(lists.boxes), args)?;
        let [found, counts] = lists.make(&mut io, 2, (listed, boxes, None))?.entries();
        let rows = self.param.post_nms_topn() as usize;
        let (regions, top) = (io.top(0)?, if io.tops.len() > 1 { Some(io.top(1)?) } else { None });
        let args = args![regions, top, found, counts, listed, boxes, extent(rows)?];
        io.launch("proposal_rows", Grid::elements(rows), args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn layer(param: &str, tops: &str) -> String {
        format!(
            "layer {{ name: 'p' type: 'Proposal' bottom: 's' bottom: 'd' bottom: 'i' top: 'r' {tops} proposal_param {{ {param} }} }}"
        )
    }

    const PAPER: &str = "feat_stride: 16 ratio: 0.5 ratio: 1 ratio: 2 scale: 8 scale: 16 scale: 32";

    #[test]
    fn cases() {
        let image = Fill::Given(vec![60.0, 80.0, 1.5]);
        let case = |param: &str, tops: &str, anchors: usize| {
            Case::new(layer(param, tops))
                .bottom_of([1, 2 * anchors, 3, 4], Fill::Uniform(0.0, 1.0))
                .bottom_of([1, 4 * anchors, 3, 4], Fill::Normal(0.0, 0.3))
                .bottom_of([1, 3], image.clone())
        };
        check(
            &registry(),
            &[
                case(&format!("{PAPER} min_size: 4 post_nms_topn: 20"), "top: 'scores'", 9),
                case(
                    "feat_stride: 20 ratio: 1 scale: 1 min_size: 2 pre_nms_topn: 7 post_nms_topn: 5 nms_thresh: 0.3",
                    "",
                    1,
                ),
            ],
        );
    }

    #[test]
    fn the_best_come_first_and_stand_alone() {
        let text = layer(
            "feat_stride: 8 base_size: 16 ratio: 1 scale: 1 min_size: 9 post_nms_topn: 3 nms_thresh: 0.3",
            "top: 's'",
        );
        let shapes: [Shape; 3] = [[1, 2, 1, 4].into(), [1, 4, 1, 4].into(), [1, 3].into()];
        let harness = Harness::new(&registry(), &text, Phase::Test, DType::F64, &shapes).unwrap();
        let run = |scores: [f64; 4], image: [f64; 3]| {
            let scores = [[0.0; 4], scores].concat();
            let out = harness.run(&harness.forward_inputs(&[&scores, &[0.0; 16], &image]).unwrap()).unwrap();
            (out.tops[0].clone(), out.tops[1].clone())
        };
        // Neighbours have a half of each other in common: a third of what they cover.
        let (regions, scores) = run([0.5, 0.9, 0.8, 0.7], [16.0, 64.0, 1.0]);
        let want = [[0.0, 8.0, 0.0, 24.0, 15.0], [0.0, 24.0, 0.0, 40.0, 15.0], [0.0; 5]];
        assert_eq!((regions, scores), (want.concat(), vec![0.9, 0.7, 0.0]));
        // Twice as large, the least side is more than any.
        assert_eq!(run([0.5, 0.9, 0.8, 0.7], [16.0, 64.0, 2.0]), (vec![0.0; 15], vec![0.0; 3]));
    }

    #[test]
    fn mistakes_are_named() {
        let shapes: [Shape; 3] = [[1, 2, 2, 2].into(), [1, 4, 2, 2].into(), [1, 3].into()];
        for (param, needles) in [
            ("ratio: 1 scale: 1", &["proposal_param needs a feat_stride of at least 1, found 0"][..]),
            ("feat_stride: 8 scale: 1 ratio: -1", &["every ratio", "-1"]),
            ("feat_stride: 8 scale: 1 ratio: 1 base_size: 0", &["base_size"]),
            ("feat_stride: 8 scale: 1 ratio: 1 post_nms_topn: 0", &["post_nms_topn"]),
            ("feat_stride: 8 scale: 1 ratio: 1 nms_thresh: nan", &["nms_thresh", "NaN"]),
            ("feat_stride: 8 scale: 1 scale: 2 ratio: 1", &["bottom 0", "2 anchors", "(1, 4, 2, 2)", "(1, 2, 2, 2)"]),
        ] {
            config_error(&registry(), &layer(param, ""), &shapes, needles);
        }
        let two: [Shape; 3] = [[1, 2, 2, 2].into(), [1, 4, 2, 2].into(), [1, 2].into()];
        config_error(&registry(), &layer("feat_stride: 8 scale: 1 ratio: 1", ""), &two, &["bottom 2", "(1, 2)"]);
    }
}
