//! The input gradient of a strided convolution: blocks of Wᵀ·dY scattered into dx.

use std::ops::Range;

use super::Planar;
use super::epilogue::Epilogue;
use super::patches::Plane;
use super::phases::Phases;
use crate::gemm::{KC, even_block};
use crate::kernel::{Micro, TileArgs, vectorized};
use crate::pack::{Panels, copy_to_panels};
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;
use crate::{Float, MatMut};

/// Output positions computed at once: at the most, and so many that the elements of their columns are about these.
const POSITIONS: usize = 512;
const ELEMENTS: usize = 1 << 17;
/// Rows of Wᵀ that one task takes, about.
const ROWS: usize = 160;

/// dx from dy, completed by `epilogue`, overwriting dx. A task is some input channels of an image, or of several small ones; their
/// blocks of columns follow in order.
pub(super) fn backward_data<T: Float>(conv: &Planar<T>, w: &[T], dy: &[T], epilogue: Epilogue<'_, T>, dx: &mut [T]) {
    let Planar { micro, ref plane, groups, rows: inner, batch } = *conv;
    let (patch, taps) = (plane.patch_len(), plane.taps());
    let share = even_block(plane.channels, ROWS.div_ceil(taps));
    let shares = plane.channels.div_ceil(share);
    let area = plane.out_area();
    let parallel = batch * groups * inner * area * patch >= 1 << 19;

    // A = Wᵀ, one block for each group and share of the channels; within it, blocks of the inner extent, then panels.
    let mut packed = Scratch::<T>::new(groups * patch * inner);
    let block = even_block(inner, KC);
    let shared = Shared::new(&mut packed);
    let rows_of = |q: usize| q * share * taps..((q + 1) * share).min(plane.channels) * taps;
    tasks(groups * shares, parallel, |t| {
        let (group, rows) = (t / shares, rows_of(t % shares));
        let panels = Panels::new(rows.len(), micro.mr);
        // SAFETY: each task packs rows of its own.
        let dst = unsafe { shared.part((group * patch + rows.start) * inner..(group * patch + rows.end) * inner) };
        let mut at = 0;
        for from in (0..inner).step_by(block) {
            for i in 0..panels.count {
                let (start, height) = (rows.start + panels.start(i), panels.height(i));
                for o in from..(from + block).min(inner) {
                    dst[at..at + height].copy_from_slice(&w[(group * inner + o) * patch + start..][..height]);
                    at += height;
                }
            }
        }
    });

    let packed = &packed;
    let dx = Shared::new(dx);
    // Small images are multiplied several at a time, or a tile of columns would be theirs in part.
    let most = (ELEMENTS / (share * taps)).clamp(64, POSITIONS);
    let together = even_block(batch, (most / area.max(1)).max(1));
    tasks(batch.div_ceil(together) * groups * shares, parallel, |t| {
        let (first, group, q) = (t / shares / groups * together, t / shares % groups, t % shares);
        let images = first..(first + together).min(batch);
        let rows = rows_of(q);
        let channels = rows.start / taps..rows.end / taps;
        let a = &packed[(group * patch + rows.start) * inner..(group * patch + rows.end) * inner];
        let blocks = Blocks::new(plane, most);
        let most = images.len() * blocks.most();
        let mut b = Scratch::<T>::new(block * most.next_multiple_of(micro.nr));
        let mut line = Scratch::<T>::new(most);
        let mut col = Scratch::<T>::new(rows.len() * most);
        let channels_of = |image: usize| {
            let base = (image * groups + group) * plane.channels;
            // SAFETY: the channels of an image belong to one task.
            unsafe { dx.part((base + channels.start) * plane.area()..(base + channels.end) * plane.area()) }
        };
        images.clone().for_each(|image| channels_of(image).fill(T::zero()));
        for place in blocks.each(plane) {
            let of_image = place.positions();
            let cols = images.len() * of_image;
            let from = place.rows.start * plane.columns.output + place.columns.start;
            let dy = |image: usize, o: usize| &dy[((image * groups + group) * inner + o) * area + from..][..of_image];
            let pack = |o: usize, dst: &mut [T], step: usize| {
                if images.len() == 1 {
                    return copy_to_panels(dy(first, o), dst, micro.nr, step);
                }
                let line = &mut line[..cols];
                line.chunks_exact_mut(of_image).zip(images.clone()).for_each(|(to, i)| to.copy_from_slice(dy(i, o)));
                copy_to_panels(line, dst, micro.nr, step);
            };
            multiply(micro, (a, block), (inner, pack), &mut b, MatMut::new(&mut col, rows.len(), cols));
            let phases = Phases::new(&plane.columns, place.columns.clone());
            let mut scratch = Scratch::<T>::new(2 * phases.count());
            for (i, image) in images.clone().enumerate() {
                let of_channels = col.chunks_exact(taps * cols).map(|col| &col[i * of_image..]);
                for channel in of_channels.zip(channels_of(image).chunks_exact_mut(plane.area())) {
                    scatter(plane, micro, (&place, cols), &phases, &mut scratch, channel);
                }
            }
        }
        for image in images {
            for (c, dx) in channels.clone().zip(channels_of(image).chunks_exact_mut(plane.area())) {
                epilogue.apply(group * plane.channels + c, dx);
            }
        }
    });
}

