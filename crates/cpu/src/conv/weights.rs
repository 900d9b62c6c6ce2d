//! The gradient of the weights: dW += dY·Pᵀ, blocks of patches packed on the fly.

use std::ops::Range;

use super::Planar;
use super::forward::{Columns, Segment, Segments};
use crate::Float;
use crate::gemm::even_block;
use crate::kernel::TileArgs;
use crate::pack::{Panels, Strides, pack_panel};
use crate::parallel::{Shared, for_each_block, tasks};
use crate::scratch::Scratch;
use crate::vector::axpy_block;

/// Output positions of one pass: the inner extent of the product.
const POSITIONS: usize = 320;
/// Weights of an output channel that one task takes.
const PATCH_BLOCK: usize = 256;
/// Output channels of one task.
const ROW_BLOCK: usize = 392;
/// Tasks that a pass is cut into where the shapes allow.
const TASKS: usize = 12;
/// Most elements of partial sums.
const PARTIAL_MOST: usize = 1 << 21;

/// dw += gradient, summed over images in order within fixed groups of images, and then over the groups.
pub(super) fn backward_weights<T: Float>(conv: &Planar<T>, x: &[T], dy: &[T], dw: &mut [T]) {
    let Planar { micro, ref plane, groups, rows, batch } = *conv;
    let depth = plane.patch_len();
    let columns = Columns::new(batch, plane.out_area(), POSITIONS, 16);
    let (row_block, patch_block) =
        (even_block(rows, ROW_BLOCK), even_block(depth, PATCH_BLOCK).next_multiple_of(micro.nr));
    let (row_blocks, patch_blocks) = (rows.div_ceil(row_block), depth.div_ceil(patch_block));
    let tiles = groups * row_blocks * patch_blocks;
    // Few tiles: the batch is cut as well, into parts that are summed apart.
    let parts = TASKS.div_ceil(tiles).min(columns.count).min((PARTIAL_MOST / dw.len()).max(1));
    let part_len = columns.count.div_ceil(parts);
    let parts = columns.count.div_ceil(part_len);
    let parallel = batch * groups * rows * plane.out_area() * depth >= 1 << 19;
    let pass = Pass { conv, columns: &columns, x, dy };
    let bounds = |t: usize| {
        let (group, t) = (t % groups, t / groups);
        let (r, k) = (t % row_blocks * row_block, t / row_blocks * patch_block);
        Tile { group, rows: r..(r + row_block).min(rows), patch: k..(k + patch_block).min(depth) }
    };
    if parts == 1 {
        let dw = Shared::new(dw);
        tasks(tiles, parallel, |t| {
            pass.run(&bounds(t), 0..columns.count, true, &dw, 0);
        });
        return;
    }
    let len = dw.len();
    let mut partial = Scratch::<T>::new(parts * len);
    let shared = Shared::new(&mut partial);
    tasks(tiles * parts, parallel, |t| {
        let (tile, part) = (bounds(t / parts), t % parts);
        let blocks = part * part_len..((part + 1) * part_len).min(columns.count);
        pass.run(&tile, blocks, false, &shared, part * len);
    });
    let partial = &partial;
    for_each_block(dw, |at, dst| {
        for part in 0..parts {
            axpy_block(T::one(), &partial[part * len + at..][..dst.len()], dst);
        }
    });
}

/// Some of a group's weights: output channels by elements of a patch.
struct Tile {
    group: usize,
    rows: Range<usize>,
    patch: Range<usize>,
}

struct Pass<'a, T: 'static> {
    conv: &'a Planar<T>,
    columns: &'a Columns,
    x: &'a [T],
    dy: &'a [T],
}

