//! Local response normalisation: y = x·s^−β, with s from the squares of x nearby.
//!
//! Across channels, s = k + α/size · Σ x² over `size` channels around each; within a channel, s = 1 + α/size² · Σ x² over a
//! `size` × `size` window around each position. Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep
//! Convolutional Neural Networks" (2012); the forms are Caffe's.

use smallvec::SmallVec;

use lgm_core::{Axes3, Window};

use crate::kernel::vectorized;
use crate::parallel::{Shared, tasks};
use crate::pool::PoolGeometry;
use crate::scratch::Scratch;
use crate::{BLOCK, Float, elementwise, for_each_block, math};

/// Calls with a function for s^−β, s positive; β = ¾ and ½ go by square roots.
macro_rules! with_power {
    ($beta:expr, |$power:ident| $call:expr) => {
        if $beta == 0.75 {
            let $power = |s: T| {
                let root = s.sqrt();
                T::one() / (root * root.sqrt())
            };
            $call
        } else if $beta == 0.5 {
            let $power = |s: T| T::one() / s.sqrt();
            $call
        } else {
            let exponent = T::of(-$beta);
            let $power = |s: T| math::exp(exponent * math::ln(s));
            $call
        }
    };
}

/// Positions of one task: long enough runs of memory to be fetched ahead, short enough for a window of them to stay near.
const POSITIONS: usize = 2048;

/// The constants of a normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lrn {
    /// Channels, or rows and columns, of a window; odd.
    pub size: usize,
    /// α.
    pub alpha: f64,
    /// β.
    pub beta: f64,
    /// k; 1 is understood within channels.
    pub k: f64,
}

impl Lrn {
    /// Across channels: fills `scale` with s and `y` with x·s^−β, for n × `channels` × `spatial`.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn across_forward<T: Float>(&self, x: &[T], axes: Axes3, scale: &mut [T], y: &mut [T]) {
        let Axes3 { outer: n, channels, inner: spatial } = axes;
        let len = n * channels * spatial;
        let x = &x[..len];
        let (scale, y) = (Shared::new(&mut scale[..len]), Shared::new(&mut y[..len]));
        let factor = T::of(self.alpha / self.size as f64);
        self.positions(n, channels, spatial, |base, width| {
            let row = |c: usize| base + c * spatial..base + c * spatial + width;
            for c in 0..channels {
                // SAFETY: tasks take disjoint positions.
                let (s, y) = unsafe { (scale.part(row(c)), y.part(row(c))) };
                let near: Near<'_, T> = self.window(c, channels).map(|c| &x[row(c)]).collect();
                with_power!(self.beta, |power| normalize(&near, &x[row(c)], T::of(self.k), factor, s, y, power));
            }
        });
    }

    /// Across channels: dx = dy·s^−β − 2αβ/size · x·Σ dy·y/s, overwriting dx.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn across_backward<T: Float>(&self, x: &[T], y: &[T], scale: &[T], dy: &[T], axes: Axes3, dx: &mut [T]) {
        let Axes3 { outer: n, channels, inner: spatial } = axes;
        let dx = Shared::new(&mut dx[..n * channels * spatial]);
        let factor = T::of(-2.0 * self.alpha * self.beta / self.size as f64);
        self.positions(n, channels, spatial, |base, width| {
            let row = |c: usize| base + c * spatial..base + c * spatial + width;
            // Of the last `size` channels, in turn.
            let mut ratio = Scratch::<T>::new(self.size * width);
            let place = |c: usize| c % self.size * width..(c % self.size + 1) * width;
            let mut ready = 0;
            for c in 0..channels {
                let window = self.window(c, channels);
                for c in ready..window.end {
                    product_over(&dy[row(c)], &y[row(c)], &scale[row(c)], &mut ratio[place(c)]);
                }
                ready = window.end;
                // SAFETY: tasks take disjoint positions.
                let dx = unsafe { dx.part(row(c)) };
                let near: Near<'_, T> = window.map(|near| &ratio[place(near)]).collect();
                let (x, dy, s) = (&x[row(c)], &dy[row(c)], &scale[row(c)]);
                with_power!(self.beta, |power| denormalize(&near, x, dy, s, factor, dx, power));
            }
        });
    }

    /// The channels around `c`.
    fn window(&self, c: usize, channels: usize) -> std::ops::Range<usize> {
        let before = (self.size - 1) / 2;
        c.saturating_sub(before)..(c + self.size - before).min(channels)
    }

    /// Calls `task(offset, width)` for blocks of positions of each image.
    fn positions(&self, n: usize, channels: usize, spatial: usize, task: impl Fn(usize, usize) + Sync) {
        let blocks = spatial.div_ceil(POSITIONS);
        tasks(n * blocks, n * channels * spatial >= BLOCK, |t| {
            let from = t % blocks * POSITIONS;
            task(t / blocks * channels * spatial + from, POSITIONS.min(spatial - from));
        });
    }

    /// Within channels: fills `scale` with s and `y` with x·s^−β, for planes of `height` × `width`.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn within_forward<T: Float>(&self, x: &[T], (height, width): (usize, usize), scale: &mut [T], y: &mut [T]) {
        elementwise::map_into(Some(x), y, |v| v * v);
        self.boxes(height, width).average_forward(y, scale);
        let alpha = T::of(self.alpha);
        elementwise::map_into(None, scale, |v| T::one() + alpha * v);
        for_each_block(y, |at, y| {
            let range = at..at + y.len();
            with_power!(self.beta, |power| times_power(&x[range.clone()], &scale[range], y, power));
        });
    }

    /// Within channels: dx from dy, overwriting dx.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn within_backward<T: Float>(
        &self,
        x: &[T],
        y: &[T],
        scale: &[T],
        dy: &[T],
        (height, width): (usize, usize),
        dx: &mut [T],
    ) {
        let mut ratio = Scratch::<T>::new(x.len());
        for_each_block(&mut ratio, |at, r| {
            let range = at..at + r.len();
            product_over(&dy[range.clone()], &y[range.clone()], &scale[range], r);
        });
        self.boxes(height, width).average_backward(&ratio, dx);
        let factor = T::of(-2.0 * self.alpha * self.beta);
        for_each_block(dx, |at, dx| {
            let range = at..at + dx.len();
            let mut sums = Scratch::<T>::new(dx.len());
            sums.copy_from_slice(dx);
            let (x, dy, s) = (&x[range.clone()], &dy[range.clone()], &scale[range]);
            with_power!(self.beta, |power| denormalize(&[&sums], x, dy, s, factor, dx, power));
        });
    }

    /// The windows within a channel, as an average pooling that keeps the size.
    fn boxes(&self, height: usize, width: usize) -> PoolGeometry {
        let (kernel, pad) = (self.size, (self.size as isize - 1) / 2);
        let window = |n: usize| Window { input: n, output: n, kernel, pad, pad_end: pad, ..Window::UNIT };
        PoolGeometry { windows: [height, width].map(window), padding_counts: true }
    }
}