/// Output positions that are computed at once: whole rows, or part of one.
struct Block {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Block {
    fn positions(&self) -> usize {
        self.rows.len() * self.columns.len()
    }
}

/// How output positions are cut into blocks.
struct Blocks {
    rows: usize,
    columns: usize,
}

impl Blocks {
    /// Blocks of at most `most` positions.
    fn new(plane: &Plane, most: usize) -> Blocks {
        let columns = even_block(plane.columns.output, most);
        Blocks { rows: even_block(plane.rows.output, (most / columns).max(1)), columns }
    }

    /// Most positions of a block.
    fn most(&self) -> usize {
        self.rows * self.columns
    }

    fn each(&self, plane: &Plane) -> impl Iterator<Item = Block> {
        let cut = |all: usize, by: usize| (0..all).step_by(by).map(move |from| from..(from + by).min(all));
        let (wide, by) = (plane.columns.output, self.columns);
        cut(plane.rows.output, self.rows)
            .flat_map(move |rows| cut(wide, by).map(move |columns| Block { rows: rows.clone(), columns }))
    }
}

/// col = A·dY, A packed by blocks of the inner extent; dY has `inner` rows, of which `pack` puts one into panels, so far
/// apart, of `b`.
fn multiply<T: Float>(
    micro: &Micro<T>,
    (a, block): (&[T], usize),
    (inner, mut pack): (usize, impl FnMut(usize, &mut [T], usize)),
    b: &mut [T],
    mut col: MatMut<'_, T>,
) {
    let (rows, cols) = (col.rows(), col.columns());
    let (panels, nr, col) = (Panels::new(rows, micro.mr), micro.nr, col.data());
    for from in (0..inner).step_by(block) {
        let depth = block.min(inner - from);
        for p in 0..depth {
            pack(from + p, &mut b[p * nr..], nr * depth);
        }
        for i in 0..panels.count {
            let (start, height) = (panels.start(i), panels.height(i));
            let a = &a[from * rows + start * depth..][..height * depth];
            for j in (0..cols).step_by(nr) {
                let width = nr.min(cols - j);
                let b = &b[j * depth..][..(depth - 1) * nr + width];
                let c = &mut col[start * cols + j..][..(height - 1) * cols + width];
                let args = TileArgs {
                    k: depth,
                    a: a.as_ptr(),
                    a_row: 1,
                    a_step: height,
                    b: b.as_ptr(),
                    ldb: nr,
                    c: c.as_mut_ptr(),
                    ldc: cols,
                    alpha: T::one(),
                    accumulate: from > 0,
                };
                // SAFETY: the panels hold `depth` steps, and the tile of `col` was sliced to size.
                unsafe { (micro.run)(height, width, &args) }
            }
        }
    }
}

/// Adds the columns of a block's positions, whose rows are `positions` long, to the channel of dx that they were taken from.
fn scatter<T: Float>(
    plane: &Plane,
    micro: &Micro<T>,
    (block, positions): (&Block, usize),
    phases: &Phases,
    scratch: &mut [T],
    (col, channel): (&[T], &mut [T]),
) {
    let Plane { rows, columns, .. } = *plane;
    let width = block.columns.len();
    let (sums, line) = scratch.split_at_mut(phases.count());
    // Rows of the channel that the block's windows reach over.
    let clip = |row: usize| (row as isize - rows.pad).clamp(0, rows.input as isize) as usize;
    let (top, bottom) = (block.rows.start * rows.stride, (block.rows.end - 1) * rows.stride + rows.reach());
    for ih in clip(top)..clip(bottom) {
        sums.fill(T::zero());
        for i in 0..rows.kernel {
            let Some(oh) = rows.output_at(ih, i).filter(|oh| block.rows.contains(oh)) else { continue };
            let from = i * columns.kernel * positions + (oh - block.rows.start) * width;
            add_taps(phases.taps(), &col[from..], positions, width, sums);
        }
        phases.join(micro, sums, line, &mut channel[ih * columns.input..][..columns.input], true);
    }
}

vectorized! {
    /// Adds the columns of a row of taps, so many elements each and `pitch` apart, to where the taps begin in `sums`.
    fn add_taps[T: Float](taps: &[usize], col: &[T], pitch: usize, width: usize, sums: &mut [T]) {
        for (j, &at) in taps.iter().enumerate() {
            let col = &col[j * pitch..][..width];
            sums[at..][..width].iter_mut().zip(col).for_each(|(sum, &v)| *sum += v);
        }
    }
}
