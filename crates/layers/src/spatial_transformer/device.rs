//! SpatialTransformer on a device. The image's gradient is summed in whole numbers of 64 bits, so that it does not depend
//! on the order.

use lgm_core::{Arg, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Fwd, Grid, Plan, Result, args};

use super::{SpatialTransformer, Transform, scratch};
use crate::common::launch::{extent, row_grid};

/// Blocks that look for the largest gradient, at the most.
const BLOCKS: usize = 1024;

/// More scratch memory, by number.
mod more {
    /// Sums of the image's gradient, two words each.
    pub const SUMS: usize = 2;
    /// The largest gradient, and that of each block.
    pub const LARGEST: usize = 3;
}

impl SpatialTransformer {
    /// The last arguments of kernels.
    fn after(&self, args: &[Arg]) -> Result<Vec<Arg>> {
        let [height, width] = self.extents.image;
        let [out_height, out_width] = self.extents.top;
        let mut all = args.to_vec();
        for n in [self.extents.channels, height, width, out_height, out_width] {
            all.push(extent(n)?.into());
        }
        extent(self.extents.map())?;
        Ok(all)
    }

    fn bounded(&self) -> u32 {
        u32::from(self.transform.is_bounded())
    }

    fn places_on(&self, queue: &dyn DeviceQueue, places: DevicePtr, theta: DevicePtr) -> Result<()> {
        let ([scale_x, scale_y], items) = (self.scales(), self.extents.items);
        let (kind, size) = (self.transform as i32, extent(self.size())?);
        let args = args![places, theta, kind, size, scale_x, scale_y, extent(items)?];
        queue.launch("spatial_places", row_grid(items, self.extents.map()), &self.after(args)?)
    }
}

impl DeviceLayer for SpatialTransformer {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let sums = 2 * self.extents.planes() * self.extents.pixels();
        let top = plan.tops[0].clone();
        plan.scratch.extend([top.with_shape([sums]), top.with_shape([1 + BLOCKS])]);
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, theta, y, places) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?, io.scratch(scratch::PLACES)?);
        self.places_on(io.queue(), places, theta)?;
        let planes = self.extents.planes();
        let args = args![y, x, places, self.bounded(), extent(planes)?];
        io.launch("spatial_forward", row_grid(planes, self.extents.map()), &self.after(args)?)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (x, theta, dy) = (io.bottom(0)?, io.bottom(1)?, io.top_diff(0)?);
        let (places, slopes) = (io.scratch(scratch::PLACES)?, io.scratch(scratch::SLOPES)?);
        self.places_on(io.queue(), places, theta)?;
        let (items, planes, map) = (self.extents.items, self.extents.planes(), self.extents.map());
        if let Some(dx) = io.bottom_diff(0) {
            let (sums, largest) = (io.scratch(more::SUMS)?, io.scratch(more::LARGEST)?);
            let (count, pixels) = (planes * map, planes * self.extents.pixels());
            let blocks = count.div_ceil(Grid::THREADS as usize).clamp(1, BLOCKS);
            let args = args![largest.floats(1), dy, count as i64];
            io.launch("spatial_largest", Grid::rows(blocks, Grid::THREADS), args)?;
            let args = args![largest, largest.floats(1), blocks as u32];
            io.launch("spatial_largest_of", Grid::rows(1, Grid::THREADS), args)?;
            io.queue().zero(sums, 8 * pixels)?;
            let args = args![sums, dy, places, largest, self.bounded(), extent(planes)?];
            io.launch("spatial_scatter", row_grid(planes, map), &self.after(args)?)?;
            let args = args![dx, sums, largest, extent(map)?, pixels as i64];
            io.launch("spatial_gather", Grid::elements(pixels), args)?;
        }
        let Some(d_theta) = io.bottom_diff(1) else { return Ok(()) };
        let to = if self.transform == Transform::Grid { d_theta } else { slopes };
        let args = args![to, dy, x, places, self.bounded(), extent(items)?];
        io.launch("spatial_slopes", row_grid(items, map), &self.after(args)?)?;
        if self.transform == Transform::Grid || items == 0 {
            return Ok(());
        }
        let [scale_x, scale_y] = self.scales();
        let args = args![d_theta, theta, slopes, self.transform as i32, extent(self.size())?, scale_x, scale_y];
        io.launch("spatial_theta", Grid::rows(items, Grid::THREADS), &self.after(args)?)
    }
}