/// Rows of a window.
type Near<'a, T> = SmallVec<[&'a [T]; 8]>;

/// Elements summed at a time, in registers.
const CHUNK: usize = 32;

/// out = `done` of the sum of `term` over the rows.
#[inline(always)]
fn sums<T: Float>(rows: &[&[T]], out: &mut [T], term: impl Fn(T) -> T, done: impl Fn(T) -> T) {
    let (chunks, rest) = out.as_chunks_mut::<CHUNK>();
    let whole = CHUNK * chunks.len();
    for (n, out) in chunks.iter_mut().enumerate() {
        let mut sum = [T::zero(); CHUNK];
        for row in rows {
            sum.iter_mut().zip(&row[n * CHUNK..(n + 1) * CHUNK]).for_each(|(s, &v)| *s += term(v));
        }
        // Not `sum.map`: a call that is not inlined has no vectors of this width.
        out.iter_mut().zip(sum).for_each(|(o, sum)| *o = done(sum));
    }
    for (i, out) in (whole..).zip(rest) {
        *out = done(rows.iter().fold(T::zero(), |s, row| s + term(row[i])));
    }
}

vectorized! {
    /// s = k + factor·Σ near², y = x·s^−β.
    fn normalize[T: Float, P: Fn(T) -> T](
        near: &[&[T]],
        x: &[T],
        k: T,
        factor: T,
        s: &mut [T],
        y: &mut [T],
        power: P,
    ) {
        let (s, y) = (&mut s[..x.len()], &mut y[..x.len()]);
        sums(near, s, |v| v * v, |sum| k + factor * sum);
        times(x, s, y, &power);
    }
}

vectorized! {
    /// dx = dy·s^−β + factor·x·Σ near.
    fn denormalize[T: Float, P: Fn(T) -> T](
        near: &[&[T]],
        x: &[T],
        dy: &[T],
        s: &[T],
        factor: T,
        dx: &mut [T],
        power: P,
    ) {
        let dx = &mut dx[..x.len()];
        sums(near, dx, |v| v, |sum| sum);
        for (((d, &x), &dy), &s) in dx.iter_mut().zip(x).zip(dy).zip(s) {
            *d = dy * power(s) + factor * x * *d;
        }
    }
}

vectorized! {
    /// y = x·s^−β.
    fn times_power[T: Float, P: Fn(T) -> T](x: &[T], s: &[T], y: &mut [T], power: P) {
        times(x, s, y, &power);
    }
}

#[inline(always)]
fn times<T: Float>(x: &[T], s: &[T], y: &mut [T], power: &impl Fn(T) -> T) {
    for ((y, &x), &s) in y.iter_mut().zip(x).zip(s) {
        *y = x * power(s);
    }
}

