//! Softmax over the middle of three axes: y = eˣ / Σ eˣ, the largest x being subtracted first.

use lgm_core::Axes3;

use crate::kernel::vectorized;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;
use crate::{BLOCK, Float, math};

/// Positions of one task when the softmax does not run along contiguous memory.
const POSITIONS: usize = 256;

/// Softmax of `x`, or of `y` itself when `x` is `None`, over the channels of `axes`.
///
/// # Panics
/// When a slice is too short.
pub fn softmax<T: Float>(x: Option<&[T]>, y: &mut [T], axes: Axes3) {
    let y = &mut y[..axes.count()];
    if let Some(x) = x {
        crate::elementwise::copy(&x[..y.len()], y);
    }
    each_block(y, axes, forward_row, |columns, y| {
        let mut work = Scratch::<T>::new(2 * POSITIONS);
        let (max, sum) = work.split_at_mut(POSITIONS);
        let (max, sum) = (&mut max[..columns.len], &mut sum[..columns.len]);
        max.fill(T::neg_infinity());
        sum.fill(T::zero());
        columns.rows(y, |row, _| row_max(row, max));
        columns.rows(y, |row, _| row_exp(row, max, sum));
        columns.rows(y, |row, _| row_div(row, sum));
    });
}

/// The gradient dx = y·(dy − Σ dy·y) from the softmax `y`, or in place on `dx` when `dy` is `None`.
///
/// # Panics
/// When a slice is too short.
pub fn softmax_backward<T: Float>(y: &[T], dy: Option<&[T]>, dx: &mut [T], axes: Axes3) {
    let dx = &mut dx[..axes.count()];
    let y = &y[..dx.len()];
    if let Some(dy) = dy {
        crate::elementwise::copy(&dy[..dx.len()], dx);
    }
    let row = |at: usize, dx: &mut [T]| backward_row(&y[at..at + dx.len()], dx);
    each_block_at(dx, axes, row, |columns, dx| {
        let mut sum = Scratch::<T>::new(POSITIONS);
        let sum = &mut sum[..columns.len];
        sum.fill(T::zero());
        columns.rows(dx, |dx, at| row_dot(dx, &y[at..at + dx.len()], sum));
        columns.rows(dx, |dx, at| row_backward(dx, &y[at..at + dx.len()], sum));
    });
}

/// Some positions of one outer item, with all their channels.
struct Columns {
    start: usize,
    stride: usize,
    channels: usize,
    len: usize,
}

impl Columns {
    /// Calls `f(row, offset)` for the positions of each channel.
    fn rows<T: Float>(&self, data: &Shared<'_, T>, mut f: impl FnMut(&mut [T], usize)) {
        for c in 0..self.channels {
            let at = self.start + c * self.stride;
            // SAFETY: these positions belong to one task, which takes one row at a time.
            f(unsafe { data.part(at..at + self.len) }, at);
        }
    }
}

