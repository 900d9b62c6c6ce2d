//! Implicit-GEMM convolution, used forward and, with rotated weights, for the input gradient at stride 1.
//!
//! Each packed patch is read by all filters of its group. Where a group has one filter of one channel, that pays for nothing:
//! see [`super::depthwise`].

use std::ops::Range;

use smallvec::SmallVec;

use super::Planar;
use super::epilogue::Epilogue;
use super::patches::Plane;
use crate::Float;
use crate::gemm::{KC, even_block};
use crate::kernel::TileArgs;
use crate::pack::{Panels, Strides, pack_panel};
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;

/// Output positions of one task.
const POSITIONS: usize = 512;
/// Tasks that a pass is cut into where the shapes allow.
const TASKS: usize = 8;
/// Multiply-adds from which threads are used.
const PARALLEL_FROM: usize = 1 << 19;

/// Consecutive output positions of one image.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub image: usize,
    pub positions: Range<usize>,
}

/// The segments of a task, one behind the other.
pub(super) type Segments = SmallVec<[Segment; 8]>;

/// Output positions of the batch dealt into blocks: several images each, or parts of one.
pub(super) struct Columns {
    batch: usize,
    area: usize,
    images: usize,
    block: usize,
    per_image: usize,
    /// Number of blocks.
    pub count: usize,
    /// Most positions of a block.
    pub most: usize,
}

impl Columns {
    /// Blocks of about `most` positions, parts of an image being multiples of `multiple`.
    pub fn new(batch: usize, area: usize, most: usize, multiple: usize) -> Self {
        if area >= most {
            let block = even_block(area, most).next_multiple_of(multiple);
            let per_image = area.div_ceil(block);
            return Columns { batch, area, images: 1, block, per_image, count: batch * per_image, most: block };
        }
        let images = batch.div_ceil(TASKS).clamp(1, most / area);
        let count = batch.div_ceil(images);
        Columns { batch, area, images, block: area, per_image: 1, count, most: images * area }
    }

    /// The positions of block `i`.
    pub fn segments(&self, i: usize) -> Segments {
        if self.per_image > 1 || self.images == 1 {
            let start = i % self.per_image * self.block;
            let positions = start..(start + self.block).min(self.area);
            return SmallVec::from_iter([Segment { image: i / self.per_image, positions }]);
        }
        let images = i * self.images..((i + 1) * self.images).min(self.batch);
        images.map(|image| Segment { image, positions: 0..self.area }).collect()
    }
}

/// Weights packed into panels: group by group, within it blocks of the inner extent, within those panels of rows.
pub(super) struct PackedWeights<T> {
    data: Scratch<T>,
    pub panels: Panels,
    rows: usize,
    depth: usize,
    block: usize,
}

impl<T: Float> PackedWeights<T> {
    /// Packs `rows` × `depth` for each group; `pack(group, first row, height, inner range, panel)` fills a panel.
    pub fn new(
        groups: usize,
        rows: usize,
        depth: usize,
        block: usize,
        mr: usize,
        parallel: bool,
        pack: impl Fn(usize, usize, usize, Range<usize>, &mut [T]) + Sync,
    ) -> Self {
        let panels = Panels::new(rows, mr);
        let blocks = depth.div_ceil(block);
        let mut packed = PackedWeights { data: Scratch::new(groups * rows * depth), panels, rows, depth, block };
        let shared = Shared::new(&mut packed.data);
        tasks(groups * blocks, parallel && groups * rows * depth >= 1 << 16, |t| {
            let (group, from) = (t / blocks, t % blocks * block);
            let to = (from + block).min(depth);
            for i in 0..panels.count {
                let (start, height) = (panels.start(i), panels.height(i));
                let at = group * rows * depth + rows * from + start * (to - from);
                // SAFETY: blocks belong to one task each.
                let panel = unsafe { shared.part(at..at + height * (to - from)) };
                pack(group, start, height, from..to, panel);
            }
        });
        packed
    }

