//! The gradient of the weights: dW += dY·Pᵀ, blocks of patches packed on the fly.

use std::ops::Range;

use super::forward::{Columns, Segments};
use super::patches::Plane;
use crate::Float;
use crate::gemm::even_block;
use crate::kernel::{Micro, TileArgs};
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
#[allow(clippy::too_many_arguments)]
pub(super) fn backward_weights<T: Float>(
    micro: &Micro<T>,
    plane: &Plane,
    groups: usize,
    out_channels: usize,
    batch: usize,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    let (rows, depth) = (out_channels / groups, plane.patch_len());
    let columns = Columns::new(batch, plane.out_area(), POSITIONS, 16);
    let (row_block, patch_block) =
        (even_block(rows, ROW_BLOCK), even_block(depth, PATCH_BLOCK).next_multiple_of(micro.nr));
    let (row_blocks, patch_blocks) = (rows.div_ceil(row_block), depth.div_ceil(patch_block));
    let tiles = groups * row_blocks * patch_blocks;
    // Few tiles: the batch is cut as well, into parts that are summed apart.
    let parts = TASKS.div_ceil(tiles).min(columns.count).min((PARTIAL_MOST / dw.len()).max(1));
    let part_len = columns.count.div_ceil(parts);
    let parts = columns.count.div_ceil(part_len);
    let parallel = batch * out_channels * plane.out_area() * depth >= 1 << 19;
    let pass = Pass { micro, plane, groups, rows, columns: &columns, x, dy };
    let bounds = |t: usize| {
        let (group, t) = (t % groups, t / groups);
        let (r, k) = (t % row_blocks * row_block, t / row_blocks * patch_block);
        (group, r..(r + row_block).min(rows), k..(k + patch_block).min(depth))
    };
    if parts == 1 {
        let dw = Shared::new(dw);
        tasks(tiles, parallel, |t| {
            let (group, r, k) = bounds(t);
            pass.run(group, r, k, 0..columns.count, true, &dw, 0);
        });
        return;
    }
    let len = dw.len();
    let mut partial = Scratch::<T>::new(parts * len);
    let shared = Shared::new(&mut partial);
    tasks(tiles * parts, parallel, |t| {
        let ((group, r, k), part) = (bounds(t / parts), t % parts);
        let blocks = part * part_len..((part + 1) * part_len).min(columns.count);
        pass.run(group, r, k, blocks, false, &shared, part * len);
    });
    let partial = &partial;
    for_each_block(dw, |at, dst| {
        for part in 0..parts {
            axpy_block(T::one(), &partial[part * len + at..][..dst.len()], dst);
        }
    });
}

struct Pass<'a, T> {
    micro: &'a Micro<T>,
    plane: &'a Plane,
    groups: usize,
    rows: usize,
    columns: &'a Columns,
    x: &'a [T],
    dy: &'a [T],
}

impl<T: Float> Pass<'_, T> {
    /// The tile `rows` × `patch` of a group's gradient over the column blocks `blocks`, into `out` from `base` on.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        group: usize,
        rows: Range<usize>,
        patch: Range<usize>,
        blocks: Range<usize>,
        add: bool,
        out: &Shared<'_, T>,
        base: usize,
    ) {
        let (plane, nr, depth) = (self.plane, self.micro.nr, self.plane.patch_len());
        let panels = Panels::new(rows.len(), self.micro.mr);
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
                    let channel = (segment.image * self.groups + group) * self.rows + rows.start;
                    Some(&self.dy[channel * plane.out_area() + segment.positions.start..])
                }
                _ => None,
            };
            if direct.is_none() {
                self.pack_gradient(group, &rows, panels, &segments, cols, &mut a);
            }
            self.pack_patches(group, &patch, &segments, cols, &mut padded, &mut lines, &mut b);
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
                    let at = base + (group * self.rows + rows.start + start) * depth + patch.start + j;
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
                    unsafe { (self.micro.run)(height, width, &args) }
                }
            }
        }
    }

    /// Panels of dY: rows across, positions along.
    fn pack_gradient(
        &self,
        group: usize,
        rows: &Range<usize>,
        panels: Panels,
        segments: &Segments,
        cols: usize,
        dst: &mut [T],
    ) {
        let area = self.plane.out_area();
        for i in 0..panels.count {
            let (start, height) = (panels.start(i), panels.height(i));
            let mut at = start * cols;
            for segment in segments {
                let channel = (segment.image * self.groups + group) * self.rows + rows.start + start;
                let src = &self.dy[channel * area + segment.positions.start..];
                let len = segment.positions.len();
                let strides = Strides { across: area, along: 1 };
                pack_panel(self.micro, src, strides, (height, len), &mut dst[at..at + height * len], height);
                at += height * len;
            }
        }
    }

    /// Panels of Pᵀ: elements of the patch across, positions along.
    #[allow(clippy::too_many_arguments)]
    fn pack_patches(
        &self,
        group: usize,
        patch: &Range<usize>,
        segments: &Segments,
        cols: usize,
        padded: &mut [T],
        lines: &mut [T],
        dst: &mut [T],
    ) {
        let (plane, nr) = (self.plane, self.micro.nr);
        let image_len = plane.channels * plane.area();
        let mut column = 0;
        for segment in segments {
            let at = (segment.image * self.groups + group) * image_len;
            let window = plane.window(&self.x[at..at + image_len], &segment.positions, patch, padded);
            let len = segment.positions.len();
            let runs = plane.runs(segment.positions.clone(), 0, usize::MAX, window.pitch, |c| c);
            for j in (0..patch.len()).step_by(nr) {
                let width = nr.min(patch.len() - j);
                let inner = patch.start + j..patch.start + j + width;
                window.fill(plane, inner, &runs, len, lines);
                let panel = &mut dst[j * cols + column * nr..];
                pack_panel(self.micro, lines, Strides { across: len, along: 1 }, (width, len), panel, nr);
            }
            column += len;
        }
    }
}
