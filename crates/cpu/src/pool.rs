//! Max and average pooling over the two inner axes, with Caffe's windows.
//!
//! Output (i, j) covers rows i·stride − pad to i·stride − pad + kernel, and columns likewise, cut to the input. A mean is
//! taken over the part of the window inside the *padded* input, so padding counts as zeros.

use std::ops::Range;

use lgm_core::{Result, ensure};
use smallvec::SmallVec;

use crate::kernel::vectorized;
use crate::scratch::Scratch;
use crate::{Float, for_each_part, for_each_row};

/// Elements of x whose windows are taken together: they and what comes of them stay in the nearest cache.
const AT_ONCE: usize = 1024;

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
        let mut origins = Scratch::<T>::new(out);
        let origin = |d: usize, i: usize| (i * self.stride[d]) as f64 - self.pad[d] as f64;
        let place = |o: usize| origin(0, o / self.output[1]) * self.input[1] as f64 + origin(1, o % self.output[1]);
        origins.iter_mut().enumerate().for_each(|(o, p)| *p = T::of(place(o)));
        let (origins, index) = (&origins, crate::parallel::Shared::new(index));
        let planes = (AT_ONCE / area.max(1)).max(1);
        // Of a plane too large, some rows of windows at a time.
        let (ow, row) = (self.output[1], self.input[1].max(1) * self.stride[0]);
        let rows = if area <= AT_ONCE { self.output[0] } else { (AT_ONCE / row).max(1) };
        for_each_part(y, planes * out, |part, y| {
            // SAFETY: every plane is visited once.
            let index = unsafe { index.part(part * planes * out..part * planes * out + y.len()) };
            let x = &x[part * planes * area..][..y.len() / out * area];
            let band = y.len() / out * rows * ow;
            let bands = y.chunks_mut(band).zip(index.chunks_mut(band));
            for (band, (y, index)) in bands.enumerate() {
                let first = band * rows;
                self.max_rows(x, first..(first + rows).min(self.output[0]), &origins[first * ow..], y, index);
            }
        });
    }

    /// Max pooling of a few planes, or of some rows of windows of one: windows at every element, first along rows, then
    /// along columns, of which those at multiples of the stride are kept. That is more windows than asked for, but in
    /// long loops.
    ///
    /// Values and the places they were found at go together; places count from a window's first element, which `origins`
    /// have for each output.
    fn max_rows<T: Float>(&self, x: &[T], rows: Range<usize>, origins: &[T], y: &mut [T], index: &mut [T]) {
        let none = T::of(-f32::MAX as f64);
        // Extents with padding, and with what windows hang over.
        let [whole, width] =
            [0, 1].map(|d| (self.input[d] + self.pad[d]).max((self.output[d] - 1) * self.stride[d] + self.kernel[d]));
        let (top, all) = (rows.start * self.stride[0], rows.len() == self.output[0]);
        let height = if all { whole } else { (rows.len() - 1) * self.stride[0] + self.kernel[0] };
        let planes = x.len() / self.input_area();
        let mut padded;
        let x = if [whole, width] == self.input {
            &x[top * width..][..planes * height * width]
        } else {
            padded = Scratch::<T>::new(planes * height * width);
            padded.fill(none);
            for (n, x) in x.chunks_exact(self.input[1]).enumerate() {
                let row = n % self.input[0] + self.pad[0];
                if (top..top + height).contains(&row) {
                    let row = n / self.input[0] * height + row - top;
                    padded[row * width + self.pad[1]..][..x.len()].copy_from_slice(x);
                }
            }
            &padded[..]
        };
        // Each step writes to other memory than it reads: in place, it would be compiled to masked stores.
        let pair = |len: usize| [(); 2].map(|()| Scratch::<T>::new(len));
        let len = x.len() + 1 - self.kernel[1];
        let (mut across, mut next) = (pair(len), pair(len));
        let [values, places] = &mut across;
        larger_of_two(&x[..len], &x[1.min(self.kernel[1] - 1)..][..len], values, places);
        for column in 2..self.kernel[1] {
            let ([values, places], [out, at]) = (&across, &mut next);
            larger(values, places, &x[column..][..len], T::of(column as f64), out, at);
            std::mem::swap(&mut across, &mut next);
        }
        let len = len - (self.kernel[0] - 1) * width;
        let (mut windows, mut spare) = (next, pair(if self.kernel[0] > 2 { len } else { 0 }));
        for row in 1..self.kernel[0] {
            let below = row * width..row * width + len;
            let further = T::of((row * self.input[1]) as f64);
            let ([values, places], [out, at]) = if row == 1 { (&across, &mut windows) } else { (&windows, &mut spare) };
            let [below, below_at] = across.each_ref().map(|r| &r[below.clone()]);
            larger_below(&values[..len], &places[..len], below, below_at, further, out, at);
            if row > 1 {
                std::mem::swap(&mut windows, &mut spare);
            }
        }
        let [largest, at] = if self.kernel[0] > 1 { windows } else { across };
        keep(self, rows.len(), [height, width], &largest, y);
        keep(self, rows.len(), [height, width], &at, index);
        add_origins(&origins[..rows.len() * self.output[1]], y, index);
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

vectorized! {
    /// The larger of a and b, −[`f32::MAX`] at least, and which it is.
    fn larger_of_two[T: Float](a: &[T], b: &[T], out: &mut [T], at: &mut [T]) {
        let none = T::of(-f32::MAX as f64);
        for (((&a, &b), out), at) in a.iter().zip(b).zip(out).zip(at) {
            let first = if a > none { a } else { none };
            let above = b > first;
            *out = if above { b } else { first };
            *at = if above { T::one() } else { T::zero() };
        }
    }
}

vectorized! {
    /// The larger of what was largest so far and others, all at `place`.
    fn larger[T: Float](values: &[T], places: &[T], others: &[T], place: T, out: &mut [T], at: &mut [T]) {
        for ((((&v, &p), &other), out), at) in values.iter().zip(places).zip(others).zip(out).zip(at) {
            let above = other > v;
            *out = if above { other } else { v };
            *at = if above { place } else { p };
        }
    }
}

vectorized! {
    /// The larger of what was largest so far and what was in the rows below, whose places are `further` on.
    fn larger_below[T: Float](
        values: &[T],
        places: &[T],
        below: &[T],
        below_at: &[T],
        further: T,
        out: &mut [T],
        at: &mut [T],
    ) {
        let both = values.iter().zip(places).zip(below.iter().zip(below_at));
        for (((&v, &p), (&other, &place)), (out, at)) in both.zip(out.iter_mut().zip(at)) {
            let above = other > v;
            *out = if above { other } else { v };
            *at = if above { place + further } else { p };
        }
    }
}

vectorized! {
    /// The elements of planes of `height` × `width` at multiples of the strides, in `rows` rows.
    fn keep[T: Float](g: &PoolGeometry, rows: usize, extents: [usize; 2], from: &[T], to: &mut [T]) {
        let [height, width] = extents;
        let (columns, stride) = (g.output[1], g.stride[1]);
        for (i, to) in to.chunks_exact_mut(columns).enumerate() {
            let from = &from[(i / rows * height + i % rows * g.stride[0]) * width..][..(columns - 1) * stride + 1];
            match stride {
                1 => to.copy_from_slice(from),
                2 => {
                    let (pairs, last) = from.as_chunks::<2>();
                    to.iter_mut().zip(pairs).for_each(|(t, p)| *t = p[0]);
                    to[columns - 1] = last[0];
                }
                _ => to.iter_mut().zip(from.iter().step_by(stride)).for_each(|(t, &f)| *t = f),
            }
        }
    }
}

vectorized! {
    /// Places in the window to places in the plane; −1 where the window had no largest.
    fn add_origins[T: Float](origins: &[T], y: &[T], index: &mut [T]) {
        let none = T::of(-f32::MAX as f64);
        for (y, index) in y.chunks_exact(origins.len()).zip(index.chunks_exact_mut(origins.len())) {
            for ((&y, index), &origin) in y.iter().zip(index).zip(origins) {
                *index = if y > none { *index + origin } else { -T::one() };
            }
        }
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