    /// Panel `i` of a group over the block that begins at inner index `from`.
    fn panel(&self, group: usize, i: usize, from: usize) -> &[T] {
        let depth = self.block.min(self.depth - from);
        let at = group * self.rows * self.depth + self.rows * from + self.panels.start(i) * depth;
        &self.data[at..at + self.panels.height(i) * depth]
    }
}

/// y = w ∗ x, completed by `epilogue`.
pub(super) fn forward<T: Float>(conv: &Planar<T>, x: &[T], w: &[T], epilogue: Epilogue<'_, T>, y: &mut [T]) {
    let Planar { micro, plane, groups, rows, batch } = *conv;
    let depth = plane.patch_len();
    let block = plane.depth_block(KC);
    let parallel = batch * groups * rows * plane.out_area() * depth >= PARALLEL_FROM;
    let weights = PackedWeights::new(groups, rows, depth, block, micro.mr, parallel, |g, row, height, inner, panel| {
        let src = &w[(g * rows + row) * depth + inner.start..];
        pack_panel(micro, src, Strides { across: depth, along: 1 }, (height, inner.len()), panel, height);
    });
    run(conv, x, &weights, epilogue, y, parallel);
}

/// Whether the input gradient is better a convolution of dy, with products for every input position, than products for every
/// output position.
pub(super) fn suits_backward_data(plane: &Plane) -> bool {
    (plane.rows.stride, plane.columns.stride) == (1, 1) && 4 * plane.area() <= 5 * plane.out_area()
}

/// dx as the convolution of dy with the rotated kernel, completed by `epilogue`; stride 1 only.
pub(super) fn backward_data<T: Float>(conv: &Planar<T>, w: &[T], dy: &[T], epilogue: Epilogue<'_, T>, dx: &mut [T]) {
    let conv = conv.adjoint();
    let Planar { micro, plane, groups, rows, batch } = conv;
    let (taps, depth) = (plane.taps(), plane.patch_len());
    let block = plane.depth_block(KC);
    let parallel = batch * groups * rows * plane.out_area() * depth >= PARALLEL_FROM;
    let weights = PackedWeights::new(groups, rows, depth, block, micro.mr, parallel, |g, row, height, inner, panel| {
        for (k, dst) in inner.zip(panel.chunks_mut(height)) {
            let (o, tap) = (g * plane.channels + k / taps, taps - 1 - k % taps);
            let src = &w[(o * rows + row) * taps + tap..];
            for (r, d) in dst.iter_mut().enumerate() {
                *d = src[r * taps];
            }
        }
    });
    run(&conv, dy, &weights, epilogue, dx, parallel);
}

/// The product of packed weights and the patches of x.
fn run<T: Float>(
    conv: &Planar<T>,
    x: &[T],
    weights: &PackedWeights<T>,
    epilogue: Epilogue<'_, T>,
    y: &mut [T],
    parallel: bool,
) {
    let groups = conv.groups;
    let columns = Columns::new(conv.batch, conv.plane.out_area(), POSITIONS, conv.micro.nr);
    let panels = weights.panels.count;
    // With few columns the rows are dealt out as well, each share packing the patches anew.
    let shares = TASKS.div_ceil(groups * columns.count).min(panels.div_ceil(4));
    let share = panels.div_ceil(shares);
    let y = Shared::new(y);
    let task = Task { conv, x, weights, epilogue, y: &y };
    tasks(groups * columns.count * shares, parallel, |t| {
        let (group, t) = (t % groups, t / groups);
        let (first, t) = (t % shares * share, t / shares);
        if first < panels {
            task.run(group, first..(first + share).min(panels), &columns.segments(t), columns.most);
        }
    });
}

struct Task<'a, T: 'static> {
    conv: &'a Planar<T>,
    x: &'a [T],
    weights: &'a PackedWeights<T>,
    epilogue: Epilogue<'a, T>,
    y: &'a Shared<'a, T>,
}

