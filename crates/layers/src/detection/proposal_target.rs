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
//! false` C is 2, and all objects are the second. No gradient.
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
use super::truth::{Objects, other_image};

mod device;
#[cfg(test)]
mod tests;

/// The layer; see the module.
pub struct ProposalTarget {
    param: ProposalTargetParameter,
    means: [f64; 4],
    deviations: [f64; 4],
    /// Classes, where each has numbers of its own.
    classes: Option<usize>,
    /// Rows of regions.
    regions: usize,
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
        Node::compute(ProposalTarget {
            param: p,
            means,
            deviations,
            classes,
            regions: 0,
            objects: Objects::default(),
            stream,
        })
    }
}

impl ProposalTarget {
    /// How many regions are drawn of objects', at the most.
    fn most_found(&self) -> usize {
        (f64::from(self.param.fg_fraction()) * f64::from(self.param.batch_size())).round_ties_even() as usize
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
        self.regions = regions.first().copied().unwrap_or_default();
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
            if row[0] != T::zero() {
                return Err(other_image("region", i, "", row[0].f64()));
            }
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
        let found = draw(&mut draws, found, self.most_found());
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