impl<T: Float> Pass<'_, T> {
    /// A tile of the gradient over the column blocks `blocks`, into `out` from `base` on.
    fn run(&self, tile: &Tile, blocks: Range<usize>, add: bool, out: &Shared<'_, T>, base: usize) {
        let (plane, micro, Tile { group, rows, patch }) = (&self.conv.plane, self.conv.micro, tile);
        let (nr, depth) = (micro.nr, plane.patch_len());
        let panels = Panels::new(rows.len(), micro.mr);
        let most = self.columns.most;
        let mut a = Scratch::<T>::new(rows.len() * most);
        let mut b = Scratch::<T>::new(patch.len().next_multiple_of(nr) * most);
        let mut lines = Scratch::<T>::new(nr * most);
        let mut padded = Scratch::<T>::new(plane.window_len(most, patch.len()));
        for block in blocks.clone() {
            let segments = self.columns.segments(block);
            let cols: usize = segments.iter().map(|s| s.positions.len()).sum();
            // Used once or twice, the gradient of one image is not worth packing.
            let direct = match &segments[..] {
                [segment] if patch.len() <= 2 * nr => {
                    Some(&self.dy[self.channel(segment, tile) * plane.out_area() + segment.positions.start..])
                }
                _ => None,
            };
            if direct.is_none() {
                self.pack_gradient(tile, panels, &segments, cols, &mut a);
            }
            self.pack_patches(tile, &segments, cols, [&mut padded, &mut lines], &mut b);
            for i in 0..panels.count {
                let (start, height) = (panels.start(i), panels.height(i));
                let (a, a_row, a_step) = match direct {
                    Some(dy) => {
                        let area = plane.out_area();
                        (&dy[start * area..][..(height - 1) * area + cols], area, 1)
                    }
                    None => (&a[start * cols..(start + height) * cols], 1, height),
                };
                for j in (0..patch.len()).step_by(nr) {
                    let width = nr.min(patch.len() - j);
                    let b = &b[j * cols..][..(cols - 1) * nr + width];
                    let at = base + (group * self.conv.rows + rows.start + start) * depth + patch.start + j;
                    let args = TileArgs {
                        k: cols,
                        a: a.as_ptr(),
                        a_row,
                        a_step,
                        b: b.as_ptr(),
                        ldb: nr,
                        c: out.at(at, (height - 1) * depth + width),
                        ldc: depth,
                        alpha: T::one(),
                        accumulate: add || block > blocks.start,
                    };
                    // SAFETY: the panels hold `cols` steps, the tile was checked and is this task's alone.
                    unsafe { (micro.run)(height, width, &args) }
                }
            }
        }
    }

    /// The first of a tile's channels in a segment's image of dY.
    fn channel(&self, segment: &Segment, tile: &Tile) -> usize {
        (segment.image * self.conv.groups + tile.group) * self.conv.rows + tile.rows.start
    }

    /// Panels of dY: rows across, positions along.
    fn pack_gradient(&self, tile: &Tile, panels: Panels, segments: &Segments, cols: usize, dst: &mut [T]) {
        let area = self.conv.plane.out_area();
        for i in 0..panels.count {
            let (start, height) = (panels.start(i), panels.height(i));
            let mut at = start * cols;
            for segment in segments {
                let channel = self.channel(segment, tile) + start;
                let src = &self.dy[channel * area + segment.positions.start..];
                let len = segment.positions.len();
                let strides = Strides { across: area, along: 1 };
                pack_panel(self.conv.micro, src, strides, (height, len), &mut dst[at..at + height * len], height);
                at += height * len;
            }
        }
    }

    /// Panels of Pᵀ: elements of the patch across, positions along.
    fn pack_patches(
        &self,
        Tile { group, patch, .. }: &Tile,
        segments: &Segments,
        cols: usize,
        [padded, lines]: [&mut [T]; 2],
        dst: &mut [T],
    ) {
        let (plane, nr) = (&self.conv.plane, self.conv.micro.nr);
        let image_len = plane.channels * plane.area();
        let mut column = 0;
        for segment in segments {
            let at = (segment.image * self.conv.groups + group) * image_len;
            let window = plane.window(&self.x[at..at + image_len], &segment.positions, patch, padded);
            let len = segment.positions.len();
            let runs = plane.runs(segment.positions.clone(), 0, usize::MAX, window.pitch, |c| c);
            for j in (0..patch.len()).step_by(nr) {
                let width = nr.min(patch.len() - j);
                let inner = patch.start + j..patch.start + j + width;
                window.fill(plane, inner, &runs, len, lines);
                let panel = &mut dst[j * cols + column * nr..];
                pack_panel(self.conv.micro, lines, Strides { across: len, along: 1 }, (width, len), panel, nr);
            }
            column += len;
        }
    }
}
