//! [`super::Pairs`] on a device: the same sums, in tiles, each in parts where the tiles alone would leave it idle.

use lgm_core::{BlobSpec, DevicePtr, DeviceQueue, Grid, Result, Shape, args};

use super::Extents;
use crate::common::launch::extent;

/// Rows and columns of a block's sums.
const SIDE: usize = 64;
/// Blocks that keep a device busy.
const BLOCKS: usize = 256;
/// What is summed over that is worth a part of its own.
const DEPTH_PER_PART: usize = 64;
/// Classes of a block that sums over items.
const CLASSES_PER_BLOCK: usize = 32;

/// Features and centers at their addresses.
#[derive(Clone, Copy)]
pub(super) struct DevicePairs<'q> {
    /// What runs the sums.
    pub queue: &'q dyn DeviceQueue,
    /// The extents.
    pub extents: Extents,
    /// Features, [M, K].
    pub x: DevicePtr,
    /// Centers, [N, K].
    pub w: DevicePtr,
    /// Differences where the feature is zero count as zero.
    pub skip_zero: bool,
}

/// What is summed of differences.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    /// The difference, times a weight [N, K] where given.
    Difference(Option<DevicePtr>),
    /// Its sign.
    Sign,
}

impl Of {
    fn parts(self) -> (Option<DevicePtr>, u32) {
        match self {
            Of::Difference(weights) => (weights, 0),
            Of::Sign => (None, 1),
        }
    }
}

fn tiles(rows: usize, columns: usize) -> usize {
    rows.div_ceil(SIDE) * columns.div_ceil(SIDE)
}

/// The parts that `depth` is summed in; they follow from the shape alone.
fn parts(rows: usize, columns: usize, depth: usize) -> usize {
    BLOCKS.div_ceil(tiles(rows, columns).max(1)).min(depth.div_ceil(DEPTH_PER_PART)).max(1)
}

fn grid(rows: usize, columns: usize, parts: usize) -> Result<Grid> {
    Ok(Grid { blocks: [extent(tiles(rows, columns).max(1))?, extent(parts)?, 1], threads: [Grid::THREADS, 1, 1] })
}

impl Extents {
    /// Parts that sums over features come in.
    pub fn feature_parts(&self) -> usize {
        parts(self.items, self.classes, self.width)
    }

    /// Parts that sums over items of squares come in.
    pub fn item_parts(&self) -> usize {
        parts(self.classes, self.width, self.items)
    }

    /// Scratch that holds any of these sums in parts.
    pub fn partial(&self, like: &BlobSpec) -> BlobSpec {
        let &Extents { items, classes, width } = self;
        let over_features = self.feature_parts() * items * classes;
        let over_classes = parts(items, width, classes) * items * width;
        let over_items = self.item_parts() * classes * width;
        like.with_shape(Shape::from([over_features.max(over_classes).max(over_items)]))
    }

    /// The grid of a kernel that sums over items, for each class.
    pub fn class_sums(&self) -> Grid {
        Grid::rows(self.classes.div_ceil(CLASSES_PER_BLOCK), Grid::THREADS)
    }

    /// M, N, K as kernels take them.
    pub fn words(&self) -> Result<[u32; 3]> {
        Ok([extent(self.items)?, extent(self.classes)?, extent(self.width)?])
    }
}

impl DevicePairs<'_> {
    fn skip(&self) -> u32 {
        self.skip_zero.into()
    }

    /// out = Σₖ v·(w − x)², [parts, M, N], with weights `v` [N, K] (1 when absent).
    pub fn squares(&self, v: Option<DevicePtr>, out: DevicePtr) -> Result<()> {
        let ([m, n, k], e) = (self.extents.words()?, self.extents);
        let grid = grid(e.items, e.classes, e.feature_parts())?;
        self.queue.launch("lgm_squares", grid, args![out, self.x, self.w, v, self.skip(), m, n, k])
    }

    /// out = Σₖ |w − x|, [parts, M, N].
    pub fn absolutes(&self, out: DevicePtr) -> Result<()> {
        let ([m, n, k], e) = (self.extents.words()?, self.extents);
        let grid = grid(e.items, e.classes, e.feature_parts())?;
        self.queue.launch("lgm_absolutes", grid, args![out, self.x, self.w, self.skip(), m, n, k])
    }

    /// out = Σₖ v over the features that are not zero, [parts, M, N], with `v` [N, K].
    pub fn observed(&self, v: DevicePtr, out: DevicePtr) -> Result<()> {
        let ([m, n, k], e) = (self.extents.words()?, self.extents);
        let grid = grid(e.items, e.classes, e.feature_parts())?;
        self.queue.launch("lgm_observed", grid, args![out, self.x, v, m, n, k])
    }

    /// dx = scale · Σⱼ c·of(w − x), [M, K], with coefficients `c` [M, N].
    pub fn sum_over_classes(&self, c: DevicePtr, of: Of, scale: f32, dx: DevicePtr, partial: DevicePtr) -> Result<()> {
        let ([m, n, k], e, (v, signs)) = (self.extents.words()?, self.extents, of.parts());
        let parts = parts(e.items, e.width, e.classes);
        let out = if parts == 1 { dx } else { partial };
        let args = args![out, c, self.x, self.w, v, signs, scale, self.skip(), m, n, k];
        self.queue.launch("lgm_sum_over_classes", grid(e.items, e.width, parts)?, args)?;
        self.gather(dx, partial, parts, false, e.items * e.width)
    }

    /// dw += scale · Σᵢ c·of(w − x), [N, K].
    pub fn sum_over_items(&self, c: DevicePtr, of: Of, scale: f32, dw: DevicePtr, partial: DevicePtr) -> Result<()> {
        let ([m, n, k], e, (v, signs)) = (self.extents.words()?, self.extents, of.parts());
        let parts = e.item_parts();
        let (out, add) = if parts == 1 { (dw, 1u32) } else { (partial, 0) };
        let args = args![out, c, self.x, self.w, v, signs, scale, self.skip(), add, m, n, k];
        self.queue.launch("lgm_sum_over_items", grid(e.classes, e.width, parts)?, args)?;
        self.gather(dw, partial, parts, true, e.classes * e.width)
    }

    /// out = Σᵢ c·(w − x)², or with (dh, v) = Σᵢ (dh − c·v·(w − x)²) over the features that are not left out,
    /// [parts, N, K].
    pub fn squares_over_items(
        &self,
        c: DevicePtr,
        variances: Option<(DevicePtr, DevicePtr)>,
        out: DevicePtr,
    ) -> Result<()> {
        let ([m, n, k], e) = (self.extents.words()?, self.extents);
        let (dh, v) = variances.unzip();
        let args = args![out, c, dh, self.x, self.w, v, self.skip(), m, n, k];
        self.queue.launch("lgm_squares_over_items", grid(e.classes, e.width, e.item_parts())?, args)
    }

    fn gather(&self, dst: DevicePtr, partial: DevicePtr, parts: usize, add: bool, n: usize) -> Result<()> {
        if parts == 1 {
            return Ok(());
        }
        let args = args![dst, partial, extent(parts)?, u32::from(add), n as i64];
        self.queue.launch("lgm_add_parts", Grid::elements(n), args)
    }
}
