//! ProposalTarget: the regions that a detector learns from in this pass, what each of them is, and how it is to be moved.
//!
//! A region is that object's which it overlaps most, if by `fg_thr` or more; it is background if it overlaps none by `bg_thr_hg` or
//! more, and the one it overlaps most by `bg_thr_lw` or more. With `append_gtbox` (true) the objects themselves are regions too. Of
//! `batch_size` regions (128) at most the part `fg_fraction` is drawn of objects' and what is left of background; where there are too
//! few, some are taken several times: background, or without any objects'. How a region is to be moved is told as for an anchor, less
//! the means and divided by the deviations of `bbox_reg_param` (0, 0, 0, 0 and 0.1, 0.1, 0.2, 0.2), which predictions are thus in units of.
//!
//! Bottoms: regions, rows of (image, x1, y1, x2, y2) as Proposal makes them, where a row of zeros is none; objects, as for AnchorTarget;
//! if those are rows as AnnotatedData makes them, the image's height and width. Tops, of B = `batch_size`: regions `[B, 5]`; labels
//! `[B, 1, 1, 1]`, 0 of background; how each is to be moved, and what a difference from that weighs inside and outside SmoothL1Loss, `[B, 4 · C]`
//! each: 1 for the four numbers of the object's class of C = `cls_num`, the background counted, and 0 for all others. With `cls_aware:
//! false` C is 2, and all objects are the second. Host only; no gradient.
//!
//! Source: Girshick, "Fast R-CNN" (ICCV 2015), Ren et al., "Faster R-CNN" (2015), and the Python layer of their code, which this one is in
//! place of; the fields are those of MS-CNN's and Cascade R-CNN's layer of this name. Where we differ: there the tops are shorter where
//! there are too few regions. Draws come from the run's seed and the iteration.

use lgm_core::rng::{Philox, stream_id};
use lgm_core::{
    Arity, BlobSpec, BuildCx, Error, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, Shape, ensure,
};
use lgm_proto::{BBoxRegParameter, LayerParameter, ProposalTargetParameter};

use super::anchors::offsets;
use super::boxes::Corners;
use super::targets::{draw, most, overlaps};
use super::truth::Objects;

/// The layer; see the module.
pub struct ProposalTarget {
    param: ProposalTargetParameter,
    means: [f64; 4],
    deviations: [f64; 4],
    /// Classes, where each has numbers of its own.
    classes: Option<usize>,
    objects: Objects,
    stream: u64,
}

/// Numbers of a region.
const ROW: usize = 5;

impl ProposalTarget {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let stream = stream_id(param.name(), "regions");
        let reg = param.bbox_reg_param.as_deref().cloned().unwrap_or_default();
        let p = param.proposal_target_param.as_deref().copied().unwrap_or_default();
        let classes = reg.cls_aware().then_some(p.cls_num() as usize);
        ensure!(
            classes.is_none_or(|classes| classes >= 2),
            "proposal_target_param needs a cls_num of at least 2, an object's class and the background, found {}; or \
             bbox_reg_param {{ cls_aware: false }}",
            p.cls_num()
        );
        ensure!(p.batch_size() > 0, "batch_size must be at least 1, found {}", p.batch_size());
        let parts = [
            ("fg_fraction", p.fg_fraction()),
            ("fg_thr", p.fg_thr()),
            ("bg_thr_hg", p.bg_thr_hg()),
            ("bg_thr_lw", p.bg_thr_lw()),
        ];
        for (name, value) in parts {
            ensure!((0.0..=1.0).contains(&value), "{name} must be a number from 0 to 1, found {value}");
        }
        ensure!(
            p.bg_thr_lw() < p.bg_thr_hg(),
            "bg_thr_lw must be below bg_thr_hg, found {} and {}: no region would be background",
            p.bg_thr_lw(),
            p.bg_thr_hg()
        );
        let (means, deviations) = scaling(&reg)?;
        Node::host_only(ProposalTarget { param: p, means, deviations, classes, objects: Objects::default(), stream })
    }
}

/// The means and deviations of offsets.
fn scaling(reg: &BBoxRegParameter) -> Result<([f64; 4], [f64; 4])> {
    let four = |name, values: &[f32], otherwise: [f32; 4]| {
        let values = if values.is_empty() { &otherwise } else { values };
        let four: Option<[f32; 4]> = values.try_into().ok().filter(|v: &[f32; 4]| v.iter().all(|v| v.is_finite()));
        four.map(|v| v.map(f64::from)).ok_or_else(|| {
            Error::config(format!(
                "{name} must be given four times (x, y, width, height), as finite numbers, found {values:?}"
            ))
        })
    };
    let (means, deviations) =
        (four("bbox_mean", &reg.bbox_mean, [0.0; 4])?, four("bbox_std", &reg.bbox_std, [0.1, 0.1, 0.2, 0.2])?);
    ensure!(deviations.iter().all(|d| *d > 0.0), "every bbox_std must be positive, found {:?}", reg.bbox_std);
    Ok((means, deviations))
}