impl<T: Float> Task<'_, T> {
    fn run(&self, group: usize, panels: Range<usize>, segments: &Segments, most: usize) {
        let (plane, nr) = (&self.conv.plane, self.conv.micro.nr);
        let (depth, block) = (self.weights.depth, self.weights.block);
        let cols: usize = segments.iter().map(|s| s.positions.len()).sum();
        let mut patches = Scratch::<T>::new(cols.next_multiple_of(nr) * block);
        let mut padded = Scratch::<T>::new(plane.window_len(most, block));
        let image_len = self.conv.groups * plane.channels * plane.area();
        for from in (0..depth).step_by(block) {
            let inner = from..(from + block).min(depth);
            let len = inner.len();
            let mut column = 0;
            for segment in segments {
                let at = segment.image * image_len + group * plane.channels * plane.area();
                let image = &self.x[at..at + plane.channels * plane.area()];
                let window = plane.window(image, &segment.positions, &inner, &mut padded);
                let runs =
                    plane.runs(segment.positions.clone(), column, nr, window.pitch, |c| c / nr * nr * len + c % nr);
                window.fill(plane, inner.clone(), &runs, nr, &mut patches);
                column += segment.positions.len();
            }
            for i in panels.clone() {
                self.row_panel(group, i, &inner, segments, cols, &patches);
            }
        }
    }

    /// One panel of rows against all the packed columns.
    fn row_panel(&self, group: usize, i: usize, inner: &Range<usize>, segments: &Segments, cols: usize, patches: &[T]) {
        let (nr, area, rows) = (self.conv.micro.nr, self.conv.plane.out_area(), self.weights.rows);
        let (start, height) = (self.weights.panels.start(i), self.weights.panels.height(i));
        let a = self.weights.panel(group, i, inner.start);
        let row_of = |image: usize| (image * self.conv.groups * rows + group * rows + start) * area;
        let accumulate = inner.start > 0;
        let (mut segment, mut begins) = (0, 0);
        for j in (0..cols).step_by(nr) {
            let width = nr.min(cols - j);
            while j >= begins + segments[segment].positions.len() {
                begins += segments[segment].positions.len();
                segment += 1;
            }
            let b = &patches[j * inner.len()..][..(inner.len() - 1) * nr + width];
            let mut args = TileArgs {
                k: inner.len(),
                a: a.as_ptr(),
                a_row: 1,
                a_step: height,
                b: b.as_ptr(),
                ldb: nr,
                c: std::ptr::null_mut(),
                ldc: area,
                alpha: T::one(),
                accumulate,
            };
            let here = &segments[segment];
            if j + width <= begins + here.positions.len() {
                let at = row_of(here.image) + here.positions.start + j - begins;
                args.c = self.y.at(at, (height - 1) * area + width);
                // SAFETY: the panels hold inner.len() steps, the tile of y was checked and is this task's alone.
                unsafe { (self.conv.micro.run)(height, width, &args) }
            } else {
                // The tile crosses images: computed aside, then dealt out.
                let mut tile = Scratch::<T>::new(height * nr);
                (args.c, args.ldc, args.accumulate) = (tile.as_mut_ptr(), nr, false);
                // SAFETY: as above, with a tile of height rows of nr.
                unsafe { (self.conv.micro.run)(height, width, &args) }
                let (mut s, mut from, mut done) = (segment, begins, 0);
                while done < width {
                    let seg = &segments[s];
                    let skip = j + done - from;
                    let len = (seg.positions.len() - skip).min(width - done);
                    for r in 0..height {
                        let at = row_of(seg.image) + r * area + seg.positions.start + skip;
                        // SAFETY: these positions are this task's alone.
                        let dst = unsafe { self.y.part(at..at + len) };
                        for (d, &v) in dst.iter_mut().zip(&tile[r * nr + done..][..len]) {
                            *d = if accumulate { *d + v } else { v };
                        }
                    }
                    (done, from, s) = (done + len, from + seg.positions.len(), s + 1);
                }
            }
        }
        if inner.end == self.weights.depth && self.epilogue.changes() {
            for segment in segments {
                for r in 0..height {
                    let at = row_of(segment.image) + r * area;
                    // SAFETY: these positions are this task's alone.
                    let dst = unsafe { self.y.part(at + segment.positions.start..at + segment.positions.end) };
                    self.epilogue.apply(group * rows + start + r, dst);
                }
            }
        }
    }
}
