//! AnchorTarget on a device: anchors are judged one by one, and drawn by one block.

use lgm_core::{Arg, Device, DeviceLayer, DevicePtr, DeviceQueue, Error, Fault, Fwd, Grid, Plan, Result, args};

use super::AnchorTarget;
use crate::common::launch::extent;
use crate::detection::lists::{blocks, room_to_sort};
use crate::detection::targets::Found;
use crate::detection::truth;

/// Scratch memory, by number.
mod scratch {
    pub const OBJECTS: usize = 0;
    /// The overlap of each anchor with each object, and the largest of each object.
    pub const OVERLAPS: usize = 1;
    pub const BEST: usize = 2;
    /// What each anchor may be learned as, and the object that it overlaps most.
    pub const KINDS: usize = 3;
    pub const NEAREST: usize = 4;
    /// Those of objects, and those of background.
    pub const LISTS: usize = 5;
}

impl AnchorTarget {
    /// Anchors of the map.
    fn all(&self) -> usize {
        self.positions[0] * self.positions[1] * self.anchors.len()
    }

    /// The last arguments of kernels that ask where anchors lie.
    fn after(&self, image: DevicePtr, constants: DevicePtr, args: &[Arg]) -> Result<Vec<Arg>> {
        let ([height, width], stride) = (self.positions, self.anchors.of_first().1);
        let (count, border) = (extent(self.anchors.len())?, self.param.allowed_border() as f32);
        let of_anchors = args![image, constants, count, stride, extent(height)?, extent(width)?, border];
        Ok([args, of_anchors].concat())
    }
}

impl DeviceLayer for AnchorTarget {
    fn constants(&self) -> Vec<f32> {
        self.anchors.of_first().0
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (all, most, like) = (self.all(), self.objects.most(), plan.tops[0].clone());
        let of = |floats: usize| like.with_shape([floats]);
        plan.scratch = vec![Found::scratch(self.objects, &like)];
        plan.scratch.extend([lgm_core::count(&[all, most]), most, all, all, 4 * room_to_sort(all)?].map(of));
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        truth::explain(fault, None)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (image, constants, p) = (io.bottom(2)?, io.call.constants, &self.param);
        let objects = Found::read(&mut io, scratch::OBJECTS, self.objects, None)?;
        let (overlaps, best) = (io.scratch(scratch::OVERLAPS)?, io.scratch(scratch::BEST)?);
        let (kinds, nearest) = (io.scratch(scratch::KINDS)?, io.scratch(scratch::NEAREST)?);
        let [labels, moves, inside, outside] = [io.top(0)?, io.top(1)?, io.top(2)?, io.top(3)?];
        let (all, most, grid) = (extent(self.all())?, extent(self.objects.most())?, Grid::elements(self.all()));
        let args = args![overlaps, objects.boxes, objects.count, most];
        io.launch("anchor_overlaps", grid, &self.after(image, constants, args)?)?;
        let args = args![best, overlaps, objects.count, most, all];
        io.launch("anchor_best", blocks(self.objects.most(), self.all()), args)?;
        let (positive, negative, clobber) =
            (p.positive_overlap(), p.negative_overlap(), u32::from(p.clobber_positives()));
        let args = args![
            kinds,
            nearest,
            labels,
            moves,
            inside,
            outside,
            overlaps,
            best,
            objects.count,
            most,
            positive,
            negative,
            clobber
        ];
        io.launch("anchor_kinds", grid, &self.after(image, constants, args)?)?;
        let args = args![
            labels,
            moves,
            inside,
            outside,
            io.scratch(scratch::LISTS)?,
            kinds,
            nearest,
            objects.boxes,
            io.call.clock,
            self.stream,
            extent(room_to_sort(self.all())?)?,
            extent(self.most_positive())?,
            p.batch_size(),
            p.positive_weight()
        ];
        io.launch("anchor_draw", blocks(1, self.all()), &self.after(image, constants, args)?)
    }
}