impl Layer for ProposalTarget {
    fn arity(&self) -> Arity {
        Arity::range(2..=3, 5..=5)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let regions = &bottoms[0].shape;
        ensure!(
            regions.get(1) == Some(&ROW) && regions.count_from(2) == 1,
            "bottom 0 must have rows of {ROW} numbers (image, x1, y1, x2, y2), found shape {regions}"
        );
        self.objects = Objects::of(&bottoms[1], 1)?;
        ensure!(
            self.objects.are_of_pixels() || bottoms.get(2).is_some_and(|image| image.shape.count() >= 2),
            "objects given as fractions of the image (rows of 8 numbers) need a bottom 2 with the image's height and width"
        );
        let batch = self.param.batch_size() as usize;
        let numbers = lgm_core::count(&[4, self.classes.unwrap_or(2)]);
        let top = |shape: &[usize]| bottoms[0].with_shape(Shape::from(shape));
        let moves = || top(&[batch, numbers]);
        Ok(Plan {
            no_backward: true,
            index_tops: (0..tops).collect(),
            ..Plan::new(vec![top(&[batch, ROW]), top(&[batch, 1, 1, 1]), moves(), moves(), moves()])
        })
    }
}

impl HostLayer for ProposalTarget {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let image = (io.bottoms.len() > 2).then(|| io.bottom::<T>(2)).transpose()?;
        let objects = self.objects.read(io.bottom::<T>(1)?, image.map(|i| [i[0], i[1]]), self.classes)?;
        let mut boxes: Vec<Corners<T>> = Vec::new();
        for (i, row) in io.bottom::<T>(0)?.chunks_exact(ROW).enumerate() {
            ensure!(
                row[0] == T::zero(),
                "region {i} is of image {}, where there is but one, number 0; give the layer one image at a time",
                row[0].f64()
            );
            if row.iter().any(|v| *v != T::zero()) {
                boxes.push([row[1], row[2], row[3], row[4]]);
            }
        }
        if self.param.append_gtbox() {
            boxes.extend(objects.iter().map(|object| object.corners));
        }
        let overlaps = overlaps(&boxes, &objects);
        let most_of = |i: usize| most(&overlaps[i * objects.len()..][..objects.len()]);

        let (p, step) = (&self.param, io.call.step);
        let [foreground, high, low] = [p.fg_thr(), p.bg_thr_hg(), p.bg_thr_lw()].map(|t| T::of(t.into()));
        let (mut found, mut background) = (Vec::new(), Vec::new());
        for i in 0..boxes.len() {
            let (overlap, _) = most_of(i);
            if overlap >= foreground && !objects.is_empty() {
                found.push(i);
            } else if overlap < high && overlap >= low {
                background.push(i);
            }
        }
        let mut draws = Philox::new(step.seed, self.stream).from(step.batch << 32);
        let batch = p.batch_size() as usize;
        let most_found = (f64::from(p.fg_fraction()) * batch as f64).round_ties_even() as usize;
        let found = draw(&mut draws, found, most_found);
        let mut others = draw(&mut draws, background, batch - found.len());
        let missing = batch - found.len() - others.len();
        let again: Vec<usize> = match (&others, &found) {
            (some, _) | (_, some) if !some.is_empty() => (0..missing).map(|_| some[draws.below(some.len())]).collect(),
            _ => Vec::new(),
        };
        let of_objects = if others.is_empty() { found.len() + again.len() } else { found.len() };
        others.extend(again);

