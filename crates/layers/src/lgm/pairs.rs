//! Sums over the features of every (item, class) pair, from differences taken one by one.
//!
//! The expansion |w|² − 2w·x + |x|² would be a matrix multiplication, but it loses all its digits where the distance is small
//! against the vectors, which is where training brings the features of each class.

use lgm_core::Float;

use crate::common::loops::{for_rows, sum, sum_weighted};

/// M rows of features against N rows of centers, K wide.
#[derive(Clone, Copy)]
pub(crate) struct Pairs<'a, T> {
    /// Features, [M, K].
    pub x: &'a [T],
    /// Centers, [N, K].
    pub w: &'a [T],
    /// N.
    pub classes: usize,
    /// K.
    pub width: usize,
    /// Differences where the feature is zero count as zero.
    pub skip_zero: bool,
}

impl<T: Float> Pairs<'_, T> {
    /// w − x, or zero where that is left out.
    #[inline(always)]
    fn difference(&self) -> impl Fn(T, T) -> T + Copy + use<T> {
        let skip = self.skip_zero;
        move |x, w| if skip & (x == T::zero()) { T::zero() } else { w - x }
    }

    fn x_row(&self, i: usize) -> &[T] {
        &self.x[i * self.width..(i + 1) * self.width]
    }

    fn class<'b>(&self, of: &'b [T], j: usize) -> &'b [T] {
        &of[j * self.width..(j + 1) * self.width]
    }

    fn items(&self) -> usize {
        self.x.len() / self.width.max(1)
    }

    /// Calls `task(i, row)` for each row of an [M, N] blob.
    fn for_items(&self, out: &mut [T], task: impl Fn(usize, &mut [T]) + Sync) {
        for_rows(out, self.classes, self.classes * self.width, task);
    }

    /// out = Σₖ (w − x)², [M, N].
    pub fn squares(&self, out: &mut [T]) {
        let e = self.difference();
        self.for_items(out, |i, row| {
            let x = self.x_row(i);
            for (j, d) in row.iter_mut().enumerate() {
                *d = sum(x, self.class(self.w, j), |x, w| e(x, w) * e(x, w));
            }
        });
    }

    /// out = Σₖ v·(w − x)², [M, N], with weights `v` [N, K].
    pub fn weighted_squares(&self, v: &[T], out: &mut [T]) {
        let e = self.difference();
        self.for_items(out, |i, row| {
            let x = self.x_row(i);
            for (j, d) in row.iter_mut().enumerate() {
                *d = sum_weighted(x, self.class(self.w, j), self.class(v, j), |x, w| e(x, w) * e(x, w));
            }
        });
    }

    /// out = Σₖ |w − x|, [M, N].
    pub fn absolutes(&self, out: &mut [T]) {
        let e = self.difference();
        self.for_items(out, |i, row| {
            let x = self.x_row(i);
            for (j, d) in row.iter_mut().enumerate() {
                *d = sum(x, self.class(self.w, j), |x, w| e(x, w).abs());
            }
        });
    }

    /// out = Σₖ v over the features that are not left out, [M, N], with `v` [N, K].
    pub fn observed(&self, v: &[T], out: &mut [T]) {
        self.for_items(out, |i, row| {
            let x = self.x_row(i);
            for (j, d) in row.iter_mut().enumerate() {
                *d = sum(x, self.class(v, j), |x, v| if x == T::zero() { T::zero() } else { v });
            }
        });
    }

    /// How many features of item `i` are not left out.
    pub fn observed_count(&self, i: usize) -> usize {
        if self.skip_zero { self.x_row(i).iter().filter(|x| **x != T::zero()).count() } else { self.width }
    }

    /// dx = Σⱼ c·v·f(w − x), [M, K], with coefficients `c` [M, N] and weights `v` [N, K] (1 when absent).
    pub fn sum_over_classes(&self, c: &[T], v: Option<&[T]>, f: impl Fn(T) -> T + Sync + Copy, dx: &mut [T]) {
        let e = self.difference();
        for_rows(dx, self.width, self.classes * self.width, |i, dx| {
            dx.fill(T::zero());
            let x = self.x_row(i);
            for (j, &c) in c[i * self.classes..(i + 1) * self.classes].iter().enumerate() {
                accumulate(dx, x, self.class(self.w, j), v.map(|v| self.class(v, j)), |x, w| c * f(e(x, w)));
            }
        });
    }

    /// dw += Σᵢ c·v·f(w − x), [N, K], with coefficients and weights as for [`Pairs::sum_over_classes`].
    pub fn sum_over_items(&self, c: &[T], v: Option<&[T]>, f: impl Fn(T) -> T + Sync + Copy, dw: &mut [T]) {
        let e = self.difference();
        for_rows(dw, self.width, self.items() * self.width, |j, dw| {
            let (w, v) = (self.class(self.w, j), v.map(|v| self.class(v, j)));
            for i in 0..self.items() {
                let c = c[i * self.classes + j];
                accumulate(dw, self.x_row(i), w, v, |x, w| c * f(e(x, w)));
            }
        });
    }

    /// out = Σᵢ c·Σₖ (w − x)², \[N\].
    pub fn squares_by_class(&self, c: &[T], out: &mut [T]) {
        let e = self.difference();
        for_rows(out, 1, self.items() * self.width, |j, out| {
            let w = self.class(self.w, j);
            out[0] = (0..self.items())
                .map(|i| c[i * self.classes + j] * sum(self.x_row(i), w, |x, w| e(x, w) * e(x, w)))
                .sum();
        });
    }

    /// The gradient by variances \[N\] that one number a class stands for: ½·v·Σᵢ (dh·n − dd·v·Σₖ (w − x)²), given the
    /// gradients `dd` of ½·v·Σₖ (w − x)² and `dh` of n·½·ln(1/v), [M, N], n being how many features are not left out.
    pub fn variance_gradient(&self, dd: &[T], dh: &[T], v: &[T], out: &mut [T]) {
        let (e, half) = (self.difference(), T::of(0.5));
        for_rows(out, 1, self.items() * self.width, |j, out| {
            let (w, v) = (self.class(self.w, j), v[j]);
            let of_item = |i: usize| {
                let (at, x) = (i * self.classes + j, self.x_row(i));
                let n = T::of(self.observed_count(i) as f64);
                dh[at] * n - dd[at] * v * sum(x, w, |x, w| e(x, w) * e(x, w))
            };
            out[0] = half * v * (0..self.items()).map(of_item).sum();
        });
    }

    /// The gradient by variances [N, K]: ½·v·Σᵢ (dh − dd·v·(w − x)²) over the features that are not left out.
    pub fn diagonal_variance_gradient(&self, dd: &[T], dh: &[T], v: &[T], out: &mut [T]) {
        let (e, half, skip) = (self.difference(), T::of(0.5), self.skip_zero);
        for_rows(out, self.width, self.items() * self.width, |j, out| {
            let (w, v) = (self.class(self.w, j), self.class(v, j));
            out.fill(T::zero());
            for i in 0..self.items() {
                let (dd, dh) = (dd[i * self.classes + j], dh[i * self.classes + j]);
                for (((out, &x), &w), &v) in out.iter_mut().zip(self.x_row(i)).zip(w).zip(v) {
                    let dh = if skip & (x == T::zero()) { T::zero() } else { dh };
                    *out += dh - dd * v * e(x, w) * e(x, w);
                }
            }
            out.iter_mut().zip(v).for_each(|(out, &v)| *out *= half * v);
        });
    }

    /// Adds a pull of strength `coef` between each item and its own class's center: dx += coef·(x − w_y),
    /// dw_y −= coef·(x − w_y).
    pub fn pull(&self, coef: T, class_of: impl Fn(usize) -> usize, dx: Option<&mut [T]>, dw: Option<&mut [T]>) {
        let e = self.difference();
        if let Some(dx) = dx {
            for (i, dx) in dx.chunks_mut(self.width).enumerate() {
                accumulate(dx, self.x_row(i), self.class(self.w, class_of(i)), None, |x, w| -coef * e(x, w));
            }
        }
        if let Some(dw) = dw {
            for i in 0..self.items() {
                let y = class_of(i);
                let dw = &mut dw[y * self.width..(y + 1) * self.width];
                accumulate(dw, self.x_row(i), self.class(self.w, y), None, |x, w| coef * e(x, w));
            }
        }
    }
}

#[inline(always)]
fn accumulate<T: Float>(dst: &mut [T], a: &[T], b: &[T], v: Option<&[T]>, f: impl Fn(T, T) -> T) {
    match v {
        None => dst.iter_mut().zip(a).zip(b).for_each(|((d, &a), &b)| *d += f(a, b)),
        Some(v) => dst.iter_mut().zip(a).zip(b).zip(v).for_each(|(((d, &a), &b), &v)| *d += v * f(a, b)),
    }
}
