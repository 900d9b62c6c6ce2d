//! Angular margins: logits x · w whose own class must be m times nearer in angle.
//!
//! The logit of an item x and its own class's weights w at an angle θ, with c = cos θ, is
//!
//! f = (λ · x·w + ∣x∣ · ∣w∣ · ψ(θ)) / (1 + λ), where ψ(θ) = (−1)ᵏ cos(mθ) − 2k on the k-th of m equal parts of 0 … π.
//!
//! ψ falls from 1 to 1 − 2m without a break, and so does its derivative by c, ψ′. With cross = (λ + ψ′)/(1 + λ) and
//! rest = (ψ − c · ψ′)/(1 + λ),
//!
//! df/dx = cross · w + rest · ∣w∣/∣x∣ · x, and df/dw = cross · x + rest · ∣x∣/∣w∣ · w.
//!
//! Where x or w is zero there is no angle: f = 0, and x and w are taken to point the same way (cross 1, rest 0).
//!
//! Source: Liu, Wen, Yu and Yang, "Large-Margin Softmax Loss for Convolutional Neural Networks" (ICML 2016).

use lgm_core::{BlobSpec, DeviceCall, DevicePtr, Float, Gemm as DeviceGemm, Grid, Result, args};
use lgm_cpu::elementwise::axpy;
use lgm_cpu::{Gemm, MatMut, MatRef};

use super::labels::Items;
use super::launch::{extent, matmul, row_grid};
use super::loops::{for_rows, sum};

/// Items of `width` features against classes of as many weights.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Angular {
    /// Items, and classes.
    pub items: Items,
    /// Features of an item.
    pub width: usize,
    /// m, from 1 to 4.
    pub times: u32,
}

/// What is kept of each item: f, cross, and rest · ∣w∣/∣x∣ and rest · ∣x∣/∣w∣.
pub(crate) const KEPT: usize = 4;

/// ψ and ψ′ of m at a cosine.
fn psi<T: Float>(times: u32, cos: T) -> (T, T) {
    let of = |v: f64| T::of(v);
    let c2 = cos * cos;
    let (value, slope, bounds): (T, T, &[f64]) = match times {
        1 => (cos, T::one(), &[]),
        2 => (of(2.0) * c2 - T::one(), of(4.0) * cos, &[0.0]),
        3 => (cos * (of(4.0) * c2 - of(3.0)), of(12.0) * c2 - of(3.0), &[0.5, -0.5]),
        _ => {
            let value = of(8.0) * c2 * (c2 - T::one()) + T::one();
            let bound = std::f64::consts::FRAC_1_SQRT_2;
            (value, of(16.0) * cos * (of(2.0) * c2 - T::one()), &[bound, 0.0, -bound])
        }
    };
    let k = bounds.iter().filter(|&&bound| cos < of(bound)).count();
    let sign = if k % 2 == 0 { T::one() } else { -T::one() };
    (sign * value - of((2 * k) as f64), sign * slope)
}

impl Angular {
    /// Memory for what forward keeps.
    pub fn kept(&self, like: &BlobSpec) -> BlobSpec {
        like.with_shape([self.items.items, KEPT])
    }

    /// Memory for the factors of backward.
    pub fn factors(&self, like: &BlobSpec) -> BlobSpec {
        like.with_shape([self.items.items, 2])
    }

    /// Writes the logits z [items, classes], and what is kept of the items. The labels have been checked.
    pub fn forward<T: Float>(&self, x: &[T], w: &[T], labels: &[T], lambda: T, z: &mut [T], kept: &mut [T]) {
        let (Items { items, classes }, n) = (self.items, self.width);
        let (a, b) = (MatRef::new(x, items, n), MatRef::new(w, classes, n).t());
        Gemm { alpha: T::one(), a, b, beta: T::zero(), c: MatMut::new(z, items, classes) }.run();
        let logits = &*z;
        for_rows(kept, KEPT, 4 * n, |i, kept| {
            let Some(own) = self.items.known(labels, i) else { return };
            let (x, w) = (&x[i * n..][..n], &w[own * n..][..n]);
            let norm = |v: &[T]| sum(v, v, |a, b| a * b).sqrt();
            kept.copy_from_slice(&self.own(logits[i * classes + own], norm(x), norm(w), lambda));
        });
        for (i, kept) in kept.chunks(KEPT).enumerate() {
            if let Some(own) = self.items.known(labels, i) {
                z[i * classes + own] = kept[0];
            }
        }
    }

    /// What is kept of an item with the logit s.
    fn own<T: Float>(&self, s: T, x: T, w: T, lambda: T) -> [T; KEPT] {
        let product = x * w;
        if product == T::zero() {
            return [T::zero(), T::one(), T::zero(), T::zero()];
        }
        let cos = (s / product).max(-T::one()).min(T::one());
        let (value, slope) = psi(self.times, cos);
        let share = (T::one() + lambda).recip();
        let rest = (value - cos * slope) * share;
        [(lambda * s + product * value) * share, (lambda + slope) * share, rest * w / x, rest * x / w]
    }

