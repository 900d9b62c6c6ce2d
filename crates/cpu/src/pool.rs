//! Max and average pooling over the two inner axes, with Caffe's windows.
//!
//! Output (i, j) covers rows i·stride − pad to i·stride − pad + kernel, and columns likewise, cut to the input. A mean is
//! taken over the part of the window inside the *padded* input, so padding counts as zeros.

use std::ops::Range;

use lgm_core::{Result, ensure};
use smallvec::SmallVec;

use crate::kernel::{Kernel, micro, vectorized};
use crate::scratch::Scratch;
use crate::{BLOCK, Float, for_each_part, for_each_part_of, for_each_row};

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

    /// The input's rows or columns, by axis, that window `i` covers.
    fn covered(&self, d: usize, i: usize) -> Range<usize> {
        let start = (i * self.stride[d]) as isize - self.pad[d] as isize;
        let end = ((start + self.kernel[d] as isize).max(0) as usize).min(self.input[d]);
        (start.max(0) as usize).min(end)..end
    }

    /// The windows, by axis, that cover row or column `i` of the input: the inverse of [`covered`](Self::covered).
    fn covering(&self, d: usize, i: usize) -> Range<usize> {
        let (i, stride) = (i + self.pad[d], self.stride[d]);
        let end = (i / stride + 1).min(self.output[d]);
        ((i + 1).saturating_sub(self.kernel[d]).div_ceil(stride)).min(end)..end
    }

    /// Whether windows of 2 × 2 cover the input once, without a gap.
    fn is_in_squares(&self) -> bool {
        (self.kernel, self.stride, self.pad) == ([2, 2], [2, 2], [0, 0]) && self.input == self.output.map(|n| 2 * n)
    }

    /// Where each window of a row begins, for [`is_in_squares`](Self::is_in_squares).
    fn square_columns<T: Float>(&self) -> SmallVec<[T; 64]> {
        (0..self.output[1]).map(|j| T::of(2.0 * j as f64)).collect()
    }

    /// Elements of a window, padding included; 1 at least along each axis for a window beyond the input, whose mean is 0.
    fn padded_area<T: Float>(&self, window: [usize; 2]) -> T {
        let end = |d: usize| self.input[d] + 2 * self.pad[d];
        let len = |d: usize| self.kernel[d].min(end(d).saturating_sub(window[d] * self.stride[d])).max(1);
        T::of((len(0) * len(1)) as f64)
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
        if self.is_in_squares() {
            let (columns, at_once) = (self.square_columns(), (BLOCK / area).max(1));
            return for_each_part_of([y, index], out * at_once, |group, [y, index]| {
                let planes = y.chunks_exact_mut(out).zip(index.chunks_exact_mut(out));
                let x = &x[group * at_once * area..];
                planes.zip(x.chunks_exact(area)).for_each(|((y, index), x)| largest_of_squares(x, &columns, y, index));
            });
        }
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
        let plane = |n: usize| (&dy[n * out..(n + 1) * out], &index[n * out..(n + 1) * out]);
        if self.is_in_squares() {
            let columns = self.square_columns();
            return for_each_row(dx, area, |n, dx| pass_to_squares(plane(n).0, plane(n).1, &columns, dx));
        }
        for_each_row(dx, area, |n, dx| {
            dx.fill(T::zero());
            add_at(plane(n).0, plane(n).1, dx);
        });
    }

    /// y = the mean of each window.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn average_forward<T: Float>(&self, x: &[T], y: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(x.len() / area.max(1), y.len() / out.max(1));
        for_each_part(y, LANES * out, |group, y| {
            average_planes(self, &x[group * LANES * area..][..y.len() / out * area], y);
        });
    }

    /// dx from dy, overwriting dx.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn average_backward<T: Float>(&self, dy: &[T], dx: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(dx.len() / area.max(1), dy.len() / out.max(1));
        if (self.covered(0, 0), self.covered(1, 0)) == (0..self.input[0], 0..self.input[1]) && out == 1 {
            let all = self.padded_area::<T>([0, 0]);
            return for_each_row(dx, area, |plane, dx| dx.fill(dy[plane] / all));
        }
        for_each_part(dx, LANES * area, |group, dx| {
            spread_planes(self, &dy[group * LANES * out..][..dx.len() / area * out], dx);
        });
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

