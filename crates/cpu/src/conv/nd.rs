//! Any number of spatial axes, by a matrix of patches for each image; also the patches by themselves.

use std::ops::Range;

use lgm_core::Window;
use smallvec::SmallVec;

use super::{Algorithm, ConvGeometry, Epilogue};
use crate::elementwise::{map_into, rectified};
use crate::kernel::vectorized;
use crate::parallel::for_each_row;
use crate::scratch::Scratch;
use crate::{Float, Gemm, MatMut, MatRef};

/// Steps a multi-index through `extents`, innermost fastest; false once it has wrapped.
fn advance(index: &mut [usize], extents: &[usize]) -> bool {
    for (i, &n) in index.iter_mut().zip(extents).rev() {
        *i += 1;
        if *i < n {
            return true;
        }
        *i = 0;
    }
    false
}

impl ConvGeometry {
    /// Calls `visit(row, inside, seen)` for every row of output positions along the last axis: with the row's positions, those
    /// of them (counted from its first) for which the kernel element `tap` is not in the padding, and where in a channel of
    /// the input the first of these sees it; the next see it [`step`](Self::step) elements further on.
    fn visit(&self, tap: usize, mut visit: impl FnMut(Range<usize>, Range<usize>, usize)) {
        let (last, outer) = self.windows.split_last().map_or((Window::UNIT, &[][..]), |(&last, outer)| (last, outer));
        let mut rest = tap / last.kernel;
        let mut tap_index = SmallVec::<[usize; 6]>::from_elem(0, outer.len());
        for (index, window) in tap_index.iter_mut().zip(outer).rev() {
            *index = rest % window.kernel;
            rest /= window.kernel;
        }
        let (inside, from) = last.outputs_of(tap % last.kernel);
        let mut at = SmallVec::<[usize; 6]>::from_elem(0, outer.len());
        let outputs: SmallVec<[usize; 6]> = outer.iter().map(|w| w.output).collect();
        let mut start = 0;
        if self.output_area() == 0 {
            return;
        }
        loop {
            let seen = outer
                .iter()
                .zip(at.iter().zip(&tap_index))
                .try_fold(0, |offset, (window, (&at, &tap))| Some(offset * window.input + window.position(at, tap)?));
            let (inside, seen) = seen.map_or((0..0, 0), |row| (inside.clone(), row * last.input + from));
            visit(start..start + last.output, inside, seen);
            start += last.output;
            if !advance(&mut at, &outputs) {
                return;
            }
        }
    }

    /// How far apart what neighbours along the last axis see is.
    fn step(&self) -> usize {
        self.windows.last().map_or(1, |last| last.stride)
    }

    pub(super) fn taps(&self) -> usize {
        self.area(|w| w.kernel)
    }
}

/// The patches of one image: `col[(c·taps + tap)·positions + position]`, over all channels of x, zero in the padding.
///
/// # Panics
/// When `x` or `col` is too short.
pub fn im2col_nd<T: Float>(geometry: &ConvGeometry, x: &[T], col: &mut [T]) {
    let (taps, area, positions) = (geometry.taps(), geometry.input_area(), geometry.output_area());
    let col = &mut col[..geometry.in_channels * taps * positions];
    for_each_row(col, positions, |row, col| {
        let channel = &x[row / taps * area..][..area];
        geometry.visit(row % taps, |row, inside, seen| {
            let row = &mut col[row];
            row[..inside.start].fill(T::zero());
            row[inside.end..].fill(T::zero());
            take(&mut row[inside], &channel[seen..], geometry.step());
        });
    });
}

/// The adjoint of [`im2col_nd`]: sums the patches into `x`, overwriting it.
///
/// # Panics
/// When `x` or `col` is too short.
pub fn col2im_nd<T: Float>(geometry: &ConvGeometry, col: &[T], x: &mut [T]) {
    let (taps, area, positions) = (geometry.taps(), geometry.input_area(), geometry.output_area());
    for_each_row(&mut x[..geometry.in_channels * area], area, |c, channel| {
        channel.fill(T::zero());
        for tap in 0..taps {
            let col = &col[(c * taps + tap) * positions..][..positions];
            geometry.visit(tap, |row, inside, seen| add(&mut channel[seen..], &col[row][inside], geometry.step()));
        }
    });
}

