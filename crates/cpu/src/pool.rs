//! Max and average pooling over the two inner axes, with Caffe's windows.
//!
//! Output (i, j) covers rows i·stride − pad to i·stride − pad + kernel, and columns likewise, cut to the input. A mean is
//! taken over the part of the window inside the *padded* input, so padding counts as zeros.

use std::ops::Range;

use lgm_core::{Result, ensure};
use smallvec::SmallVec;

use crate::kernel::{Kernel, micro, vectorized};
use crate::scratch::Scratch;
use crate::{Float, for_each_part_of, for_each_row};

/// Planes whose maxima are found together.
const LANES: usize = 16;
/// Positions of them held at a time, about: what stays in the nearest caches.
const POSITIONS: usize = 512;

/// How the number of windows is rounded when they do not fit evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Up: a last window may hang over the edge.
    Ceil,
    /// Down.
    Floor,
}

/// The sizes of a pooling; pairs are rows, then columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolGeometry {
    /// Extents of a plane of x.
    pub input: [usize; 2],
    /// Extents of a plane of y.
    pub output: [usize; 2],
    /// Window.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: [usize; 2],
    /// Padding at each side.
    pub pad: [usize; 2],
}

impl PoolGeometry {
    /// The geometry of a pooling, with Caffe's number of windows: rounded as asked, and, where there is padding, without a
    /// last window that would begin beyond the input.
    ///
    /// # Errors
    /// When a kernel or stride is zero, padding is not smaller than the kernel, or the kernel exceeds the padded input.
    pub fn new(
        input: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        pad: [usize; 2],
        round: Round,
    ) -> Result<Self> {
        let mut output = [0; 2];
        for d in 0..2 {
            ensure!(kernel[d] > 0 && stride[d] > 0, "pooling kernel and stride must be positive");
            ensure!(pad[d] < kernel[d], "pooling padding ({}) must be smaller than the kernel ({})", pad[d], kernel[d]);
            let padded = input[d] + 2 * pad[d];
            ensure!(padded >= kernel[d], "pooling kernel ({}) exceeds the padded input ({padded})", kernel[d]);
            let span = padded - kernel[d];
            output[d] = 1 + match round {
                Round::Ceil => span.div_ceil(stride[d]),
                Round::Floor => span / stride[d],
            };
        }
        if pad != [0, 0] {
            for d in 0..2 {
                if (output[d] - 1) * stride[d] >= input[d] + pad[d] {
                    output[d] -= 1;
                }
            }
        }
        Ok(PoolGeometry { input, output, kernel, stride, pad })
    }