    /// From g, the gradient of the logits, to dx, and adds to dw. Writes over g and `factors`.
    pub fn backward<T: Float>(
        &self,
        [x, w, labels, kept]: [&[T]; 4],
        [g, factors]: [&mut [T]; 2],
        dx: Option<&mut [T]>,
        dw: Option<&mut [T]>,
    ) {
        let (Items { items, classes }, n) = (self.items, self.width);
        for (i, (factors, kept)) in factors.chunks_mut(2).zip(kept.chunks(KEPT)).enumerate() {
            let Some(own) = self.items.known(labels, i) else { continue };
            let g = &mut g[i * classes + own];
            factors.copy_from_slice(&[*g * kept[2], *g * kept[3]]);
            *g *= kept[1];
        }
        let (g, alpha) = (MatRef::new(&*g, items, classes), T::one());
        if let Some(dx) = dx {
            let b = MatRef::new(w, classes, n);
            Gemm { alpha, a: g, b, beta: T::zero(), c: MatMut::new(dx, items, n) }.run();
            for_rows(dx, n, 2 * n, |i, dx| {
                dx.iter_mut().zip(&x[i * n..]).for_each(|(dx, &x)| *dx += factors[2 * i] * x);
            });
        }
        if let Some(dw) = dw {
            let b = MatRef::new(x, items, n);
            Gemm { alpha, a: g.t(), b, beta: T::one(), c: MatMut::new(dw, classes, n) }.run();
            for i in 0..items {
                if let Some(own) = self.items.known(labels, i) {
                    axpy(factors[2 * i + 1], &w[own * n..][..n], &mut dw[own * n..][..n]);
                }
            }
        }
    }

    /// [`Angular::forward`] on a device; λ is read at `lambda`. A label that names no class is left to others to report.
    pub fn forward_on(
        &self,
        call: DeviceCall<'_>,
        [x, w, labels, lambda]: [DevicePtr; 4],
        z: DevicePtr,
        kept: DevicePtr,
    ) -> Result<()> {
        let (Items { items, classes }, n) = (self.items, self.width);
        let gemm = matmul((items, classes, n), (x, n), (w, n), 0.0, (z, classes));
        call.queue.gemm(&DeviceGemm { trans_b: true, exact: true, ..gemm })?;
        let args = args![z, kept, x, w, labels, lambda, self.times, extent(items)?, extent(n)?];
        call.launch("angular_own", Grid::elements(items * 32), &self.items.after(args)?)
    }

    /// [`Angular::backward`] on a device.
    pub fn backward_on(
        &self,
        call: DeviceCall<'_>,
        [x, w, labels, kept]: [DevicePtr; 4],
        [g, factors]: [DevicePtr; 2],
        dx: Option<DevicePtr>,
        dw: Option<DevicePtr>,
    ) -> Result<()> {
        let (Items { items, classes }, n) = (self.items, self.width);
        let (rows, width) = (extent(items)?, extent(n)?);
        let args = args![g, factors, labels, kept, rows];
        call.launch("angular_factors", Grid::elements(items), &self.items.after(args)?)?;
        if let Some(dx) = dx {
            let gemm = matmul((items, n, classes), (g, classes), (w, n), 0.0, (dx, n));
            call.queue.gemm(&DeviceGemm { exact: true, ..gemm })?;
            call.launch("angular_items", row_grid(items, n), args![dx, factors, x, rows, width])?;
        }
        if let Some(dw) = dw {
            let gemm = matmul((classes, n, items), (g, classes), (x, n), 1.0, (dw, n));
            call.queue.gemm(&DeviceGemm { trans_a: true, exact: true, ..gemm })?;
            let args = args![dw, factors, w, labels, rows, width];
            call.launch("angular_classes", Grid::elements(classes * 32), &self.items.after(args)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psi_is_that_of_the_angle_and_falls() {
        for times in 1..=4u32 {
            let mut last = f64::INFINITY;
            for step in 0..=1000 {
                let angle = std::f64::consts::PI * f64::from(step) / 1000.0;
                let part = (f64::from(times) * angle / std::f64::consts::PI).floor().min(f64::from(times - 1));
                let want = (-1.0f64).powf(part) * (f64::from(times) * angle).cos() - 2.0 * part;
                let (found, slope) = psi(times, angle.cos());
                assert!((found - want).abs() < 1e-9, "m {times}, angle {angle}: {found}, expected {want}");
                assert!(found <= last && slope >= -1e-9, "m {times}, angle {angle}");
                last = found + 1e-12;
            }
        }
    }
}
