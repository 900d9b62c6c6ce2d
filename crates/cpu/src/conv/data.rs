//! The input gradient of a strided convolution: blocks of Wᵀ·dY scattered into dx.

use super::Planar;
use super::patches::Plane;
use crate::gemm::{KC, even_block};
use crate::kernel::{Micro, TileArgs, vectorized};
use crate::pack::{Panels, copy_to_panels};
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;
use crate::{Float, MatMut, MatRef};

/// Output positions computed at once.
const POSITIONS: usize = 512;
/// Rows of Wᵀ that one task takes, about.
const ROWS: usize = 160;

/// dx from dy, overwriting dx. A task is some input channels of one image; their blocks of columns follow in order.
pub(super) fn backward_data<T: Float>(conv: &Planar<T>, w: &[T], dy: &[T], dx: &mut [T]) {
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
    tasks(batch * groups * shares, parallel, |t| {
        let (image, group, q) = (t / shares / groups, t / shares % groups, t % shares);
        let rows = rows_of(q);
        let channels = rows.start / taps..rows.end / taps;
        let base = (image * groups + group) * plane.channels;
        // SAFETY: the channels of an image belong to one task.
        let dx = unsafe { dx.part((base + channels.start) * plane.area()..(base + channels.end) * plane.area()) };
        dx.fill(T::zero());
        let dy = &dy[(image * groups + group) * inner * area..][..inner * area];
        let a = &packed[(group * patch + rows.start) * inner..(group * patch + rows.end) * inner];
        let most = POSITIONS.min(area);
        let mut b = Scratch::<T>::new(block * most.next_multiple_of(micro.nr));
        let mut col = Scratch::<T>::new(rows.len() * most);
        for s in (0..area).step_by(most) {
            let cols = most.min(area - s);
            let dy = MatRef::with_stride(&dy[s..], inner, cols, area);
            multiply(micro, (a, block), dy, &mut b, MatMut::new(&mut col, rows.len(), cols));
            scatter(plane, s, cols, &col, dx);
        }
    });
}

/// col = A·dY, A packed by blocks of the inner extent; dY is packed to `b` on the way.
fn multiply<T: Float>(
    micro: &Micro<T>,
    (a, block): (&[T], usize),
    dy: MatRef<'_, T>,
    b: &mut [T],
    mut col: MatMut<'_, T>,
) {
    let (rows, cols, inner) = (col.rows(), col.columns(), dy.rows());
    let (panels, nr, col) = (Panels::new(rows, micro.mr), micro.nr, col.data());
    for from in (0..inner).step_by(block) {
        let depth = block.min(inner - from);
        for p in 0..depth {
            copy_to_panels(&dy.from(from + p, 0)[..cols], &mut b[p * nr..], nr, nr * depth);
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

/// Adds the columns of positions `s..s + cols` to the channels of dx that they were taken from.
fn scatter<T: Float>(plane: &Plane, s: usize, cols: usize, col: &[T], dx: &mut [T]) {
    let taps = plane.taps();
    for (row, col) in col.chunks_exact(cols).take(dx.len() / plane.area() * taps).enumerate() {
        let channel = &mut dx[row / taps * plane.area()..][..plane.area()];
        scatter_tap(plane, row % taps / plane.columns.kernel, row % plane.columns.kernel, s, col, channel);
    }
}

vectorized! {
    /// Adds the column of tap (i, j), over positions from `s` on, to a channel.
    fn scatter_tap[T: Float](plane: &Plane, i: usize, j: usize, s: usize, col: &[T], channel: &mut [T]) {
        let Plane { rows, columns, .. } = *plane;
        let shift = (j * columns.dilation) as isize - columns.pad;
        // Outputs of a row whose tap is inside the input.
        let low = (-shift).max(0).unsigned_abs().div_ceil(columns.stride);
        let high = (columns.input as isize - shift).max(0).unsigned_abs().div_ceil(columns.stride);
        let (mut at, mut oh, mut ow) = (0, s / columns.output, s % columns.output);
        while at < col.len() {
            let len = (columns.output - ow).min(col.len() - at);
            let ih = (oh * rows.stride + i * rows.dilation) as isize - rows.pad;
            let (first, end) = (low.max(ow), high.min(ow + len));
            if ih >= 0 && ih < rows.input as isize && first < end {
                let from = ih as usize * columns.input + ((first * columns.stride) as isize + shift) as usize;
                let src = &col[at + first - ow..at + end - ow];
                let dst = &mut channel[from..][..(end - first - 1) * columns.stride + 1];
                if columns.stride == 1 {
                    dst.iter_mut().zip(src).for_each(|(d, &v)| *d += v);
                } else {
                    dst.iter_mut().step_by(columns.stride).zip(src).for_each(|(d, &v)| *d += v);
                }
            }
            (at, oh, ow) = (at + len, oh + 1, 0);
        }
    }
}
