//! Any number of spatial axes, by a matrix of patches for each image; also the patches by themselves.

use smallvec::SmallVec;

use super::{Algorithm, ConvGeometry, Epilogue};
use crate::elementwise::{map_into, rectified};
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
    /// Calls `visit(position, offset)` for every output position, with the offset in a channel of the input under the
    /// kernel element `tap`, or `None` where that is padding.
    fn visit(&self, tap: usize, mut visit: impl FnMut(usize, Option<usize>)) {
        let axes = self.windows.len();
        let mut tap_index = SmallVec::<[usize; 6]>::from_elem(0, axes);
        let mut rest = tap;
        for d in (0..axes).rev() {
            tap_index[d] = rest % self.windows[d].kernel;
            rest /= self.windows[d].kernel;
        }
        let mut at = SmallVec::<[usize; 6]>::from_elem(0, axes);
        let outputs: SmallVec<[usize; 6]> = self.windows.iter().map(|w| w.output).collect();
        let mut position = 0;
        if self.output_area() == 0 {
            return;
        }
        loop {
            let mut offset = Some(0usize);
            for (d, window) in self.windows.iter().enumerate() {
                let i = window.position(at[d], tap_index[d]);
                offset = offset.zip(i).map(|(o, i)| o * window.input + i);
            }
            visit(position, offset);
            position += 1;
            if !advance(&mut at, &outputs) {
                return;
            }
        }
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
        geometry.visit(row % taps, |p, offset| col[p] = offset.map_or(T::zero(), |o| channel[o]));
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
            geometry.visit(tap, |p, offset| {
                if let Some(o) = offset {
                    channel[o] += col[p];
                }
            });
        }
    });
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
