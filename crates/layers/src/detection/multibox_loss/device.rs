//! MultiBoxLoss on a device: a block matches the boxes of an image, and one chooses among them; all else is box by box.

use lgm_core::{Arg, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Error, Fault, Fwd, Grid, Plan, Result, args};
use lgm_proto::loss_parameter::NormalizationMode;

use super::matching::Mining;
use super::{MultiBoxLoss, bad_variance, not_in_batch};
use crate::common::launch::extent;
use crate::common::loss::fixed_normalizer;
use crate::detection::lists::{NONE, blocks, room_to_sort};
use crate::detection::truth::{not_a_class, not_an_image};

/// Kinds of faults; a fourth is an image that is not in the batch.
const NO_VARIANCE: u32 = 1;
const NO_IMAGE: u32 = 2;
const NO_CLASS: u32 = 3;

/// Scratch memory, by number.
mod scratch {
    /// The rows of each image's ground truth, and how many there are.
    pub const LISTS: usize = 0;
    pub const COUNTS: usize = 1;
    /// The boxes that predictions make.
    pub const DECODED: usize = 2;
    /// How much each box overlaps what it is matched with, and what it overlaps most.
    pub const MOST: usize = 3;
    pub const NEAREST: usize = 4;
    /// The best box of each ground truth, while they are matched.
    pub const BEST: usize = 5;
    pub const CONFS: usize = 6;
    pub const LOCS: usize = 7;
    pub const SUMS: usize = 8;
    /// What the choice sorts and suppresses in.
    pub const ENTRIES: usize = 9;
    pub const ORDER: usize = 10;
    pub const SORTED: usize = 11;
    /// What is kept for backward, where there is none.
    pub const KEPT: usize = 12;
}

/// What is kept for backward: the matches, which boxes are learned from, and 1/Z.
struct Kept {
    matches: DevicePtr,
    chosen: DevicePtr,
    share: DevicePtr,
}

impl MultiBoxLoss {
    fn boxes(&self) -> usize {
        self.images * self.priors
    }

    /// Sets of matches of an image.
    fn sets(&self) -> usize {
        if self.by_prior { 1 } else { self.locations() }
    }

    fn kept(&self, at: DevicePtr) -> Kept {
        let chosen = at.floats(self.boxes() * self.sets());
        Kept { matches: at, chosen, share: chosen.floats(self.boxes()) }
    }

    /// Whether the boxes that predictions make are needed.
    fn decodes(&self) -> bool {
        !self.by_prior || (self.apart.is_some() && !self.apart_by_prior)
    }

    /// The last arguments of most kernels.
    fn extents(&self) -> Result<[Arg; 8]> {
        let flags = u32::from(self.agnostic)
            | u32::from(self.logistic) << 1
            | u32::from(matches!(self.mining, Mining::All)) << 2
            | u32::from(matches!(self.mining, Mining::Hardest(_))) << 3;
        let extents = [self.images, self.priors, self.locations(), self.sets(), self.rows, self.classes].map(extent);
        let [images, priors, locations, sets, rows, classes] = extents;
        let background = self.background.try_into().unwrap_or(NONE);
        Ok([images?, priors?, locations?, sets?, rows?, classes?, background, flags].map(Arg::from))
    }

    fn encoding(&self) -> [Arg; 5] {
        let [code, scaled] = self.code.args();
        [code, scaled, self.squared.into(), self.bp_inside.into(), self.by_prior.into()].map(Arg::from)
    }

    fn after(&self, args: &[Arg]) -> Result<Vec<Arg>> {
        Ok([args, &self.extents()?].concat())
    }

    fn encoded(&self, args: &[Arg]) -> Result<Vec<Arg>> {
        Ok([args, &self.encoding(), &self.extents()?].concat())
    }

    fn weights(&self) -> [f32; 2] {
        [if self.parts[0] { self.loc_weight as f32 } else { 0.0 }, if self.parts[1] { 1.0 } else { 0.0 }]
    }
}

