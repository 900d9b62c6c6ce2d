//! Per-channel statistics, normalisation and its gradient, for x of n × channels × spatial.
//!
//! With μ and σ² the mean and (biased) variance of a channel, x̂ = (x − μ)/√(σ² + ε) and m = n·spatial values:
//! y = γ·x̂ + β and dx = γ/√(σ² + ε) · (dy − Σdy/m − x̂·Σ(dy·x̂)/m). Ioffe and Szegedy, "Batch Normalization" (2015).
//!
//! Sums are accumulated in double precision, block by block in a fixed order.

mod joined;
mod rectified;

use lgm_core::Axes3;

use crate::kernel::vectorized;
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;
use crate::{BLOCK, Float};
pub use joined::Joined;
pub use rectified::Rectified;

/// Calls `row(channel, range)` for every run of a channel, in parallel over blocks of runs.
fn rows(axes: Axes3, row: impl Fn(usize, std::ops::Range<usize>) + Sync) {
    let (count, at_once) = (axes.outer * axes.channels, (BLOCK / axes.inner.max(1)).max(1));
    tasks(count.div_ceil(at_once), axes.count() > BLOCK, |t| {
        for r in t * at_once..((t + 1) * at_once).min(count) {
            row(r % axes.channels, r * axes.inner..(r + 1) * axes.inner);
        }
    });
}

/// Two sums over each channel: `row(channel, range)` gives those of one run, `done(channel, a, b)` takes the totals.
fn sums(
    axes: Axes3,
    row: impl Fn(usize, std::ops::Range<usize>) -> (f64, f64) + Sync,
    mut done: impl FnMut(usize, f64, f64),
) {
    let (count, at_once) = (axes.outer * axes.channels, (BLOCK / axes.inner.max(1)).max(1));
    let mut runs = Scratch::<f64>::new(2 * count);
    let shared = Shared::new(&mut runs);
    tasks(count.div_ceil(at_once), axes.count() > BLOCK, |t| {
        let rows = t * at_once..((t + 1) * at_once).min(count);
        // SAFETY: tasks take consecutive, disjoint runs.
        let out = unsafe { shared.part(2 * rows.start..2 * rows.end) };
        for (r, out) in rows.zip(out.chunks_exact_mut(2)) {
            let (a, b) = row(r % axes.channels, r * axes.inner..(r + 1) * axes.inner);
            (out[0], out[1]) = (a, b);
        }
    });
    for c in 0..axes.channels {
        let images = (0..axes.outer).map(|i| 2 * (i * axes.channels + c));
        let (a, b) = images.fold((0.0, 0.0), |(a, b), at| (a + runs[at], b + runs[at + 1]));
        done(c, a, b);
    }
}

/// Mean and biased variance of each channel, in one pass.
///
/// # Panics
/// When a slice is too short.
pub fn mean_variance<T: Float>(x: &[T], axes: Axes3, mean: &mut [T], variance: &mut [T]) {
    let m = (axes.outer * axes.inner).max(1) as f64;
    // Sums of differences from a value of the channel lose nothing when the mean is large against the deviation.
    let pivot = |c: usize| x[c * axes.inner].f64();
    if axes.count() == 0 {
        mean[..axes.channels].fill(T::zero());
        variance[..axes.channels].fill(T::zero());
        return;
    }
    sums(
        axes,
        |c, range| moments(&x[range], pivot(c)),
        |c, sum, square| {
            mean[c] = T::of(pivot(c) + sum / m);
            variance[c] = T::of(((square - sum * sum / m) / m).max(0.0));
        },
    );
}

/// γ and β, which follow a normalisation.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, T> {
    /// γ of each channel.
    pub scale: &'a [T],
    /// β of each channel.
    pub shift: Option<&'a [T]>,
}