fn each_block<T: Float>(
    data: &mut [T],
    axes: Axes3,
    row: impl Fn(&mut [T]) + Sync,
    columns: impl Fn(Columns, &Shared<'_, T>) + Sync,
) {
    each_block_at(data, axes, |_, r| row(r), columns);
}

/// Contiguous rows to `row`, with their offset; blocks of positions to `columns`.
fn each_block_at<T: Float>(
    data: &mut [T],
    axes: Axes3,
    row: impl Fn(usize, &mut [T]) + Sync,
    columns: impl Fn(Columns, &Shared<'_, T>) + Sync,
) {
    let Axes3 { outer, channels, inner } = axes;
    if data.is_empty() {
        return;
    }
    if inner == 1 {
        return crate::for_each_row(data, channels, |i, r| row(i * channels, r));
    }
    let (parallel, blocks) = (data.len() >= 2 * BLOCK, inner.div_ceil(POSITIONS));
    let data = Shared::new(data);
    tasks(outer * blocks, parallel, |t| {
        let from = t % blocks * POSITIONS;
        let start = t / blocks * channels * inner + from;
        columns(Columns { start, stride: inner, channels, len: POSITIONS.min(inner - from) }, &data);
    });
}

vectorized! {
    fn row_max[T: Float](row: &[T], max: &mut [T]) {
        for (m, &v) in max.iter_mut().zip(row) {
            *m = if v > *m { v } else { *m };
        }
    }
}

vectorized! {
    fn row_exp[T: Float](row: &mut [T], max: &[T], sum: &mut [T]) {
        for ((v, &m), s) in row.iter_mut().zip(max).zip(sum) {
            *v = math::exp(*v - m);
            *s += *v;
        }
    }
}

vectorized! {
    fn row_div[T: Float](row: &mut [T], sum: &[T]) {
        for (v, &s) in row.iter_mut().zip(sum) {
            *v /= s;
        }
    }
}

vectorized! {
    fn row_dot[T: Float](dx: &[T], y: &[T], sum: &mut [T]) {
        for ((&d, &y), s) in dx.iter().zip(y).zip(sum) {
            *s += d * y;
        }
    }
}

vectorized! {
    fn row_backward[T: Float](dx: &mut [T], y: &[T], sum: &[T]) {
        for ((d, &y), &s) in dx.iter_mut().zip(y).zip(sum) {
            *d = y * (*d - s);
        }
    }
}

/// The largest element.
fn largest<T: Float>(row: &[T]) -> T {
    row.iter().fold(T::neg_infinity(), |m, &v| if v > m { v } else { m })
}

vectorized! {
    fn exp_shifted[T: Float](row: &mut [T], max: T) {
        for v in row {
            *v = math::exp(*v - max);
        }
    }
}

fn forward_row<T: Float>(row: &mut [T]) {
    exp_shifted(row, largest(row));
    let scale = T::one() / crate::elementwise::fold_block(row, |v| v);
    row.iter_mut().for_each(|v| *v *= scale);
}

fn backward_row<T: Float>(y: &[T], dx: &mut [T]) {
    let sum = crate::vector::dot_block(y, dx);
    dx.iter_mut().zip(y).for_each(|(d, &y)| *d = y * (*d - sum));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, same_bits_on_any_threads};

    const SHAPES: [(usize, usize, usize); 6] =
        [(1, 1, 1), (3, 10, 1), (2, 1000, 1), (2, 7, 33), (3, 5, 300), (40, 21, 257)];

    fn reference(x: &[f32], (outer, channels, inner): (usize, usize, usize)) -> Vec<f64> {
        let mut y = vec![0.0; x.len()];
        for o in 0..outer {
            for i in 0..inner {
                let at = |c: usize| (o * channels + c) * inner + i;
                let max = (0..channels).map(|c| x[at(c)] as f64).fold(f64::MIN, f64::max);
                let sum: f64 = (0..channels).map(|c| (x[at(c)] as f64 - max).exp()).sum();
                (0..channels).for_each(|c| y[at(c)] = (x[at(c)] as f64 - max).exp() / sum);
            }
        }
        y
    }

    #[test]
    fn agrees_with_the_definition_far_from_zero_too() {
        for shape in SHAPES {
            let (o, c, i) = shape;
            for shift in [0.0, 1000.0, -1000.0f32] {
                let x: Vec<f32> = noise::<f32>(o * c * i, 1).iter().map(|v| v * 8.0 + shift).collect();
                let want = reference(&x, shape);
                let mut y = vec![f32::NAN; x.len()];
                softmax(Some(&x), &mut y, Axes3::new(o, c, i));
                for (y, want) in y.iter().zip(&want) {
                    assert!((*y as f64 / want - 1.0).abs() < 2e-6, "{shape:?}: {y} for {want}");
                }
            }
        }
    }

    #[test]
    fn gradient_agrees_with_the_definition() {
        for (o, c, i) in SHAPES {
            let mut y: Vec<f64> = noise(o * c * i, 1);
            softmax(None, &mut y, Axes3::new(o, c, i));
            let dy: Vec<f64> = noise(y.len(), 2);
            let mut dx = vec![f64::NAN; y.len()];
            softmax_backward(&y, Some(&dy), &mut dx, Axes3::new(o, c, i));
            for outer in 0..o {
                for inner in 0..i {
                    let at = |k: usize| (outer * c + k) * i + inner;
                    let sum: f64 = (0..c).map(|k| dy[at(k)] * y[at(k)]).sum();
                    for k in 0..c {
                        assert!((dx[at(k)] - y[at(k)] * (dy[at(k)] - sum)).abs() < 1e-13);
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        let x: Vec<f32> = noise(8 * 21 * 700, 1);
        same_bits_on_any_threads(|| {
            let mut y = x.clone();
            softmax(None, &mut y, Axes3::new(8, 21, 700));
            softmax(None, &mut y, Axes3::new(8 * 700, 21, 1));
            y
        });
    }
}