impl DeviceLayer for MultiBoxLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (images, boxes, sets) = (self.images, self.boxes(), self.sets());
        let kept = boxes * (sets + 1) + 1;
        let like = plan.tops[0].clone();
        let of = |floats: usize| like.with_shape([floats]);
        plan.saved = vec![of(kept)];
        let chosen = if matches!(self.mining, Mining::All) { 0 } else { 1 };
        let apart = if self.apart.is_some() { 1 } else { 0 };
        plan.scratch = [
            images * self.rows,
            images,
            if self.decodes() { 4 * boxes * self.locations() } else { 0 },
            boxes * sets,
            boxes * sets,
            2 * images * sets * self.rows,
            boxes,
            boxes,
            6 * images,
            2 * chosen * images * room_to_sort(self.priors)?,
            apart * boxes,
            5 * apart * boxes,
            kept,
        ]
        .map(of)
        .to_vec();
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        let [kind, at, detail, _] = fault;
        let (row, found) = (at as usize, f64::from(f32::from_bits(detail)));
        match kind {
            NO_VARIANCE => bad_variance(found),
            NO_IMAGE => not_an_image(row, found),
            NO_CLASS => {
                let classes = if self.agnostic { usize::MAX } else { self.classes };
                not_a_class(row, found, classes, Some(self.background))
            }
            _ => not_in_batch(row, found, self.images),
        }
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let [predictions, scores, priors, truths] = [io.bottom(0)?, io.bottom(1)?, io.bottom(2)?, io.bottom(3)?];
        let kept = match io.saved(0) {
            Some(saved) => saved,
            None => io.scratch(scratch::KEPT)?,
        };
        let Kept { matches, chosen, share } = self.kept(kept);
        let (lists, counts) = (io.scratch(scratch::LISTS)?, io.scratch(scratch::COUNTS)?);
        let read = args![lists, counts, truths, priors, u32::from(self.difficult), io.call.fault];
        io.launch("multibox_read", blocks(self.images, self.rows.max(self.priors)), &self.after(read)?)?;
        let decoded = io.scratch(scratch::DECODED)?;
        if self.decodes() {
            let [code, scaled] = self.code.args();
            let (count, locations) = (extent(self.priors)?, extent(self.locations())?);
            let args = args![decoded, predictions, priors, code, scaled, count, locations, extent(self.images)?];
            io.launch("detection_decode", Grid::elements(self.boxes() * self.locations()), args)?;
        }
        let (most, nearest, best) =
            (io.scratch(scratch::MOST)?, io.scratch(scratch::NEAREST)?, io.scratch(scratch::BEST)?);
        let boxes = if self.by_prior { None } else { Some(decoded) };
        let (inside, threshold) = (u32::from(self.matching.inside), self.matching.threshold.unwrap_or(-1.0));
        let args = args![matches, most, nearest, best, lists, counts, truths, priors, boxes, inside, threshold];
        io.launch("multibox_match", blocks(self.images * self.sets(), self.priors), &self.after(args)?)?;
        let (confs, locs) = (io.scratch(scratch::CONFS)?, io.scratch(scratch::LOCS)?);
        let args = args![confs, scores, matches, truths];
        io.launch("multibox_conf", Grid::elements(self.boxes() * 32), &self.after(args)?)?;
        let args = args![locs, predictions, priors, matches, truths];
        io.launch("multibox_loc", Grid::elements(self.boxes()), &self.encoded(args)?)?;
        let sums = io.scratch(scratch::SUMS)?;
        let (ratio, overlap, size) = match self.mining {
            Mining::All => (0.0, 0.0, 0),
            Mining::Negatives { ratio, overlap } => (ratio, overlap, 0),
            Mining::Hardest(size) => (0.0, 0.0, size),
        };
        // What is not used has no memory.
        let (mines, apart) = (!matches!(self.mining, Mining::All), self.apart.is_some());
        let entries = if mines { Some(io.scratch(scratch::ENTRIES)?) } else { None };
        let [order, sorted] = match apart {
            true => [Some(io.scratch(scratch::ORDER)?), Some(io.scratch(scratch::SORTED)?)],
            false => [None; 2],
        };
        let (threshold, top) = self.apart.map_or((0.0, 0), |apart| (apart.threshold, apart.top));
        let (boxes, each) = if self.apart_by_prior { (priors, 0) } else { (decoded, self.priors) };
        let boxes = apart.then_some(boxes);
        let args = args![
            chosen,
            sums,
            matches,
            entries,
            order,
            sorted,
            sorted.map(|sorted| sorted.floats(4 * self.boxes())),
            counts,
            most,
            locs,
            confs,
            boxes,
            truths,
            extent(each)?,
            extent(room_to_sort(self.priors)?)?,
            ratio,
            overlap,
            u32::try_from(size).unwrap_or(NONE),
            threshold,
            u32::try_from(top).unwrap_or(NONE)
        ];
        io.launch("multibox_choose", blocks(self.images, self.priors), &self.after(args)?)?;
        let fixed = fixed_normalizer(&self.loss, NormalizationMode::Valid, self.boxes(), self.images);
        let ([loc, conf], fixed) = (self.weights(), fixed.unwrap_or(0.0) as f32);
        let args = args![io.top(0)?, share, sums, extent(self.images)?, loc, conf, fixed];
        io.launch("multibox_finish", Grid::rows(1, 32), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let [predictions, scores, priors, truths] = [io.bottom(0)?, io.bottom(1)?, io.bottom(2)?, io.bottom(3)?];
        let (Kept { matches, chosen, share }, d_loss) = (self.kept(io.saved(0)?), io.top_diff(0)?);
        let [loc, conf] = self.weights();
        if let Some(dx) = io.bottom_diff(0) {
            let args = args![dx, d_loss, share, predictions, priors, matches, truths, loc];
            let grid = Grid::elements(self.boxes() * self.locations());
            io.launch("multibox_loc_backward", grid, &self.encoded(args)?)?;
        }
        if let Some(ds) = io.bottom_diff(1) {
            let args = args![ds, d_loss, share, scores, chosen, matches, truths, conf];
            io.launch("multibox_conf_backward", Grid::elements(self.boxes() * 32), &self.after(args)?)?;
        }
        Ok(())
    }
}