/// What comes of a window; a trait, for closures are not always inlined where the instructions are.
trait Window<const N: usize> {
    /// Of the window's rows and columns in [`LANES`] planes, whose rows from `top` on the region holds side by side.
    fn take<T: Float>(
        g: &PoolGeometry,
        region: &[[T; LANES]],
        top: usize,
        window: [usize; 2],
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> [[T; LANES]; N];
}

/// The largest of each window of K × K, or of any if K is 0, and its place.
struct Largest<const K: usize>;

impl<const K: usize> Window<2> for Largest<K> {
    #[inline(always)]
    fn take<T: Float>(
        g: &PoolGeometry,
        region: &[[T; LANES]],
        top: usize,
        _: [usize; 2],
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> [[T; LANES]; 2] {
        if K > 0 && rows.len() == K && columns.len() == K {
            let (row, column) = (rows.start, columns.start);
            largest(region, top, g.input[1], row..row + K, column..column + K)
        } else {
            largest(region, top, g.input[1], rows, columns)
        }
    }
}

/// The mean of each window.
struct Mean;

impl Window<1> for Mean {
    #[inline(always)]
    fn take<T: Float>(
        g: &PoolGeometry,
        region: &[[T; LANES]],
        top: usize,
        window: [usize; 2],
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> [[T; LANES]; 1] {
        let mut sum = [T::zero(); LANES];
        for row in rows {
            for v in &region[(row - top) * g.input[1]..][columns.clone()] {
                for l in 0..LANES {
                    sum[l] += v[l];
                }
            }
        }
        let area = g.padded_area::<T>(window);
        sum.iter_mut().for_each(|s| *s /= area);
        [sum]
    }
}

/// Puts what comes of each window of [`LANES`] planes at most where it belongs in `outs`.
#[inline(always)]
fn for_windows<T: Float, W: Window<N>, const N: usize>(g: &PoolGeometry, x: &[T], mut outs: [&mut [T]; N]) {
    let ([height, width], [oh, ow], transpose) = (g.input, g.output, micro::<T>(Kernel::active()).transpose);
    let (area, out) = (height * width, oh * ow);
    let planes = outs[0].len() / out;
    // Rows of windows at a time.
    let band = ((POSITIONS / width.max(1)).saturating_sub(g.kernel[0]) / g.stride[0] + 1).min(oh);
    let mut region = Scratch::<T>::new(((band - 1) * g.stride[0] + g.kernel[0]).min(height) * width * LANES);
    let mut found = [(); N].map(|()| Scratch::<T>::new(band * ow * LANES));
    for first in (0..oh).step_by(band) {
        let last = (first + band).min(oh) - 1;
        let (top, bottom) = (g.covered(0, first).start, g.covered(0, last).end);
        let positions = bottom.saturating_sub(top) * width;
        if positions > 0 {
            let x = &x[top * width..][..(planes - 1) * area + positions];
            assert!(positions * LANES <= region.len());
            // SAFETY: x was cut to what is read, the region holds what is written, and the kernel is available.
            unsafe { transpose(planes, positions, x.as_ptr(), area, region.as_mut_ptr(), LANES) }
        }
        let region = region.as_chunks().0;
        let vectors = found.each_mut().map(|f| f.as_chunks_mut::<LANES>().0);
        for (n, i) in (first..=last).enumerate() {
            let rows = g.covered(0, i);
            for j in 0..ow {
                let values = W::take(g, region, top, [i, j], rows.clone(), g.covered(1, j));
                for k in 0..N {
                    vectors[k][n * ow + j] = values[k];
                }
            }
        }
        let len = (last + 1 - first) * ow;
        for (to, from) in outs.iter_mut().zip(&found) {
            let to = &mut to[first * ow..][..(planes - 1) * out + len];
            // SAFETY: `to` was cut to what is written, and `len` vectors were found.
            unsafe { transpose(len, planes, from.as_ptr(), LANES, to.as_mut_ptr(), out) }
        }
    }
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
        for_windows::<T, Largest<K>, 2>(g, x, [y, index]);
    }
}

vectorized! {
    /// Average pooling of [`LANES`] planes at most.
    fn average_planes[T: Float](g: &PoolGeometry, x: &[T], y: &mut [T]) {
        for_windows::<T, Mean, 1>(g, x, [y]);
    }
}

vectorized! {
    /// The gradient of [`LANES`] planes at most from that of their means.
    fn spread_planes[T: Float](g: &PoolGeometry, dy: &[T], dx: &mut [T]) {
        let ([height, width], [_, ow], transpose) = (g.input, g.output, micro::<T>(Kernel::active()).transpose);
        let (area, out) = (g.input_area(), g.output_area());
        let planes = dx.len() / area;
        let (mut shares, mut region) = (Scratch::<T>::new(out * LANES), Scratch::<T>::new(area * LANES));
        assert!(dy.len() == planes * out && dx.len() == planes * area);
        // SAFETY: every plane has `out` windows, and there are as many vectors; the kernel is available.
        unsafe { transpose(planes, out, dy.as_ptr(), out, shares.as_mut_ptr(), LANES) }
        let shares = shares.as_chunks_mut::<LANES>().0;
        for (o, share) in shares.iter_mut().enumerate() {
            let area = g.padded_area::<T>([o / ow, o % ow]);
            share.iter_mut().for_each(|s| *s /= area);
        }
        let positions = region.as_chunks_mut::<LANES>().0;
        let across: SmallVec<[_; 64]> = (0..width).map(|column| g.covering(1, column)).collect();
        for row in 0..height {
            let rows = g.covering(0, row);
            for (column, columns) in across.iter().enumerate() {
                let mut sum = [T::zero(); LANES];
                for row in rows.clone() {
                    for share in &shares[row * ow..][columns.clone()] {
                        for l in 0..LANES {
                            sum[l] += share[l];
                        }
                    }
                }
                positions[row * width + column] = sum;
            }
        }
        // SAFETY: every plane has `area` positions, and there are as many vectors.
        unsafe { transpose(area, planes, region.as_ptr(), LANES, dx.as_mut_ptr(), area) }
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
    /// What [`largest`] finds, in a plane that windows of 2 × 2 cover without a gap; `columns` is where each window of a row
    /// begins.
    fn largest_of_squares[T: Float](x: &[T], columns: &[T], y: &mut [T], index: &mut [T]) {
        let (wide, width) = (columns.len(), 2 * columns.len());
        let down = T::of(width as f64);
        for (i, rows) in x.chunks_exact(2 * width).enumerate() {
            let (upper, lower) = rows.split_at(width);
            let begins = T::of((2 * i * width) as f64);
            let found = y[i * wide..][..wide].iter_mut().zip(&mut index[i * wide..][..wide]);
            let squares = upper.as_chunks::<2>().0.iter().zip(lower.as_chunks::<2>().0);
            for (((y, index), (upper, lower)), &column) in found.zip(squares).zip(columns) {
                let at = begins + column;
                let (mut value, mut place) = (T::of(-f32::MAX as f64), -T::one());
                for (v, here) in [
                    (upper[0], at),
                    (upper[1], at + T::one()),
                    (lower[0], at + down),
                    (lower[1], at + down + T::one()),
                ] {
                    let above = v > value;
                    (value, place) = (if above { v } else { value }, if above { here } else { place });
                }
                (*y, *index) = (value, place);
            }
        }
    }
}

vectorized! {
    /// dx of a plane that windows of 2 × 2 cover without a gap: each element of dy at its index, and 0 elsewhere. `columns`
    /// is where each window of a row begins.
    fn pass_to_squares[T: Float](dy: &[T], index: &[T], columns: &[T], dx: &mut [T]) {
        let (wide, width) = (columns.len(), 2 * columns.len());
        let down = T::of(width as f64);
        for (i, rows) in dx.chunks_exact_mut(2 * width).enumerate() {
            let (upper, lower) = rows.split_at_mut(width);
            let begins = T::of((2 * i * width) as f64);
            let (dy, index) = (&dy[i * wide..][..wide], &index[i * wide..][..wide]);
            let squares = upper.as_chunks_mut::<2>().0.iter_mut().zip(lower.as_chunks_mut::<2>().0);
            for ((((upper, lower), &dy), &index), &column) in squares.zip(dy).zip(index).zip(columns) {
                let at = index - begins - column;
                let passed = |to: T| if at == to { dy } else { T::zero() };
                *upper = [passed(T::zero()), passed(T::one())];
                *lower = [passed(down), passed(down + T::one())];
            }
        }
    }
}

#[cfg(test)]
mod tests;
