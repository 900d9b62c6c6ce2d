//! Element-wise loops and reductions over slices, in blocks of [`BLOCK`] elements.
//!
//! Reductions sum each block in interleaved lanes and the blocks' sums by halves, always in the same order.

use std::ops::Range;

use lgm_core::Axes3;

use crate::kernel::vectorized;
use crate::parallel::{Shared, tasks};
use crate::stream::{Anew, Copied, compute};
use crate::vector::{axpy_block, dot_block, halves};
use crate::{BLOCK, Float, for_each_block, for_each_part};

/// Sets every element.
pub fn set<T: Float>(value: T, dst: &mut [T]) {
    for_each_block(dst, |_, part| part.fill(value));
}

/// max(x, 0), in which −0 and NaN stay what they are.
#[inline(always)]
pub fn rectified<T: Float>(x: T) -> T {
    if x < T::zero() { T::zero() } else { x }
}

/// x, times `slope` where it is negative.
#[inline(always)]
pub fn leaky<T: Float>(x: T, slope: T) -> T {
    // Not within the branch, where the load of the slope would keep the compiler from making vectors.
    let scaled = slope * x;
    if x < T::zero() { scaled } else { x }
}

/// dy, times `slope` where `sign` is not positive.
#[inline(always)]
pub fn leaky_gradient<T: Float>(sign: T, dy: T, slope: T) -> T {
    let scaled = slope * dy;
    if sign > T::zero() { dy } else { scaled }
}

/// Whether no element is NaN or infinite.
pub fn all_finite(values: &[f32]) -> bool {
    // Without their signs the bits order as the numbers do, and all that are not finite stand above those that are.
    let largest = |part: &[f32]| part.iter().fold(0, |largest, x| (x.to_bits() as i32 & i32::MAX).max(largest));
    values.chunks(BLOCK).all(|part| largest(part) < f32::INFINITY.to_bits() as i32)
}

/// Copies; the slices must be of one length.
pub fn copy<T: Float>(src: &[T], dst: &mut [T]) {
    compute(dst, &Copied(src));
}

/// `dst[i] = f(src[i])`, or `dst[i] = f(dst[i])` when `src` is `None`.
///
/// # Panics
/// When `src` is of another length than `dst`.
pub fn map_into<T: Float>(src: Option<&[T]>, dst: &mut [T], f: impl Fn(T) -> T + Sync) {
    match src {
        Some(src) => {
            assert_eq!(src.len(), dst.len());
            compute(dst, &Map { src, f });
        }
        None => for_each_block(dst, |_, part| map_block_in_place(part, &f)),
    }
}

/// `dst[i] = f(dst[i], a[i])`.
///
/// # Panics
/// When the lengths differ.
pub fn zip_into<T: Float>(a: &[T], dst: &mut [T], f: impl Fn(T, T) -> T + Sync) {
    assert_eq!(a.len(), dst.len());
    for_each_block(dst, |at, part| zip_block(&a[at..at + part.len()], part, &f));
}

/// `dst[i] = f(a[i], b[i])`.
///
/// # Panics
/// When the lengths differ.
pub fn zip2_into<T: Float>(a: &[T], b: &[T], dst: &mut [T], f: impl Fn(T, T) -> T + Sync) {
    assert!(a.len() == dst.len() && b.len() == dst.len());
    compute(dst, &Map2 { a, b, f });
}

/// `dst[i] = f(a[i], b[i], c[i])`.
///
/// # Panics
/// When the lengths differ.
pub fn zip3_into<T: Float>(a: &[T], b: &[T], c: &[T], dst: &mut [T], f: impl Fn(T, T, T) -> T + Sync) {
    assert!(a.len() == dst.len() && b.len() == dst.len() && c.len() == dst.len());
    compute(dst, &Map3 { a, b, c, f });
}

/// y += α·x.
pub fn axpy<T: Float>(alpha: T, x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len());
    for_each_block(y, |at, y| axpy_block(alpha, &x[at..at + y.len()], y));
}

/// y += x.
pub fn add<T: Float>(x: &[T], y: &mut [T]) {
    zip_into(x, y, |y, x| y + x);
}

/// Σ x·y.
pub fn dot<T: Float>(x: &[T], y: &[T]) -> T {
    assert_eq!(x.len(), y.len());
    reduce(x.len(), |r| dot_block(&x[r.clone()], &y[r]))
}

/// Σ x².
pub fn sumsq<T: Float>(x: &[T]) -> T {
    dot(x, x)
}

/// Σ x.
pub fn sum<T: Float>(x: &[T]) -> T {
    reduce(x.len(), |r| fold_block(&x[r], |v| v))
}

