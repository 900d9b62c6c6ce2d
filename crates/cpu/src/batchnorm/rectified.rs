//! The gradient of batch normalisation followed by γ, β and ReLU, without the output: whether an element passed the
//! ReLU is computed again from x, in the very arithmetic of [`Normalization`](super::Normalization), which saves reading y.

use lgm_core::Axes3;

use super::{Channel, LANES, floor, rows, sums, total};
use crate::Float;
use crate::kernel::vectorized;
use crate::parallel::Shared;

/// What the forward pass computed y = max((x − μ)·s + β, 0) from, s = γ/√(σ² + ε).
#[derive(Clone, Copy, Debug)]
pub struct Rectified<'a, T> {
    /// The input.
    pub x: &'a [T],
    /// μ of each channel.
    pub mean: &'a [T],
    /// s of each channel, rounded as [`Normalization`](super::Normalization) rounds it: `inv_std · γ`.
    pub scale: &'a [T],
    /// β of each channel.
    pub shift: Option<&'a [T]>,
    /// Whether there is a ReLU.
    pub relu: bool,
}

impl<T: Float> Rectified<'_, T> {
    /// The pre-activation, which must exceed the floor for its gradient to pass.
    fn channel(&self, c: usize) -> Channel<T> {
        let shift = self.shift.map_or(T::zero(), |s| s[c]);
        Channel { mean: self.mean[c], scale: self.scale[c], shift, floor: floor(self.relu) }
    }

    /// Σ g and Σ g·(x − μ)·`inv_std` of each channel, g the gradient dy where it passes the ReLU; overwrites both.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn sums(&self, dy: &[T], axes: Axes3, inv_std: &[T], sum_g: &mut [T], sum_g_xhat: &mut [T]) {
        sums(
            axes,
            |c, range| {
                let (sum, product) = products(&self.x[range.clone()], &dy[range], self.channel(c));
                (sum, product * inv_std[c].f64())
            },
            |c, a, b| (sum_g[c], sum_g_xhat[c]) = (T::of(a), T::of(b)),
        );
    }

    /// dx = s·(g − Σg/m − x̂·Σ(g·x̂)/m) with the sums of [`Rectified::sums`]; on `dx` itself when `dy` is `None`.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn data(&self, dy: Option<&[T]>, axes: Axes3, inv_std: &[T], sum_g: &[T], sum_g_xhat: &[T], dx: &mut [T]) {
        let m = T::of((axes.outer * axes.inner) as f64);
        let dx = Shared::new(&mut dx[..axes.count()]);
        rows(axes, |c, range| {
            // SAFETY: every run is visited once.
            let dx = unsafe { dx.part(range.clone()) };
            let (a, b) = (sum_g[c] / m, sum_g_xhat[c] / m * inv_std[c]);
            let x = &self.x[range.clone()];
            match dy {
                Some(dy) => gradient(x, &dy[range], self.channel(c), a, b, dx),
                None => gradient_in_place(x, self.channel(c), a, b, dx),
            }
        });
    }
}

vectorized! {
    /// Σ g and Σ g·(x − mean).
    fn products[T: Float](x: &[T], dy: &[T], channel: Channel<T>) -> (f64, f64) {
        let Channel { mean, scale, shift, floor } = channel;
        let (mut sum, mut product) = ([0.0f64; LANES], [0.0f64; LANES]);
        let (xs, ys) = (x.chunks_exact(LANES), dy.chunks_exact(LANES));
        for (l, (&x, &dy)) in xs.remainder().iter().zip(ys.remainder()).enumerate() {
            let g = if (x - mean) * scale + shift > floor { dy } else { T::zero() };
            sum[l] += g.f64();
            product[l] += g.f64() * (x - mean).f64();
        }
        for (x, dy) in xs.zip(ys) {
            for l in 0..LANES {
                let g = if (x[l] - mean) * scale + shift > floor { dy[l] } else { T::zero() };
                sum[l] += g.f64();
                product[l] += g.f64() * (x[l] - mean).f64();
            }
        }
        (total(sum), total(product))
    }
}

vectorized! {
    fn gradient[T: Float](x: &[T], dy: &[T], channel: Channel<T>, a: T, b: T, dx: &mut [T]) {
        let Channel { mean, scale, shift, floor } = channel;
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            let g = if (x - mean) * scale + shift > floor { dy } else { T::zero() };
            *dx = scale * (g - a - (x - mean) * b);
        }
    }
}

vectorized! {
    fn gradient_in_place[T: Float](x: &[T], channel: Channel<T>, a: T, b: T, dx: &mut [T]) {
        let Channel { mean, scale, shift, floor } = channel;
        for (dx, &x) in dx.iter_mut().zip(x) {
            let g = if (x - mean) * scale + shift > floor { *dx } else { T::zero() };
            *dx = scale * (g - a - (x - mean) * b);
        }
    }
}