vectorized! {
    /// dst[i] = src[i · step].
    fn take[T: Float](dst: &mut [T], src: &[T], step: usize) {
        match step {
            1 => dst.copy_from_slice(&src[..dst.len()]),
            _ => dst.iter_mut().zip(src.chunks(step)).for_each(|(d, s)| *d = s[0]),
        }
    }
}

vectorized! {
    /// dst[i · step] += src[i].
    fn add[T: Float](dst: &mut [T], src: &[T], step: usize) {
        match step {
            1 => dst.iter_mut().zip(src).for_each(|(d, &s)| *d += s),
            _ => dst.chunks_mut(step).zip(src).for_each(|(d, &s)| d[0] += s),
        }
    }
}

pub(super) fn forward<T: Float>(
    geometry: &ConvGeometry,
    algorithm: Algorithm,
    batch: usize,
    x: &[T],
    w: &[T],
    epilogue: Epilogue<'_, T>,
    y: &mut [T],
) {
    let (k, s, rows) = (geometry.patch_len(), geometry.output_area(), geometry.out_channels / geometry.group);
    let mut col = Scratch::<T>::new(geometry.group * k * s);
    for image in 0..batch {
        im2col_nd(geometry, &x[image * geometry.input_len()..], &mut col);
        let y = &mut y[image * geometry.output_len()..][..geometry.output_len()];
        let beta = match epilogue.bias {
            Some(bias) => {
                y.chunks_exact_mut(s).zip(bias).for_each(|(row, &b)| row.fill(b));
                T::one()
            }
            None => T::zero(),
        };
        for g in 0..geometry.group {
            let (w, col, y) = (&w[g * rows * k..], &col[g * k * s..], &mut y[g * rows * s..]);
            let (a, b, c) = (MatRef::new(w, rows, k), MatRef::new(col, k, s), MatMut::new(y, rows, s));
            Gemm { alpha: T::one(), a, b, beta, c }.run_on(algorithm.kernel);
        }
        if epilogue.relu {
            map_into(None, y, rectified);
        }
    }
}

pub(super) fn backward_data<T: Float>(
    geometry: &ConvGeometry,
    algorithm: Algorithm,
    batch: usize,
    w: &[T],
    dy: &[T],
    dx: &mut [T],
) {
    let (k, s, rows) = (geometry.patch_len(), geometry.output_area(), geometry.out_channels / geometry.group);
    let mut col = Scratch::<T>::new(geometry.group * k * s);
    for image in 0..batch {
        let dy = &dy[image * geometry.output_len()..];
        for g in 0..geometry.group {
            let (w, dy, col) = (&w[g * rows * k..], &dy[g * rows * s..], &mut col[g * k * s..]);
            let (a, b, c) = (MatRef::new(w, rows, k).t(), MatRef::new(dy, rows, s), MatMut::new(col, k, s));
            Gemm { alpha: T::one(), a, b, beta: T::zero(), c }.run_on(algorithm.kernel);
        }
        col2im_nd(geometry, &col, &mut dx[image * geometry.input_len()..]);
    }
}

pub(super) fn backward_weights<T: Float>(
    geometry: &ConvGeometry,
    algorithm: Algorithm,
    batch: usize,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    let (k, s, rows) = (geometry.patch_len(), geometry.output_area(), geometry.out_channels / geometry.group);
    let mut col = Scratch::<T>::new(geometry.group * k * s);
    for image in 0..batch {
        im2col_nd(geometry, &x[image * geometry.input_len()..], &mut col);
        let dy = &dy[image * geometry.output_len()..];
        for g in 0..geometry.group {
            let (dy, col, dw) = (&dy[g * rows * s..], &col[g * k * s..], &mut dw[g * rows * k..]);
            let (a, b, c) = (MatRef::new(dy, rows, s), MatRef::new(col, k, s).t(), MatMut::new(dw, rows, k));
            Gemm { alpha: T::one(), a, b, beta: T::one(), c }.run_on(algorithm.kernel);
        }
    }
}