/// y = (x − μ)·`inv_std`, then γ·y + β, then max(y, 0) if `relu`.
#[derive(Clone, Copy, Debug)]
pub struct Normalization<'a, T> {
    /// μ of each channel.
    pub mean: &'a [T],
    /// 1/√(σ² + ε) of each channel.
    pub inv_std: &'a [T],
    /// γ and β.
    pub affine: Option<Affine<'a, T>>,
    /// Whether a ReLU follows.
    pub relu: bool,
}

impl<T: Float> Normalization<'_, T> {
    fn channel(&self, c: usize) -> Channel<T> {
        Channel {
            mean: self.mean[c],
            scale: self.affine.map_or(self.inv_std[c], |a| self.inv_std[c] * a.scale[c]),
            shift: self.affine.and_then(|a| a.shift).map_or(T::zero(), |s| s[c]),
            floor: floor(self.relu),
        }
    }

    /// Overwrites y; normalises `y` itself when `x` is `None`.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn apply(&self, x: Option<&[T]>, axes: Axes3, y: &mut [T]) {
        let y = Shared::new(&mut y[..axes.count()]);
        rows(axes, |c, range| {
            // SAFETY: every run is visited once.
            let y = unsafe { y.part(range.clone()) };
            match x {
                Some(x) => normalize_row(&x[range], self.channel(c), y),
                None => normalize_in_place(y, self.channel(c)),
            }
        });
    }
}

/// What the values of a channel go through: (x − `mean`)·`scale` + `shift`, and at least `floor`.
#[derive(Clone, Copy)]
struct Channel<T> {
    mean: T,
    scale: T,
    shift: T,
    floor: T,
}

/// What values are at least, with a ReLU or without.
fn floor<T: Float>(relu: bool) -> T {
    if relu { T::zero() } else { T::neg_infinity() }
}

/// y = x·`scale` + `shift` for each channel; on `y` itself when `x` is `None`.
///
/// # Panics
/// When a slice is too short.
pub fn scale_shift<T: Float>(x: Option<&[T]>, axes: Axes3, scale: &[T], shift: Option<&[T]>, y: &mut [T]) {
    let y = Shared::new(&mut y[..axes.count()]);
    rows(axes, |c, range| {
        // SAFETY: every run is visited once.
        let y = unsafe { y.part(range.clone()) };
        let shift = shift.map_or(T::zero(), |s| s[c]);
        let channel = Channel { mean: T::zero(), scale: scale[c], shift, floor: floor(false) };
        match x {
            Some(x) => normalize_row(&x[range], channel, y),
            None => normalize_in_place(y, channel),
        }
    });
}

/// What a channel's x̂ is computed from.
#[derive(Clone, Copy, Debug)]
pub enum Normalized<'a, T> {
    /// x̂ itself.
    Ready(&'a [T]),
    /// x, with μ and 1/√(σ² + ε) of each channel.
    From {
        /// The input.
        x: &'a [T],
        /// μ.
        mean: &'a [T],
        /// 1/√(σ² + ε).
        inv_std: &'a [T],
    },
}

impl<'a, T: Float> Normalized<'a, T> {
    fn of(&self, c: usize, range: std::ops::Range<usize>) -> (&'a [T], T, T) {
        match *self {
            Normalized::Ready(v) => (&v[range], T::zero(), T::one()),
            Normalized::From { x, mean, inv_std } => (&x[range], mean[c], inv_std[c]),
        }
    }
}

/// Σ dy and Σ dy·x̂ of each channel, overwriting both.
///
/// # Panics
/// When a slice is too short.
pub fn backward_sums<T: Float>(
    xhat: Normalized<'_, T>,
    dy: &[T],
    axes: Axes3,
    sum_dy: &mut [T],
    sum_dy_xhat: &mut [T],
) {
    sums(
        axes,
        |c, range| {
            let (x, mean, inv_std) = xhat.of(c, range.clone());
            let (sum, product) = products(x, &dy[range], mean);
            (sum, product * inv_std.f64())
        },
        |c, a, b| (sum_dy[c], sum_dy_xhat[c]) = (T::of(a), T::of(b)),
    );
}

