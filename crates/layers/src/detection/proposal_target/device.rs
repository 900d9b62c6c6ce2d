//! ProposalTarget on a device: regions are judged one by one, and drawn by one block.

use lgm_core::{Device, DeviceLayer, DeviceQueue, Error, Fault, Fwd, Grid, Plan, Result, args};

use super::ProposalTarget;
use crate::common::launch::{extent, row_grid};
use crate::detection::lists::{blocks, room_to_sort};
use crate::detection::targets::Found;
use crate::detection::truth;

/// Scratch memory, by number.
mod scratch {
    pub const OBJECTS: usize = 0;
    /// The regions, the objects among them, and how many there are.
    pub const BOXES: usize = 1;
    /// What each region may be learned as, and the object that it overlaps most.
    pub const KINDS: usize = 2;
    pub const NEAREST: usize = 3;
    /// Those of objects, and those of background.
    pub const LISTS: usize = 4;
    /// The region of each row, and how many rows are objects'.
    pub const CHOSEN: usize = 5;
}

impl ProposalTarget {
    /// Regions that there may be.
    fn all(&self) -> usize {
        self.regions + if self.param.append_gtbox() { self.objects.most() } else { 0 }
    }

    fn batch(&self) -> usize {
        self.param.batch_size() as usize
    }
}

impl DeviceLayer for ProposalTarget {
    /// The means and deviations of offsets.
    fn constants(&self) -> Vec<f32> {
        self.means.iter().chain(&self.deviations).map(|&v| v as f32).collect()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (all, like) = (self.all(), plan.tops[0].clone());
        let of = |floats: usize| like.with_shape([floats]);
        plan.scratch = vec![Found::scratch(self.objects, &like)];
        plan.scratch.extend([4 * all + 1, all, all, 4 * room_to_sort(all)?, self.batch() + 1].map(of));
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        truth::explain(fault, self.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (regions, scaling, p) = (io.bottom(0)?, io.call.constants, &self.param);
        let objects = Found::read(&mut io, scratch::OBJECTS, self.objects, self.classes)?;
        let boxes = io.scratch(scratch::BOXES)?;
        let count = boxes.floats(4 * self.all());
        let (rows, append) = (extent(self.regions)?, u32::from(p.append_gtbox()));
        let args = args![boxes, count, regions, objects.boxes, objects.count, rows, append, io.call.fault];
        io.launch("region_candidates", blocks(1, self.regions), args)?;
        let (kinds, nearest) = (io.scratch(scratch::KINDS)?, io.scratch(scratch::NEAREST)?);
        let (foreground, high, low) = (p.fg_thr(), p.bg_thr_hg(), p.bg_thr_lw());
        let args = args![kinds, nearest, boxes, count, objects.boxes, objects.count, foreground, high, low];
        io.launch("region_kinds", Grid::elements(self.all()), args)?;
        let chosen = io.scratch(scratch::CHOSEN)?;
        let (of_objects, batch) = (chosen.floats(self.batch()), extent(self.batch())?);
        let args = args![
            chosen,
            of_objects,
            io.scratch(scratch::LISTS)?,
            kinds,
            count,
            io.call.clock,
            self.stream,
            extent(room_to_sort(self.all())?)?,
            extent(self.most_found())?,
            batch
        ];
        io.launch("region_draw", blocks(1, self.all()), args)?;
        let numbers = lgm_core::count(&[4, self.classes.unwrap_or(2)]);
        let args = args![
            io.top(0)?,
            io.top(1)?,
            io.top(2)?,
            io.top(3)?,
            io.top(4)?,
            chosen,
            of_objects,
            nearest,
            boxes,
            objects.boxes,
            objects.kinds,
            scaling,
            batch,
            extent(numbers)?,
            u32::from(self.classes.is_some())
        ];
        io.launch("region_rows", row_grid(self.batch(), numbers), args)
    }
}
