//! What detectors found, on a device: of each image and class a list of boxes that non-maximum suppression keeps, and rows of all.

use lgm_core::{BlobSpec, DeviceCall, DevicePtr, Fwd, Grid, Plan, Result, args, ensure};

use crate::common::launch::extent;

/// What kernels take for none, or for no limit.
pub(super) const NONE: u32 = u32::MAX;
/// Lists that are made at a time, each in memory of its own.
const AT_ONCE: usize = 128;
/// Threads of a block, at the most.
const THREADS: usize = 512;

/// A grid of blocks that treat so many elements each.
pub(super) fn blocks(blocks: usize, elements: usize) -> Grid {
    // Two warps at least, between which reductions are barriers.
    Grid::rows(blocks, elements.next_multiple_of(32).clamp(64, THREADS) as u32)
}

/// A limit as kernels take it.
pub(super) fn limited(limit: Option<usize>) -> u32 {
    limit.and_then(|limit| u32::try_from(limit).ok()).unwrap_or(NONE)
}

/// Room in which so many boxes can be sorted.
///
/// # Errors
/// When they are more than a device's kernels number.
pub(super) fn room_to_sort(boxes: usize) -> Result<usize> {
    ensure!(boxes <= 1 << 28, "{boxes} boxes are more than a device sorts ({}); lessen the batch", 1 << 28);
    Ok(boxes.max(1).next_power_of_two())
}

/// The lists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lists {
    pub images: usize,
    /// Lists of an image: one for each class but the background.
    pub classes: usize,
    pub background: Option<usize>,
    /// Boxes of an image.
    pub boxes: usize,
    /// Scores of a box, and boxes of a score's classes.
    pub scores: usize,
    pub locations: usize,
    /// How many are looked at, and kept, of a list; and how many of an image.
    pub top: Option<usize>,
    pub most: Option<usize>,
    pub keep: Option<usize>,
    /// What a score must be above.
    pub least: f32,
    pub threshold: f32,
    pub eta: f32,
    /// Boxes are in pixels, and candidates whatever their score if they are numbers.
    pub pixels: bool,
}

/// What lists are made of, and what they are made in: the rest of a layer's scratch.
pub(super) struct Listed {
    pub scores: DevicePtr,
    pub boxes: DevicePtr,
    /// The class of each box, where a list has several.
    pub kinds: Option<DevicePtr>,
    found: DevicePtr,
    counts: DevicePtr,
    taken: DevicePtr,
}

impl Lists {
    fn lists(&self) -> usize {
        self.images * self.classes
    }

    /// Boxes that a list may have.
    fn room(&self) -> usize {
        [self.top, self.most].into_iter().flatten().fold(self.boxes, usize::min)
    }

    /// Plans the memory that [`Lists::make`] takes, from scratch `from` on.
    ///
    /// # Errors
    /// When there are more boxes than a device sorts.
    pub fn plan(&self, plan: &mut Plan) -> Result<()> {
        let like: BlobSpec = plan.tops[0].clone();
        let sorted = self.lists().min(AT_ONCE) * room_to_sort(self.boxes)?;
        let of_image = self.images * room_to_sort(self.classes * self.room())?;
        let floats =
            [2 * self.lists() * self.room(), self.lists(), 2 * sorted.max(of_image), 5 * sorted, 3 * self.images];
        plan.scratch.extend(floats.map(|floats| like.with_shape([floats])));
        Ok(())
    }

    /// Makes the lists in scratch from `from` on.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn make(
        &self,
        io: &mut Fwd<'_, lgm_core::Device>,
        from: usize,
        (scores, boxes, kinds): (DevicePtr, DevicePtr, Option<DevicePtr>),
    ) -> Result<Listed> {
        let (found, counts, entries) = (io.scratch(from)?, io.scratch(from + 1)?, io.scratch(from + 2)?);
        let (sorted, taken) = (io.scratch(from + 3)?, io.scratch(from + 4)?);
        let (at_once, padded) = (self.lists().min(AT_ONCE), room_to_sort(self.boxes)?);
        let (lists, classes) = (extent(self.lists())?, extent(self.classes)?);
        let room = extent(self.room())?;
        let args = args![
            found,
            counts,
            entries,
            sorted,
            sorted.floats(4 * at_once * padded),
            scores,
            boxes,
            lists,
            classes,
            limited(self.background),
            extent(self.boxes)?,
            extent(self.scores)?,
            extent(self.locations)?,
            extent(padded)?,
            room,
            limited(self.top),
            limited(self.most),
            self.least,
            self.threshold,
            self.eta,
            u32::from(self.pixels)
        ];
        io.launch("detection_suppress", blocks(at_once, self.boxes), args)?;
        Ok(Listed { scores, boxes, kinds, found, counts, taken: self.best(io.call, found, counts, entries, taken)? })
    }

    /// Chooses the best of each image, and gives where it says which.
    fn best(
        &self,
        call: DeviceCall<'_>,
        found: DevicePtr,
        counts: DevicePtr,
        entries: DevicePtr,
        taken: DevicePtr,
    ) -> Result<DevicePtr> {
        let slots = self.classes * self.room();
        let args = args![
            taken,
            taken.floats(2 * self.images),
            entries,
            found,
            counts,
            extent(self.classes)?,
            extent(self.room())?,
            limited(self.keep),
            extent(room_to_sort(slots)?)?
        ];
        call.launch("detection_best", blocks(self.images, slots), args)?;
        Ok(taken)
    }

    /// Writes rows (image, class, score, box).
    ///
    /// # Errors
    /// When the device refuses.
    pub fn write(&self, call: DeviceCall<'_>, y: DevicePtr, rows: usize, of: &Listed) -> Result<()> {
        let args = args![
            y,
            of.found,
            of.counts,
            of.taken,
            of.taken.floats(2 * self.images),
            of.scores,
            of.boxes,
            of.kinds,
            extent(self.images)?,
            extent(self.classes)?,
            limited(self.background),
            extent(self.boxes)?,
            extent(self.scores)?,
            extent(self.locations)?,
            extent(self.room())?,
            extent(rows)?
        ];
        call.launch("detection_rows", blocks(self.images, self.classes * self.room()), args)
    }
}

impl Listed {
    /// The entries of the lists, and how many each has.
    pub fn entries(&self) -> [DevicePtr; 2] {
        [self.found, self.counts]
    }
}