    /// Elements of a plane of x.
    pub fn input_area(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Elements of a plane of y.
    pub fn output_area(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// The columns of a row by tap.
    fn taps(&self) -> SmallVec<[Tap; 8]> {
        let (stride, pitch) = (self.stride[1], self.pitch());
        let tap = |j: usize| {
            let shift = j as isize - self.pad[1] as isize;
            let first = (-shift).max(0).unsigned_abs().div_ceil(stride);
            let end = (self.input[1] as isize - shift).max(0).unsigned_abs().div_ceil(stride).min(self.output[1]);
            let column = ((first * stride) as isize + shift).max(0) as usize;
            let at = column % stride * self.input[0] * pitch + column / stride;
            (first < end).then_some(Tap { outputs: first..end, at })
        };
        (0..self.kernel[1]).filter_map(tap).collect()
    }

    /// Columns of one phase of a plane.
    fn pitch(&self) -> usize {
        self.input[1].div_ceil(self.stride[1])
    }

    /// Elements of a plane that is sorted by phase.
    fn phases_len(&self) -> usize {
        self.stride[1] * self.input[0] * self.pitch()
    }

    /// The input rows under output row `i`.
    fn rows(&self, i: usize) -> Range<usize> {
        let start = (i * self.stride[0]) as isize - self.pad[0] as isize;
        start.max(0) as usize..((start + self.kernel[0] as isize).max(0) as usize).min(self.input[0])
    }

    /// Elements of window `i` along axis `d`, padding included; 1 for a window beyond the input, whose mean is 0.
    fn padded_len(&self, d: usize, i: usize) -> usize {
        self.kernel[d].min((self.input[d] + 2 * self.pad[d]).saturating_sub(i * self.stride[d])).max(1)
    }

    /// y = the largest of each window, and `index` = where in the plane it is, the first if there are several.
    ///
    /// A window without an element above −[`f32::MAX`] (all NaN, say) gives that value and the index −1, as in Caffe. An
    /// index is exact in `f32` up to planes of 2²⁴ elements.
    ///
    /// # Panics
    /// When `x` is not `y.len() / output_area()` planes, or `index` is not as long as `y`.
    pub fn max_forward<T: Float>(&self, x: &[T], y: &mut [T], index: Option<&mut [T]>) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(x.len() / area.max(1), y.len() / out.max(1));
        let mut unused;
        let index = match index {
            Some(index) => index,
            None => {
                unused = Scratch::<T>::new(y.len());
                &mut unused[..]
            }
        };
        assert_eq!(index.len(), y.len());
        for_each_part_of([y, index], LANES * out, |group, [y, index]| {
            let x = &x[group * LANES * area..][..y.len() / out * area];
            match self.kernel {
                [2, 2] => max_planes(&[(); 2], self, x, y, index),
                [3, 3] => max_planes(&[(); 3], self, x, y, index),
                _ => max_planes(&[], self, x, y, index),
            }
        });
    }

    /// dx from dy and the indices of [`max_forward`](Self::max_forward), overwriting dx.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn max_backward<T: Float>(&self, dy: &[T], index: &[T], dx: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert!(dx.len() / area.max(1) == dy.len() / out.max(1) && index.len() == dy.len());
        for_each_row(dx, area, |plane, dx| {
            dx.fill(T::zero());
            let range = plane * out..(plane + 1) * out;
            add_at(&dy[range.clone()], &index[range], dx);
        });
    }

    /// y = the mean of each window.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn average_forward<T: Float>(&self, x: &[T], y: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(x.len() / area.max(1), y.len() / out.max(1));
        let taps = self.taps();
        for_each_row(y, out, |plane, y| {
            let x = &x[plane * area..][..area];
            if out == 1 && self.pad == [0, 0] && self.kernel == self.input {
                y[0] = crate::elementwise::fold_block(x, |v| v) / T::of(area as f64);
                return;
            }
            let mut phases = Scratch::<T>::new(self.phases_len());
            sort_by_phase(x, self.input[1], self.stride[1], self.pitch(), &mut phases);
            sum_plane(self, &taps, &phases, y);
            self.divide(y);
        });
    }

    /// dx from dy, overwriting dx.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn average_backward<T: Float>(&self, dy: &[T], dx: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(dx.len() / area.max(1), dy.len() / out.max(1));
        let taps = self.taps();
        for_each_row(dx, area, |plane, dx| {
            let dy = &dy[plane * out..][..out];
            if out == 1 && self.pad == [0, 0] && self.kernel == self.input {
                return dx.fill(dy[0] / T::of(area as f64));
            }
            let mut share = Scratch::<T>::new(out);
            share.copy_from_slice(dy);
            self.divide(&mut share);
            let mut phases = Scratch::<T>::new(self.phases_len());
            phases.fill(T::zero());
            spread_plane(self, &taps, &share, &mut phases);
            unsort(&phases, self.input[1], self.stride[1], self.pitch(), dx);
        });
    }

    /// Divides the outputs of a plane by the sizes of their windows.
    fn divide<T: Float>(&self, plane: &mut [T]) {
        let mut columns = Scratch::<T>::new(self.output[1]);
        columns.iter_mut().enumerate().for_each(|(j, c)| *c = T::of(self.padded_len(1, j) as f64));
        for (i, row) in plane.chunks_exact_mut(self.output[1]).enumerate() {
            let rows = T::of(self.padded_len(0, i) as f64);
            row.iter_mut().zip(columns.iter()).for_each(|(v, &c)| *v /= rows * c);
        }
    }
}

/// One column of the windows.
struct Tap {
    /// The outputs of a row for which it lies inside the input.
    outputs: Range<usize>,
    /// Where the column under the first of them lies in the first row of a plane sorted by phase.
    at: usize,
}

