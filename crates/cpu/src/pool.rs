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

/// Elements of x whose row maxima are taken together: they and what comes of them stay in the nearest cache.
const AT_ONCE: usize = 2048;

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

    /// The columns of a row by tap, among `rows` rows sorted by phase.
    fn taps(&self, rows: usize) -> SmallVec<[Tap; 8]> {
        let (stride, pitch) = (self.stride[1], self.pitch());
        let tap = |j: usize| {
            let shift = j as isize - self.pad[1] as isize;
            let first = (-shift).max(0).unsigned_abs().div_ceil(stride);
            let end = (self.input[1] as isize - shift).max(0).unsigned_abs().div_ceil(stride).min(self.output[1]);
            let column = ((first * stride) as isize + shift).max(0) as usize;
            let at = column % stride * rows * pitch + column / stride;
            (first < end).then_some(Tap { outputs: first..end, column, at })
        };
        (0..self.kernel[1]).filter_map(tap).collect()
    }

    /// Columns of one phase of a plane.
    fn pitch(&self) -> usize {
        self.input[1].div_ceil(self.stride[1])
    }

    /// Elements of `rows` rows that are sorted by phase.
    fn phases_len(&self, rows: usize) -> usize {
        self.stride[1] * rows * self.pitch()
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
        for_each_part(y, planes * out, |part, y| {
            // SAFETY: every plane is visited once.
            let index = unsafe { index.part(part * planes * out..part * planes * out + y.len()) };
            let planes = part * planes..part * planes + y.len() / out;
            self.max_planes(&x[planes.start * area..planes.end * area], origins, y, index);
        });
    }

    /// Max pooling of a few planes, first along rows, then along columns. Values and the places they were found at go
    /// together; places count from a window's first element, which `origins` have for each output.
    fn max_planes<T: Float>(&self, x: &[T], origins: &[T], y: &mut [T], index: &mut [T]) {
        let (height, spacing) = (self.padded_rows(), self.pitch().max(self.output[1]));
        let planes = x.len() / self.input_area();
        let mut rows = [(); 2].map(|()| Scratch::<T>::new(planes * height * spacing));
        rows[0].fill(T::of(-f32::MAX as f64));
        // Without padding, the rows of all planes are one run.
        let run = if height == self.input[0] { planes * height } else { self.input[0] };
        for (n, x) in x.chunks_exact(run * self.input[1]).enumerate() {
            let from = (n * height + self.pad[0]) * spacing;
            let [values, places] = rows.each_mut().map(|r| &mut r[from..from + run * spacing]);
            self.max_along_rows(x, spacing, values, places);
        }
        // Windows at every row, of which those at multiples of the stride are kept.
        let len = (planes * height + 1 - self.kernel[0]) * spacing;
        let mut windows = rows.each_ref().map(|r| {
            let mut window = Scratch::<T>::new(len);
            window.copy_from_slice(&r[..len]);
            window
        });
        for row in 1..self.kernel[0] {
            let below = rows.each_ref().map(|r| &r[row * spacing..][..len]);
            let [values, places] = windows.each_mut().map(|w| &mut w[..]);
            larger_below(below[0], below[1], T::of((row * self.input[1]) as f64), values, places);
        }
        let starts = (0..planes).flat_map(|p| (0..self.output[0]).map(move |i| p * height + i * self.stride[0]));
        for (start, at) in starts.zip((0..).step_by(self.output[1])) {
            copy_row(&windows[0][start * spacing..], &mut y[at..], self.output[1]);
            copy_row(&windows[1][start * spacing..], &mut index[at..], self.output[1]);
        }
        add_origins(origins, y, index);
    }

    /// The largest of each window's part in each row of x, and how many columns after the window's first it is; both
    /// with `spacing` elements to a row. Values are −[`f32::MAX`] before.
    fn max_along_rows<T: Float>(&self, x: &[T], spacing: usize, values: &mut [T], places: &mut [T]) {
        let (width, pitch, stride) = (self.input[1], self.pitch(), self.stride[1]);
        let rows = x.len() / width;
        let inside = self.pad[1] == 0 && (self.output[1] - 1) * stride + self.kernel[1] <= width;
        if inside && stride == 2 && self.kernel[1] == 2 && width.is_multiple_of(2) {
            return larger_of_pairs(x, values, places);
        }
        let mut phases = Scratch::<T>::new(self.phases_len(rows));
        sort_by_phase(x, width, stride, pitch, &mut phases);
        for tap in self.taps(rows) {
            let place = T::of((tap.column + self.pad[1] - tap.outputs.start * stride) as f64);
            if inside {
                // One loop over all rows; what falls between the windows of two rows is never looked at.
                let len = (rows - 1) * pitch + self.output[1];
                larger(&phases[tap.at..][..len], place, values, places);
                continue;
            }
            for row in 0..rows {
                let outputs = row * spacing + tap.outputs.start..row * spacing + tap.outputs.end;
                let from = &phases[tap.at + row * pitch..][..outputs.len()];
                larger(from, place, &mut values[outputs.clone()], &mut places[outputs]);
            }
        }
    }

    /// Rows of a plane with its padding, and with what windows hang over.
    fn padded_rows(&self) -> usize {
        (self.input[0] + self.pad[0]).max((self.output[0] - 1) * self.stride[0] + self.kernel[0])
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
        let taps = self.taps(self.input[0]);
        for_each_row(y, out, |plane, y| {
            let x = &x[plane * area..][..area];
            if out == 1 && self.pad == [0, 0] && self.kernel == self.input {
                y[0] = crate::elementwise::fold_block(x, |v| v) / T::of(area as f64);
                return;
            }
            let mut phases = Scratch::<T>::new(self.phases_len(self.input[0]));
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
        let taps = self.taps(self.input[0]);
        for_each_row(dx, area, |plane, dx| {
            let dy = &dy[plane * out..][..out];
            if out == 1 && self.pad == [0, 0] && self.kernel == self.input {
                return dx.fill(dy[0] / T::of(area as f64));
            }
            let mut share = Scratch::<T>::new(out);
            share.copy_from_slice(dy);
            self.divide(&mut share);
            let mut phases = Scratch::<T>::new(self.phases_len(self.input[0]));
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
    /// The input column under the first of them.
    column: usize,
    /// Where that column lies in the first row of a plane sorted by phase.
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
    /// Takes up the values that are above the largest so far, and that they are at `place`.
    fn larger[T: Float](from: &[T], place: T, values: &mut [T], places: &mut [T]) {
        for ((&v, value), at) in from.iter().zip(values).zip(places) {
            let above = v > *value;
            *value = if above { v } else { *value };
            *at = if above { place } else { *at };
        }
    }
}

vectorized! {
    /// Takes up the values that are above the largest so far, and their places, `further` on.
    fn larger_below[T: Float](from: &[T], at: &[T], further: T, values: &mut [T], places: &mut [T]) {
        for (((&v, &a), value), place) in from.iter().zip(at).zip(values).zip(places) {
            let above = v > *value;
            *value = if above { v } else { *value };
            *place = if above { a + further } else { *place };
        }
    }
}

vectorized! {
    /// The larger of each two neighbours, and which it is.
    fn larger_of_pairs[T: Float](x: &[T], values: &mut [T], places: &mut [T]) {
        let none = T::of(-f32::MAX as f64);
        for ((&[a, b], value), place) in x.as_chunks::<2>().0.iter().zip(values).zip(places) {
            let first = if a > none { a } else { none };
            let above = b > first;
            *value = if above { b } else { first };
            *place = if above { T::one() } else { T::zero() };
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

/// Copies `len` elements; of a short row what comes after it too, where there is room, which is to be overwritten: a copy
/// of a known length takes a few instructions, any other a call.
#[inline(always)]
fn copy_row<T: Float>(src: &[T], dst: &mut [T], len: usize) {
    const SHORT: usize = 16;
    match (src.first_chunk::<SHORT>(), dst.first_chunk_mut::<SHORT>()) {
        (Some(src), Some(dst)) if len <= SHORT => *dst = *src,
        _ => dst[..len].copy_from_slice(&src[..len]),
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