/// Sums what `block` returns for consecutive ranges of [`BLOCK`] items of `0..len`, by halves.
pub fn reduce<T: Float>(len: usize, block: impl Fn(Range<usize>) -> T + Sync) -> T {
    fn halves<T: Float>(sums: &[T]) -> T {
        match sums {
            [] => T::zero(),
            [one] => *one,
            _ => {
                let (low, high) = sums.split_at(sums.len() / 2);
                halves(low) + halves(high)
            }
        }
    }
    let count = len.div_ceil(BLOCK);
    if count <= 1 {
        return if len == 0 { T::zero() } else { block(0..len) };
    }
    let mut sums = crate::scratch::Scratch::<T>::new(count);
    let shared = Shared::new(&mut sums);
    tasks(count, true, |i| {
        // SAFETY: one element for each task.
        let sum = unsafe { shared.part(i..i + 1) };
        sum[0] = block(i * BLOCK..((i + 1) * BLOCK).min(len));
    });
    halves(&sums)
}

/// Adds to `out[c]` the sum of x over all that is not channel c of `axes`.
///
/// # Panics
/// When a slice is too short.
pub fn sum_per_channel<T: Float>(x: &[T], axes: Axes3, out: &mut [T]) {
    let x = &x[..axes.count()];
    channel_reduce(axes, &mut out[..axes.channels], |r| fold_block(&x[r], |v| v));
}

/// Adds to `out[c]` the sum of x·y over all that is not channel c of `axes`.
///
/// # Panics
/// When a slice is too short.
pub fn dot_per_channel<T: Float>(x: &[T], y: &[T], axes: Axes3, out: &mut [T]) {
    let (x, y) = (&x[..axes.count()], &y[..axes.count()]);
    channel_reduce(axes, &mut out[..axes.channels], |r| dot_block(&x[r.clone()], &y[r]));
}

/// Adds to `out` the rows of x one after another, or those of x·y, as many elements each as `out` has.
///
/// # Panics
/// When y is shorter than x, or x is not of whole rows.
pub fn sum_rows<T: Float>(x: &[T], y: Option<&[T]>, out: &mut [T]) {
    /// Columns of a task.
    const COLUMNS: usize = 256;
    let len = out.len().max(1);
    assert!(x.len().is_multiple_of(len) && y.is_none_or(|y| y.len() >= x.len()));
    for_each_part(out, COLUMNS, |c, out| {
        for start in (c * COLUMNS..x.len()).step_by(len) {
            let row = start..start + out.len();
            match y {
                Some(y) => zip2_block_in_place(&x[row.clone()], &y[row], out, &|sum, x, y| sum + x * y),
                None => zip_block(&x[row], out, &|sum, x| sum + x),
            }
        }
    });
}

/// Adds to `out[c]`, images in order, what `rows` gives for each image's run of the channel.
fn channel_reduce<T: Float>(axes: Axes3, out: &mut [T], row: impl Fn(Range<usize>) -> T + Sync) {
    let Axes3 { outer, channels, inner } = axes;
    let at_once = (BLOCK / (outer * inner).max(1)).clamp(1, channels.max(1));
    let shared = Shared::new(out);
    tasks(channels.div_ceil(at_once), axes.count() >= 2 * BLOCK, |t| {
        let first = t * at_once;
        // SAFETY: tasks take consecutive, disjoint channels.
        let part = unsafe { shared.part(first..(first + at_once).min(channels)) };
        for (c, out) in part.iter_mut().enumerate() {
            let mut sum = T::zero();
            for image in 0..outer {
                let at = (image * channels + first + c) * inner;
                sum += row(at..at + inner);
            }
            *out += sum;
        }
    });
}

/// f of each element.
pub(crate) struct Map<'a, T, F> {
    pub src: &'a [T],
    pub f: F,
}

impl<T: Float, F: Fn(T) -> T + Sync> Anew<T> for Map<'_, T, F> {
    #[inline(always)]
    fn compute(&self, at: usize, part: &mut [T]) {
        let src = &self.src[at..at + part.len()];
        for (d, &s) in part.iter_mut().zip(src) {
            *d = (self.f)(s);
        }
    }
}

/// f of each pair of elements.
pub(crate) struct Map2<'a, T, F> {
    pub a: &'a [T],
    pub b: &'a [T],
    pub f: F,
}

impl<T: Float, F: Fn(T, T) -> T + Sync> Anew<T> for Map2<'_, T, F> {
    #[inline(always)]
    fn compute(&self, at: usize, part: &mut [T]) {
        let range = at..at + part.len();
        for ((d, &a), &b) in part.iter_mut().zip(&self.a[range.clone()]).zip(&self.b[range]) {
            *d = (self.f)(a, b);
        }
    }
}

struct Map3<'a, T, F> {
    a: &'a [T],
    b: &'a [T],
    c: &'a [T],
    f: F,
}

impl<T: Float, F: Fn(T, T, T) -> T + Sync> Anew<T> for Map3<'_, T, F> {
    #[inline(always)]
    fn compute(&self, at: usize, part: &mut [T]) {
        let range = at..at + part.len();
        let (a, b, c) = (&self.a[range.clone()], &self.b[range.clone()], &self.c[range]);
        for (((d, &a), &b), &c) in part.iter_mut().zip(a).zip(b).zip(c) {
            *d = (self.f)(a, b, c);
        }
    }
}