/// Columns of equal remainder by the stride put together, so that what a tap takes from a row is contiguous:
/// `dst[phase·rows·pitch + row·pitch + t] = src[row·width + t·stride + phase]`.
fn sort_by_phase<T: Float>(src: &[T], width: usize, stride: usize, pitch: usize, dst: &mut [T]) {
    let rows = src.len() / width;
    match stride {
        1 => dst[..src.len()].copy_from_slice(src),
        2 if width.is_multiple_of(2) => {
            let (even, odd) = dst.split_at_mut(rows * pitch);
            split_pairs(src, even, odd);
        }
        _ => {
            for (phase, dst) in dst.chunks_exact_mut(rows * pitch).enumerate() {
                for (src, dst) in src.chunks_exact(width).zip(dst.chunks_exact_mut(pitch)) {
                    src.iter().skip(phase).step_by(stride).zip(dst).for_each(|(&s, d)| *d = s);
                }
            }
        }
    }
}

/// The reverse of [`sort_by_phase`].
fn unsort<T: Float>(src: &[T], width: usize, stride: usize, pitch: usize, dst: &mut [T]) {
    let rows = dst.len() / width;
    match stride {
        1 => dst.copy_from_slice(&src[..dst.len()]),
        2 if width.is_multiple_of(2) => {
            let (even, odd) = src.split_at(rows * pitch);
            join_pairs(even, odd, dst);
        }
        _ => {
            for (phase, src) in src.chunks_exact(rows * pitch).enumerate() {
                for (dst, src) in dst.chunks_exact_mut(width).zip(src.chunks_exact(pitch)) {
                    dst.iter_mut().skip(phase).step_by(stride).zip(src).for_each(|(d, &s)| *d = s);
                }
            }
        }
    }
}

vectorized! {
    fn split_pairs[T: Float](src: &[T], even: &mut [T], odd: &mut [T]) {
        for ((pair, e), o) in src.as_chunks::<2>().0.iter().zip(even).zip(odd) {
            (*e, *o) = (pair[0], pair[1]);
        }
    }
}

vectorized! {
    fn join_pairs[T: Float](even: &[T], odd: &[T], dst: &mut [T]) {
        for ((pair, &e), &o) in dst.as_chunks_mut::<2>().0.iter_mut().zip(even).zip(odd) {
            *pair = [e, o];
        }
    }
}

/// The largest of some positions of [`LANES`] planes side by side, and where each is, the first of several; where none is
/// above −[`f32::MAX`], that and −1. The positions are `rows` × `columns` of a region of `width` that begins with row `top`
/// of the planes.
#[inline(always)]
fn largest<T: Float>(
    region: &[[T; LANES]],
    top: usize,
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
) -> [[T; LANES]; 2] {
    let (mut values, mut places) = ([T::of(-f32::MAX as f64); LANES], [-T::one(); LANES]);
    for row in rows {
        for column in columns.clone() {
            let (at, here) = ((row - top) * width + column, T::of((row * width + column) as f64));
            for l in 0..LANES {
                let v = region[at][l];
                let above = v > values[l];
                values[l] = if above { v } else { values[l] };
                places[l] = if above { here } else { places[l] };
            }
        }
    }
    [values, places]
}