vectorized! {
    fn product_over[T: Float](a: &[T], b: &[T], s: &[T], out: &mut [T]) {
        for (((o, &a), &b), &s) in out.iter_mut().zip(a).zip(b).zip(s) {
            *o = a * b / s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, relative_error, same_bits_on_any_threads};

    fn kinds() -> [Lrn; 3] {
        [
            Lrn { size: 5, alpha: 0.8, beta: 0.75, k: 2.0 },
            Lrn { size: 3, alpha: 0.5, beta: 0.5, k: 1.0 },
            Lrn { size: 3, alpha: 0.7, beta: 0.6, k: 1.0 },
        ]
    }

    /// Σ y·dy by differences along every element.
    fn differences(x: &[f64], dy: &[f64], forward: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let value = |x: &[f64]| forward(x).iter().zip(dy).map(|(a, b)| a * b).sum::<f64>();
        (0..x.len())
            .map(|i| {
                let (mut up, mut down) = (x.to_vec(), x.to_vec());
                (up[i], down[i]) = (x[i] + 1e-5, x[i] - 1e-5);
                (value(&up) - value(&down)) / 2e-5
            })
            .collect()
    }

    #[test]
    fn across_channels() {
        let (n, c, s) = (2, 7, 9);
        let extents = Axes3::new(n, c, s);
        for l in kinds() {
            let (x, dy): (Vec<f64>, Vec<f64>) = (noise(n * c * s, 1), noise(n * c * s, 2));
            let run = |x: &[f64]| {
                let (mut scale, mut y) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                l.across_forward(x, extents, &mut scale, &mut y);
                (scale, y)
            };
            let (scale, y) = run(&x);
            for i in 0..x.len() {
                let (image, ch, at) = (i / s / c, (i / s % c) as isize, i % s);
                let half = (l.size / 2) as isize;
                let squares: f64 = (ch - half..=ch + half)
                    .filter(|&k| k >= 0 && k < c as isize)
                    .map(|k| x[(image * c + k as usize) * s + at].powi(2))
                    .sum();
                let want = x[i] * (l.k + l.alpha / l.size as f64 * squares).powf(-l.beta);
                assert!((y[i] - want).abs() < 1e-12);
            }
            let mut dx = vec![f64::NAN; x.len()];
            l.across_backward(&x, &y, &scale, &dy, extents, &mut dx);
            assert!(relative_error(&dx, &differences(&x, &dy, |x| run(x).1)) < 1e-8);
        }
    }

    #[test]
    fn within_channels() {
        let (h, w) = (5, 6);
        for l in kinds() {
            let (x, dy): (Vec<f64>, Vec<f64>) = (noise(3 * h * w, 1), noise(3 * h * w, 2));
            let run = |x: &[f64]| {
                let (mut scale, mut y) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                l.within_forward(x, (h, w), &mut scale, &mut y);
                (scale, y)
            };
            let (scale, y) = run(&x);
            let half = (l.size / 2) as isize;
            for i in 0..x.len() {
                let (plane, r, c) = (i / (h * w), (i / w % h) as isize, (i % w) as isize);
                let near = |a: isize, n: usize| (a - half..=a + half).filter(move |&v| v >= 0 && v < n as isize);
                let cells = near(r, h).flat_map(|r| near(c, w).map(move |c| (r as usize) * w + c as usize));
                let squares: f64 = cells.map(|at| x[plane * h * w + at].powi(2)).sum();
                let want = x[i] * (1.0 + l.alpha / (l.size * l.size) as f64 * squares).powf(-l.beta);
                assert!((y[i] - want).abs() < 1e-12);
            }
            let mut dx = vec![f64::NAN; x.len()];
            l.within_backward(&x, &y, &scale, &dy, (h, w), &mut dx);
            assert!(relative_error(&dx, &differences(&x, &dy, |x| run(x).1)) < 1e-8);
        }
    }

    #[test]
    fn single_precision_is_near_and_threads_do_not_change_the_bits() {
        let extents = Axes3::new(3, 20, 500);
        let x: Vec<f32> = noise(30_000, 1);
        let wide: Vec<f64> = x.iter().map(|&v| v as f64).collect();
        for l in kinds() {
            let (mut s64, mut y64) = (vec![0.0; 30_000], vec![0.0; 30_000]);
            l.across_forward(&wide, extents, &mut s64, &mut y64);
            same_bits_on_any_threads(|| {
                let (mut s, mut y) = (vec![0.0f32; 30_000], vec![0.0f32; 30_000]);
                l.across_forward(&x, extents, &mut s, &mut y);
                assert!(relative_error(&y, &y64) < 2e-6);
                let mut dx = vec![0.0; 30_000];
                l.across_backward(&x, &y, &s, &x, extents, &mut dx);
                [y, s, dx].concat()
            });
        }
    }
}