vectorized! {
    pub(crate) fn map_block_in_place[T: Float, F: Fn(T) -> T](dst: &mut [T], f: &F) {
        for d in dst {
            *d = f(*d);
        }
    }
}

vectorized! {
    pub(crate) fn zip_block[T: Float, F: Fn(T, T) -> T](a: &[T], dst: &mut [T], f: &F) {
        for (d, &a) in dst.iter_mut().zip(a) {
            *d = f(*d, a);
        }
    }
}

vectorized! {
    pub(crate) fn zip2_block_in_place[T: Float, F: Fn(T, T, T) -> T](a: &[T], b: &[T], dst: &mut [T], f: &F) {
        for ((d, &a), &b) in dst.iter_mut().zip(a).zip(b) {
            *d = f(*d, a, b);
        }
    }
}

vectorized! {
    /// Σ f(x) over a short slice, in 64 interleaved partial sums.
    pub(crate) fn fold_block[T: Float, F: Fn(T) -> T](x: &[T], f: F) -> T {
        const L: usize = 64;
        let mut acc = [T::zero(); L];
        let chunks = x.chunks_exact(L);
        let tail = chunks.remainder();
        for x in chunks {
            for l in 0..L {
                acc[l] += f(x[l]);
            }
        }
        halves(acc) + tail.iter().fold(T::zero(), |s, &x| s + f(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, same_bits_on_any_threads};

    #[test]
    fn reductions_agree_with_f64() {
        for len in [0, 1, 63, 64, 65, 1000, BLOCK, BLOCK + 1, 5 * BLOCK + 77] {
            let (x, y): (Vec<f32>, Vec<f32>) = (noise(len, 1), noise(len, 2));
            let close = |found: f32, want: f64| {
                assert!((found as f64 - want).abs() <= 2e-6 * len as f64 + 1e-12, "{len}: {found} for {want}");
            };
            close(dot(&x, &y), x.iter().zip(&y).map(|(&a, &b)| a as f64 * b as f64).sum());
            close(sumsq(&x), x.iter().map(|&a| a as f64 * a as f64).sum());
            close(sum(&x), x.iter().map(|&a| a as f64).sum());
        }
    }

    #[test]
    fn maps_apply_to_every_element() {
        let len = 3 * BLOCK + 5;
        let (x, y): (Vec<f32>, Vec<f32>) = (noise(len, 1), noise(len, 2));
        let mut d = x.clone();
        map_into(None, &mut d, |v| v * 2.0);
        let mut e = vec![0.0; len];
        map_into(Some(&x), &mut e, |v| v * 2.0);
        assert_eq!(d, e);
        axpy(-1.0, &e, &mut d);
        assert!(d.iter().all(|&v| v == 0.0));
        zip2_into(&x, &y, &mut d, |a, b| a * b);
        zip3_into(&x, &y, &d.clone(), &mut e, |a, b, c| a * b - c);
        assert!(e.iter().all(|&v| v == 0.0));
        let mut nan = vec![f32::NAN; len];
        set(0.0, &mut nan);
        assert!(nan.iter().all(|&v| v == 0.0));
        add(&x, &mut nan);
        assert_eq!(nan, x);
    }

    #[test]
    fn rows_are_summed_in_order() {
        for (rows, columns) in [(3, 5), (7, 600), (0, 4), (4, 1)] {
            let (x, y): (Vec<f64>, Vec<f64>) = (noise(rows * columns, 1), noise(rows * columns, 2));
            for y in [None, Some(&y[..])] {
                let mut out = vec![1.0; columns];
                sum_rows(&x, y, &mut out);
                for c in 0..columns {
                    let at = |r: usize| r * columns + c;
                    let want = (0..rows).fold(1.0, |sum, r| sum + x[at(r)] * y.map_or(1.0, |y| y[at(r)]));
                    assert!((out[c] - want).abs() < 1e-12, "{rows} rows, column {c} of {columns}");
                }
            }
        }
    }

    #[test]
    fn channels_are_summed_apart() {
        let (n, c, s) = (3, 5, 7);
        let x: Vec<f64> = noise(n * c * s, 1);
        let mut out = vec![1.0; c];
        sum_per_channel(&x, Axes3::new(n, c, s), &mut out);
        for ch in 0..c {
            let want: f64 = 1.0 + (0..n).map(|i| x[(i * c + ch) * s..][..s].iter().sum::<f64>()).sum::<f64>();
            assert!((out[ch] - want).abs() < 1e-12);
        }
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        let x: Vec<f32> = noise(9 * BLOCK + 3, 1);
        same_bits_on_any_threads(|| {
            let mut per = vec![0.0f32; 9];
            sum_per_channel(&x, Axes3::new(4, 9, 4000), &mut per);
            per.extend([dot(&x, &x), sum(&x)]);
            per
        });
    }
}
