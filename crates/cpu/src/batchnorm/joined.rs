//! Batch normalisation whose output is added to another blob, as at the end of a residual block: y = γ·x̂ + β + r, then
//! max(y, 0) where a ReLU follows. What passes the ReLU is read from y, which no longer follows from x alone.

use lgm_core::Axes3;

use super::{Channel, Normalization, gradient_row, products, rows, sums};
use crate::Float;
use crate::kernel::vectorized;
use crate::parallel::Shared;
use crate::scratch::Scratch;

impl<T: Float> Normalization<'_, T> {
    /// y = (x − μ)·`inv_std`·γ + β + r, then max(y, 0) if `relu`; r is what `y` holds when `r` is `None`.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn apply_and_add(&self, x: &[T], r: Option<&[T]>, axes: Axes3, y: &mut [T]) {
        let y = Shared::new(&mut y[..axes.count()]);
        rows(axes, |c, range| {
            // SAFETY: every run is visited once.
            let y = unsafe { y.part(range.clone()) };
            match r {
                Some(r) => add_row(&x[range.clone()], &r[range], self.channel(c), y),
                None => add_in_place(&x[range], self.channel(c), y),
            }
        });
    }
}

/// What the gradient of [`Normalization::apply_and_add`] is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Joined<'a, T> {
    /// The input.
    pub x: &'a [T],
    /// μ of each channel.
    pub mean: &'a [T],
    /// 1/√(σ² + ε) of each channel.
    pub inv_std: &'a [T],
    /// The output, where a ReLU follows.
    pub y: Option<&'a [T]>,
}

impl<T: Float> Joined<'_, T> {
    /// dy where it passes the ReLU, to `g`; `g` holds dy when `dy` is `None`.
    fn pass(&self, dy: Option<&[T]>, range: std::ops::Range<usize>, g: &mut [T]) {
        match (dy, self.y) {
            (Some(dy), Some(y)) => pass_row(&dy[range.clone()], &y[range], g),
            (Some(dy), None) => g.copy_from_slice(&dy[range]),
            (None, Some(y)) => pass_in_place(&y[range], g),
            (None, None) => {}
        }
    }

    /// r's gradient g, dy where it passes the ReLU, to `g` (where wanted; it holds dy when `dy` is `None`); and Σ g and
    /// Σ g·x̂ of each channel, overwriting both.
    ///
    /// # Panics
    /// When a slice is too short, or neither `dy` nor `g` is given.
    pub fn sums(&self, dy: Option<&[T]>, g: Option<&mut [T]>, axes: Axes3, sum_g: &mut [T], sum_g_xhat: &mut [T]) {
        assert!(dy.is_some() || g.is_some(), "a gradient is needed");
        let g = g.map(|g| Shared::new(&mut g[..axes.count()]));
        sums(
            axes,
            |c, range| {
                let mut aside = Scratch::<T>::new(if g.is_some() { 0 } else { range.len() });
                let row = match &g {
                    // SAFETY: every run is visited once.
                    Some(g) => unsafe { g.part(range.clone()) },
                    None => &mut aside,
                };
                self.pass(dy, range.clone(), row);
                let (sum, product) = products(&self.x[range], row, self.mean[c]);
                (sum, product * self.inv_std[c].f64())
            },
            |c, a, b| (sum_g[c], sum_g_xhat[c]) = (T::of(a), T::of(b)),
        );
    }

    /// dx = `scale`·(g − Σg/m − x̂·Σ(g·x̂)/m) from dy, where [`Joined::sums`] left no g; with it, see
    /// [`backward_data`](super::backward_data).
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn data(&self, dy: &[T], axes: Axes3, scale: &[T], sum_g: &[T], sum_g_xhat: &[T], dx: &mut [T]) {
        let m = T::of((axes.outer * axes.inner) as f64);
        let dx = Shared::new(&mut dx[..axes.count()]);
        rows(axes, |c, range| {
            // SAFETY: every run is visited once.
            let dx = unsafe { dx.part(range.clone()) };
            let (a, b) = (sum_g[c] / m, sum_g_xhat[c] / m * self.inv_std[c]);
            let mut g = Scratch::<T>::new(range.len());
            self.pass(Some(dy), range.clone(), &mut g);
            gradient_row(&self.x[range], &g, self.mean[c], scale[c], a, b, dx);
        });
    }
}

vectorized! {
    fn add_row[T: Float](x: &[T], r: &[T], channel: Channel<T>, y: &mut [T]) {
        let Channel { mean, scale, shift, floor } = channel;
        for ((y, &x), &r) in y.iter_mut().zip(x).zip(r) {
            let v = (x - mean) * scale + shift + r;
            *y = if v < floor { floor } else { v };
        }
    }
}

vectorized! {
    fn add_in_place[T: Float](x: &[T], channel: Channel<T>, y: &mut [T]) {
        let Channel { mean, scale, shift, floor } = channel;
        for (y, &x) in y.iter_mut().zip(x) {
            let v = (x - mean) * scale + shift + *y;
            *y = if v < floor { floor } else { v };
        }
    }
}

vectorized! {
    fn pass_row[T: Float](dy: &[T], y: &[T], g: &mut [T]) {
        for ((g, &dy), &y) in g.iter_mut().zip(dy).zip(y) {
            *g = if y > T::zero() { dy } else { T::zero() };
        }
    }
}

vectorized! {
    fn pass_in_place[T: Float](y: &[T], g: &mut [T]) {
        for (g, &y) in g.iter_mut().zip(y) {
            *g = if y > T::zero() { *g } else { T::zero() };
        }
    }
}
