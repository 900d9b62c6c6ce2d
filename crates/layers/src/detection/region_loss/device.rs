//! RegionLoss on a device: box by box as if there were no objects, then a block for each image goes through its objects.

use lgm_core::{Arg, Bwd, Device, DeviceLayer, DeviceQueue, Error, Fault, Fwd, Grid, Plan, Result, args};

use super::{RegionLoss, not_a_class, not_a_place};
use crate::common::launch::extent;
use crate::detection::lists::blocks;

/// The kind of fault that is a class; the other is a place.
const NO_CLASS: u32 = 1;

impl RegionLoss {
    /// The last arguments of most kernels.
    fn after(&self, args: &[Arg]) -> Result<Vec<Arg>> {
        let extents = [self.images, self.boxes(), self.classes(), self.rows, self.columns, self.objects];
        let extents = extents.into_iter().map(|n| extent(n).map(Arg::from)).collect::<Result<Vec<_>>>()?;
        Ok([args, &extents].concat())
    }
}

impl DeviceLayer for RegionLoss {
    /// The anchors, as shares of the image.
    fn constants(&self) -> Vec<f32> {
        (0..self.boxes()).flat_map(|n| self.anchor::<f32>(n)).collect()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let like = plan.tops[0].clone();
        let of = |floats: usize| like.with_shape([floats]);
        plan.scratch = vec![plan.saved[0].clone(), of(2 * self.images), of(self.images)];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        let (i, image) = (fault[1] as usize % self.objects.max(1), fault[1] as usize / self.objects.max(1));
        match fault[0] {
            NO_CLASS => not_a_class(i, image, f32::from_bits(fault[2]).into(), self.classes()),
            _ => not_a_place(i, image, "not in the image"),
        }
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, labels, anchors, p) = (io.bottom(0)?, io.bottom(1)?, io.call.constants, &self.param);
        let delta = match io.saved(0) {
            Some(saved) => saved,
            None => io.scratch(0)?,
        };
        let (sums, counts) = (io.scratch(1)?, io.scratch(2)?);
        let read = args![counts, labels, io.call.fault];
        io.launch("region_read", blocks(1, self.images), &self.after(read)?)?;
        let args = args![delta, x, labels, counts, anchors, p.thresh(), p.noobject_scale()];
        let boxes = self.images * self.boxes() * self.area();
        io.launch("region_delta", Grid::elements(boxes), &self.after(args)?)?;
        let (by_anchor, rescore) = (u32::from(p.bias_match() != 0), u32::from(p.rescore() != 0));
        let scales = [p.object_scale(), p.class_scale(), p.coord_scale()];
        let args = args![delta, x, labels, counts, anchors, by_anchor, rescore, scales[0], scales[1], scales[2]];
        io.launch("region_objects", blocks(self.images, self.classes()), &self.after(args)?)?;
        let numbers = self.numbers();
        io.launch("region_sums", blocks(self.images, numbers), args![sums, delta, numbers as u64])?;
        let loss = io.top(0)?;
        io.launch("region_finish", Grid::rows(1, 32), args![loss, sums, extent(self.images)?])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let count = self.images * self.numbers();
        let args = args![dx, io.saved(0)?, io.top_diff(0)?, extent(self.images)?, count as i64];
        io.launch("region_backward", Grid::elements(count), args)
    }
}