/// dx = `scale`·(dy − Σdy/m − x̂·Σ(dy·x̂)/m) with the sums of [`backward_sums`]; `scale` is γ/√(σ² + ε). On `dx` itself
/// when `dy` is `None`.
///
/// # Panics
/// When a slice is too short.
pub fn backward_data<T: Float>(
    xhat: Normalized<'_, T>,
    dy: Option<&[T]>,
    axes: Axes3,
    scale: &[T],
    sum_dy: &[T],
    sum_dy_xhat: &[T],
    dx: &mut [T],
) {
    let m = T::of((axes.outer * axes.inner) as f64);
    let dx = Shared::new(&mut dx[..axes.count()]);
    rows(axes, |c, range| {
        // SAFETY: every run is visited once.
        let dx = unsafe { dx.part(range.clone()) };
        let (x, mean, inv_std) = xhat.of(c, range.clone());
        let (a, b) = (sum_dy[c] / m, sum_dy_xhat[c] / m * inv_std);
        match dy {
            Some(dy) => gradient_row(x, &dy[range], mean, scale[c], a, b, dx),
            None => gradient_in_place(x, mean, scale[c], a, b, dx),
        }
    });
}

const LANES: usize = 32;

fn total(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
    }
    lanes[0]
}

vectorized! {
    /// Σ (x − pivot) and Σ (x − pivot)².
    fn moments[T: Float](x: &[T], pivot: f64) -> (f64, f64) {
        let (mut sum, mut square) = ([0.0f64; LANES], [0.0f64; LANES]);
        let chunks = x.chunks_exact(LANES);
        for (l, v) in chunks.remainder().iter().enumerate() {
            let d = v.f64() - pivot;
            sum[l] += d;
            square[l] += d * d;
        }
        for x in chunks {
            for l in 0..LANES {
                let d = x[l].f64() - pivot;
                sum[l] += d;
                square[l] += d * d;
            }
        }
        (total(sum), total(square))
    }
}

vectorized! {
    /// Σ dy and Σ dy·(x − mean).
    fn products[T: Float](x: &[T], dy: &[T], mean: T) -> (f64, f64) {
        let (mut sum, mut product) = ([0.0f64; LANES], [0.0f64; LANES]);
        let (xs, ys) = (x.chunks_exact(LANES), dy.chunks_exact(LANES));
        for (l, (x, dy)) in xs.remainder().iter().zip(ys.remainder()).enumerate() {
            sum[l] += dy.f64();
            product[l] += dy.f64() * (*x - mean).f64();
        }
        for (x, dy) in xs.zip(ys) {
            for l in 0..LANES {
                sum[l] += dy[l].f64();
                product[l] += dy[l].f64() * (x[l] - mean).f64();
            }
        }
        (total(sum), total(product))
    }
}

vectorized! {
    fn normalize_row[T: Float](x: &[T], channel: Channel<T>, y: &mut [T]) {
        let Channel { mean, scale, shift, floor } = channel;
        for (y, &x) in y.iter_mut().zip(x) {
            let v = (x - mean) * scale + shift;
            *y = if v < floor { floor } else { v };
        }
    }
}

vectorized! {
    fn normalize_in_place[T: Float](y: &mut [T], channel: Channel<T>) {
        let Channel { mean, scale, shift, floor } = channel;
        for y in y {
            let v = (*y - mean) * scale + shift;
            *y = if v < floor { floor } else { v };
        }
    }
}

vectorized! {
    fn gradient_row[T: Float](x: &[T], dy: &[T], mean: T, scale: T, a: T, b: T, dx: &mut [T]) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            *dx = scale * (dy - a - (x - mean) * b);
        }
    }
}

vectorized! {
    fn gradient_in_place[T: Float](x: &[T], mean: T, scale: T, a: T, b: T, dx: &mut [T]) {
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = scale * (*dx - a - (x - mean) * b);
        }
    }
}

#[cfg(test)]
mod tests;
