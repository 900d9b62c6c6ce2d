//! Max and average pooling over the two inner axes, with Caffe's windows.
//!
//! Output (i, j) covers rows i·stride − pad to i·stride − pad + kernel, and columns likewise, cut to the input. A mean is
//! taken over the part of the window inside the *padded* input, so padding counts as zeros.

use lgm_core::{Result, ensure};

use crate::kernel::vectorized;
use crate::scratch::Scratch;
use crate::{Float, for_each_row};

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

    /// The outputs of a row whose tap `j` lies inside the input, and the input column of the first.
    fn span(&self, j: usize) -> (usize, usize, usize) {
        let (stride, shift) = (self.stride[1], j as isize - self.pad[1] as isize);
        let first = (-shift).max(0).unsigned_abs().div_ceil(stride);
        let end = (self.input[1] as isize - shift).max(0).unsigned_abs().div_ceil(stride).min(self.output[1]);
        if first >= end { (0, 0, 0) } else { (first, end, ((first * stride) as isize + shift) as usize) }
    }

    /// The input rows under output row `i`.
    fn rows(&self, i: usize) -> std::ops::Range<usize> {
        let start = (i * self.stride[0]) as isize - self.pad[0] as isize;
        start.max(0) as usize..((start + self.kernel[0] as isize).max(0) as usize).min(self.input[0])
    }

    /// Elements of window `i` along axis `d`, padding included.
    fn padded_len(&self, d: usize, i: usize) -> usize {
        (i * self.stride[d] + self.kernel[d]).min(self.input[d] + 2 * self.pad[d]) - i * self.stride[d]
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
        let index = crate::parallel::Shared::new(index);
        for_each_row(y, out, |plane, y| {
            // SAFETY: every plane is visited once.
            let index = unsafe { index.part(plane * out..(plane + 1) * out) };
            self.max_plane(&x[plane * area..][..area], y, index);
        });
    }

    fn max_plane<T: Float>(&self, x: &[T], y: &mut [T], index: &mut [T]) {
        y.fill(T::of(-f32::MAX as f64));
        index.fill(-T::one());
        let (width, ow) = (self.input[1], self.output[1]);
        for (i, (y, index)) in y.chunks_exact_mut(ow).zip(index.chunks_exact_mut(ow)).enumerate() {
            for ih in self.rows(i) {
                for j in 0..self.kernel[1] {
                    let (first, end, from) = self.span(j);
                    let (y, index) = (&mut y[first..end], &mut index[first..end]);
                    let row = &x[ih * width + from..(ih + 1) * width];
                    let at = T::of((ih * width + from) as f64);
                    match self.stride[1] {
                        1 => max_row(row, at, y, index),
                        2 => max_every_second(row, at, y, index),
                        stride => max_strided(row, stride, at, y, index),
                    }
                }
            }
        }
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
            for (&dy, &i) in dy[range.clone()].iter().zip(&index[range]) {
                // A window without a maximum has index −1 and passes nothing back.
                if let Some(d) = i.to_usize().and_then(|i| dx.get_mut(i)) {
                    *d += dy;
                }
            }
        });
    }

    /// y = the mean of each window.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn average_forward<T: Float>(&self, x: &[T], y: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(x.len() / area.max(1), y.len() / out.max(1));
        for_each_row(y, out, |plane, y| {
            let x = &x[plane * area..][..area];
            if out == 1 && self.pad == [0, 0] && self.kernel == self.input {
                y[0] = crate::elementwise::fold_block(x, |v| v) / T::of(area as f64);
                return;
            }
            y.fill(T::zero());
            for (i, y) in y.chunks_exact_mut(self.output[1]).enumerate() {
                for ih in self.rows(i) {
                    for j in 0..self.kernel[1] {
                        let (first, end, from) = self.span(j);
                        let row = &x[ih * self.input[1] + from..(ih + 1) * self.input[1]];
                        add_strided(row, self.stride[1], &mut y[first..end]);
                    }
                }
                self.divide(i, y);
            }
        });
    }

    /// dx from dy, overwriting dx.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn average_backward<T: Float>(&self, dy: &[T], dx: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(dx.len() / area.max(1), dy.len() / out.max(1));
        for_each_row(dx, area, |plane, dx| {
            let dy = &dy[plane * out..][..out];
            if out == 1 && self.pad == [0, 0] && self.kernel == self.input {
                return dx.fill(dy[0] / T::of(area as f64));
            }
            dx.fill(T::zero());
            let mut share = Scratch::<T>::new(self.output[1]);
            for (i, dy) in dy.chunks_exact(self.output[1]).enumerate() {
                share.copy_from_slice(dy);
                self.divide(i, &mut share);
                for ih in self.rows(i) {
                    for j in 0..self.kernel[1] {
                        let (first, end, from) = self.span(j);
                        let row = &mut dx[ih * self.input[1] + from..(ih + 1) * self.input[1]];
                        for (d, &s) in row.iter_mut().step_by(self.stride[1]).zip(&share[first..end]) {
                            *d += s;
                        }
                    }
                }
            }
        });
    }

    /// Divides output row `i` by the sizes of its windows.
    fn divide<T: Float>(&self, i: usize, row: &mut [T]) {
        let rows = self.padded_len(0, i);
        for (j, v) in row.iter_mut().enumerate() {
            *v /= T::of((rows * self.padded_len(1, j)) as f64);
        }
    }
}

vectorized! {
    fn max_row[T: Float](row: &[T], at: T, y: &mut [T], index: &mut [T]) {
        let mut here = at;
        for ((y, i), &v) in y.iter_mut().zip(index).zip(row) {
            let above = v > *y;
            *y = if above { v } else { *y };
            *i = if above { here } else { *i };
            here += T::one();
        }
    }
}

vectorized! {
    fn max_every_second[T: Float](row: &[T], at: T, y: &mut [T], index: &mut [T]) {
        let two = T::one() + T::one();
        let mut here = at;
        for ((y, i), v) in y.iter_mut().zip(index).zip(row.chunks(2)) {
            let above = v[0] > *y;
            *y = if above { v[0] } else { *y };
            *i = if above { here } else { *i };
            here += two;
        }
    }
}

fn max_strided<T: Float>(row: &[T], stride: usize, at: T, y: &mut [T], index: &mut [T]) {
    let mut here = at;
    for ((y, i), &v) in y.iter_mut().zip(index).zip(row.iter().step_by(stride)) {
        if v > *y {
            (*y, *i) = (v, here);
        }
        here += T::of(stride as f64);
    }
}

vectorized! {
    /// y += every `stride`-th element of a row.
    fn add_strided[T: Float](row: &[T], stride: usize, y: &mut [T]) {
        match stride {
            1 => y.iter_mut().zip(row).for_each(|(y, &v)| *y += v),
            2 => y.iter_mut().zip(row.chunks(2)).for_each(|(y, v)| *y += v[0]),
            _ => y.iter_mut().zip(row.iter().step_by(stride)).for_each(|(y, &v)| *y += v),
        }
    }
}

#[cfg(test)]
mod tests;