vectorized! {
    /// Max pooling of [`LANES`] planes at most, for windows of K × K, or of any if K is 0.
    fn max_planes[T: Float, const K: usize](
        _kernel: &[(); K],
        g: &PoolGeometry,
        x: &[T],
        y: &mut [T],
        index: &mut [T],
    ) {
        let ([height, width], [oh, ow], transpose) = (g.input, g.output, micro::<T>(Kernel::active()).transpose);
        let (area, out) = (height * width, oh * ow);
        let planes = y.len() / out;
        // Rows of windows at a time.
        let band = ((POSITIONS / width).saturating_sub(g.kernel[0]) / g.stride[0] + 1).min(oh);
        let mut region = Scratch::<T>::new(((band - 1) * g.stride[0] + g.kernel[0]).min(height) * width * LANES);
        let mut found = [(); 2].map(|()| Scratch::<T>::new(band * ow * LANES));
        for first in (0..oh).step_by(band) {
            let last = (first + band).min(oh) - 1;
            let (top, bottom) = (g.rows(first).start.min(height), g.rows(last).end);
            let positions = bottom.saturating_sub(top) * width;
            if positions > 0 {
                let x = &x[top * width..][..(planes - 1) * area + positions];
                assert!(positions * LANES <= region.len());
                // SAFETY: x was cut to what is read, the region holds what is written, and the kernel is available.
                unsafe { transpose(planes, positions, x.as_ptr(), area, region.as_mut_ptr(), LANES) }
            }
            let region = region.as_chunks().0;
            let [values, places] = found.each_mut().map(|f| f.as_chunks_mut::<LANES>().0);
            for (i, (values, places)) in (first..=last).zip(values.chunks_mut(ow).zip(places.chunks_mut(ow))) {
                let rows = g.rows(i);
                for (j, (value, place)) in values.iter_mut().zip(places).enumerate() {
                    let start = (j * g.stride[1]) as isize - g.pad[1] as isize;
                    let columns = start.max(0) as usize..((start + g.kernel[1] as isize) as usize).min(width);
                    [*value, *place] = if K > 0 && rows.len() == K && columns.len() == K {
                        let (row, column) = (rows.start, columns.start);
                        largest(region, top, width, row..row + K, column..column + K)
                    } else {
                        largest(region, top, width, rows.clone(), columns)
                    };
                }
            }
            let len = (last + 1 - first) * ow;
            for (to, from) in [(&mut *y, &found[0]), (&mut *index, &found[1])] {
                let to = &mut to[first * ow..][..(planes - 1) * out + len];
                // SAFETY: `to` was cut to what is written, and `len` vectors were found.
                unsafe { transpose(len, planes, from.as_ptr(), LANES, to.as_mut_ptr(), out) }
            }
        }
    }
}

/// An index as an integer, −1 being the largest: in this sum it is what the lowest bits hold. A cast would mind values
/// that no integer has, one at a time.
#[inline(always)]
fn whole_number<T: Float>(index: T) -> u32 {
    (index.f64() + 1.5 * (1u64 << 52) as f64).to_bits() as u32
}

vectorized! {
    /// Adds to dx each element of dy at its index; a window without a maximum has index −1 and passes nothing back.
    fn add_at[T: Float](dy: &[T], index: &[T], dx: &mut [T]) {
        let mut add = |dy: T, at: u32| {
            if let Some(dx) = dx.get_mut(at as usize) {
                *dx += dy;
            }
        };
        let ((dy, last_dy), (index, last)) = (dy.as_chunks::<LANES>(), index.as_chunks::<LANES>());
        for (dy, index) in dy.iter().zip(index) {
            let at = index.map(whole_number);
            (0..LANES).for_each(|l| add(dy[l], at[l]));
        }
        last_dy.iter().zip(last).for_each(|(&dy, &i)| add(dy, whole_number(i)));
    }
}

vectorized! {
    /// y = the sum of each window.
    fn sum_plane[T: Float](g: &PoolGeometry, taps: &[Tap], phases: &[T], y: &mut [T]) {
        y.fill(T::zero());
        for (i, y) in y.chunks_exact_mut(g.output[1]).enumerate() {
            for ih in g.rows(i) {
                for tap in taps {
                    let row = &phases[ih * g.pitch() + tap.at..];
                    y[tap.outputs.clone()].iter_mut().zip(row).for_each(|(y, &v)| *y += v);
                }
            }
        }
    }
}

vectorized! {
    /// Adds to each element the shares of the windows that it is in.
    fn spread_plane[T: Float](g: &PoolGeometry, taps: &[Tap], share: &[T], phases: &mut [T]) {
        for (i, share) in share.chunks_exact(g.output[1]).enumerate() {
            for ih in g.rows(i) {
                for tap in taps {
                    let row = &mut phases[ih * g.pitch() + tap.at..];
                    row.iter_mut().zip(&share[tap.outputs.clone()]).for_each(|(d, &s)| *d += s);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