        let (regions, labels) = (io.top::<T>(0)?, io.top::<T>(1)?);
        let (moves, inside, outside) = (io.top::<T>(2)?, io.top::<T>(3)?, io.top::<T>(4)?);
        let numbers = moves.len() / batch;
        [&mut *regions, &mut *labels, &mut *moves, &mut *inside, &mut *outside]
            .into_iter()
            .for_each(|top| top.fill(T::zero()));
        for (row, &i) in found.iter().chain(&others).enumerate() {
            regions[ROW * row + 1..][..4].copy_from_slice(&boxes[i]);
            if row < of_objects {
                let object = &objects[most_of(i).1];
                labels[row] = T::of(object.class as f64);
                let at = numbers * row + 4 * if self.classes.is_some() { object.class } else { 1 };
                for (k, by) in offsets(boxes[i], object.corners).into_iter().enumerate() {
                    moves[at + k] = (by - T::of(self.means[k])) / T::of(self.deviations[k]);
                    (inside[at + k], outside[at + k]) = (T::one(), T::one());
                }
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

    fn layer(param: &str, more: &str) -> String {
        format!(
            "layer {{ name: 'p' type: 'ProposalTarget' bottom: 'r' bottom: 'g' {more} top: 'rois' top: 'l' top: 't' top: 'n' \
             top: 'o' proposal_target_param {{ {param} }} }}"
        )
    }

    /// Tops, of regions and objects given by their corners and classes.
    fn run(text: &str, regions: &[[f64; 4]], objects: &[f64], batch: u64) -> Vec<Vec<f64>> {
        let regions: Vec<f64> = regions.iter().flat_map(|[a, b, c, d]| [0.0, *a, *b, *c, *d]).collect();
        let shapes: [Shape; 2] = [[regions.len() / 5, 5].into(), [objects.len() / 5, 5].into()];
        let harness = Harness::new(&registry(), text, Phase::Train, DType::F64, &shapes).unwrap();
        let mut inputs = harness.forward_inputs(&[&regions, objects]).unwrap();
        inputs.step = Step { batch, ..inputs.step };
        harness.run(&inputs).unwrap().tops
    }

    const OBJECT: [f64; 5] = [10.0, 10.0, 19.0, 19.0, 2.0];
    /// Overlaps the object by 60 of 100.
    const HIT: [f64; 4] = [10.0, 14.0, 19.0, 19.0];
    /// By 20 of 100.
    const NEAR: [f64; 4] = [10.0, 18.0, 19.0, 19.0];
    const FAR: [f64; 4] = [40.0, 40.0, 49.0, 49.0];
    const NONE: [f64; 4] = [0.0; 4];

    #[test]
    fn cases() {
        let regions: Vec<f64> =
            (0..24).flat_map(|i| [0, 3 * i, 2 * i, 3 * i + 20 + i % 5, 2 * i + 25].map(|v| v as f64)).collect();
        let objects =
            Fill::Given(vec![10.0, 12.0, 40.0, 50.0, 1.0, 50.0, 34.0, 75.0, 60.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let case =
            |param: &str, more: &str| Case::new(layer(param, more)).bottom_of([24, 5], Fill::Given(regions.clone()));
        let shares = Fill::Given(vec![0.0, 1.0, 0.0, 0.1, 0.1, 0.5, 0.6, 0.0]);
        check(
            &registry(),
            &[
                case("cls_num: 3", "").bottom_of([1, 3, 5], objects.clone()),
                case("batch_size: 8 fg_thr: 0.4 bg_thr_hg: 0.4 bg_thr_lw: 0", "bbox_reg_param { cls_aware: false }")
                    .bottom_of([3, 5], objects),
                case("cls_num: 2 append_gtbox: false", "bottom: 'i'")
                    .bottom_of([1, 1, 1, 8], shares)
                    .bottom_of([1, 3], Fill::Given(vec![60.0, 80.0, 1.0])),
            ],
        );
    }

    #[test]
    fn regions_are_what_they_overlap() {
        let text = layer("cls_num: 4 batch_size: 4 fg_fraction: 0.5", "");
        let tops = run(&text, &[FAR, HIT, NONE, NEAR], &OBJECT, 0);
        // The object itself and the one that hits it; of background only that which comes near, twice.
        let with_image = |b: [f64; 4]| [0.0, b[0], b[1], b[2], b[3]];
        let object = [OBJECT[0], OBJECT[1], OBJECT[2], OBJECT[3]];
        assert_eq!(tops[0], [HIT, object, NEAR, NEAR].map(with_image).concat());
        assert_eq!(tops[1], [2.0, 2.0, 0.0, 0.0]);
        let mut want = [0.0; 64];
        // Its centre is 2 pixels higher, a third of its 6; 6 to 10 pixels high.
        want[8..12].copy_from_slice(&[0.0, -1.0 / 3.0 / 0.1, 0.0, (10f64 / 6.0).ln() / 0.2]);
        assert_close("targets", &tops[2], &want, 1e-6);
        let mut want = [0.0; 64];
        [8..12, 24..28].into_iter().for_each(|four| want[four].fill(1.0));
        assert_eq!((&tops[3][..], &tops[4][..]), (&want[..], &want[..]));
    }

    #[test]
    fn without_classes_all_objects_are_the_second() {
        let text = layer(
            "batch_size: 1 fg_fraction: 1 append_gtbox: false",
            "bbox_reg_param { cls_aware: false bbox_mean: 0 bbox_mean: 1 bbox_mean: 0 bbox_mean: 0 bbox_std: 1 bbox_std: 2 bbox_std: 1 bbox_std: 1 }",
        );
        let tops = run(&text, &[HIT], &OBJECT, 0);
        assert_eq!(tops[1], [2.0]);
        let want = [0.0, 0.0, 0.0, 0.0, 0.0, -2.0 / 3.0, 0.0, (10f64 / 6.0).ln()];
        assert_close("targets", &tops[2], &want, 1e-12);
    }

    #[test]
    fn rows_are_filled_whatever_there_is() {
        let text = layer("cls_num: 3 batch_size: 3 fg_fraction: 0.34 append_gtbox: false bg_thr_lw: 0.1", "");
        let labels = |regions: &[[f64; 4]], objects: &[f64]| run(&text, regions, objects, 0)[1].clone();
        assert_eq!(labels(&[HIT, NEAR], &OBJECT), [2.0, 0.0, 0.0]);
        assert_eq!(labels(&[HIT, HIT], &OBJECT), [2.0; 3], "no background");
        assert_eq!(labels(&[FAR], &OBJECT), [0.0; 3], "nothing");
        assert_eq!(labels(&[FAR], &[0.0; 5]), [0.0; 3], "no object");
        let zero = layer("cls_num: 3 batch_size: 2 bg_thr_lw: 0 fg_thr: 0", "");
        let tops = run(&zero, &[FAR], &[0.0; 5], 0);
        assert_eq!((&tops[1][..], &tops[0][5..]), (&[0.0, 0.0][..], &[0.0, 40.0, 40.0, 49.0, 49.0][..]));
    }

    #[test]
    fn others_are_drawn_in_each_pass() {
        let text = layer("cls_num: 3 batch_size: 4 fg_fraction: 0.25 bg_thr_lw: 0", "");
        let regions: Vec<[f64; 4]> = (0..20).map(|i| [40.0 + i as f64, 40.0, 60.0 + i as f64, 60.0]).collect();
        let of = |batch| run(&text, &regions, &OBJECT, batch)[0].clone();
        assert_eq!(of(7), of(7));
        assert!((0..8).any(|batch| of(batch) != of(8)));
        assert_eq!(of(3)[..5], [0.0, 10.0, 10.0, 19.0, 19.0]);
    }

    #[test]
    fn mistakes_are_named() {
        let shapes: [Shape; 2] = [[4, 5].into(), [1, 5].into()];
        for (param, more, needles) in [
            ("", "", &["cls_num of at least 2", "found 0", "cls_aware: false"][..]),
            ("cls_num: 3 batch_size: -1", "", &["batch_size", "-1"]),
            ("cls_num: 3 fg_fraction: 2", "", &["fg_fraction", "2"]),
            ("cls_num: 3 fg_thr: nan", "", &["fg_thr", "NaN"]),
            ("cls_num: 3 bg_thr_lw: 0.5", "", &["bg_thr_lw must be below bg_thr_hg", "0.5"]),
            ("cls_num: 3", "bbox_reg_param { bbox_mean: 1 }", &["bbox_mean", "four times", "[1.0]"]),
            (
                "cls_num: 3",
                "bbox_reg_param { bbox_std: 1 bbox_std: 0 bbox_std: 1 bbox_std: 1 }",
                &["bbox_std must be positive", "0.0"],
            ),
        ] {
            config_error(&registry(), &layer(param, more), &shapes, needles);
        }
        let text = layer("cls_num: 3", "");
        config_error(&registry(), &text, &[[4, 6].into(), [1, 5].into()], &["bottom 0", "5 numbers", "(4, 6)"]);
        config_error(&registry(), &text, &[[4, 5].into(), [1, 8].into()], &["bottom 2", "height and width"]);
        let harness =
            Harness::new(&registry(), &text, Phase::Train, DType::F64, &[[1, 5].into(), [1, 5].into()]).unwrap();
        for (region, object, needles) in [
            ([1.0, 0.0, 0.0, 9.0, 9.0], OBJECT, &["region 0", "image 1"][..]),
            ([0.0; 5], [0.0, 0.0, 9.0, 9.0, 3.0], &["row 0", "class 3", "3 classes"]),
        ] {
            let inputs = harness.forward_inputs(&[&region, &object]).unwrap();
            lgm_testkit::says(&harness.run(&inputs).err().unwrap().to_string(), needles);
        }
    }
}
