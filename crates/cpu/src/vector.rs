//! Inner products and updates of short vectors, which loops over blocks are made of.

use crate::Float;
use crate::kernel::vectorized;

/// Σ acc, by halves.
#[inline(always)]
pub(crate) fn halves<T: Float, const L: usize>(mut acc: [T; L]) -> T {
    let mut width = L;
    while width > 1 {
        width /= 2;
        for l in 0..width {
            let high = acc[l + width];
            acc[l] += high;
        }
    }
    acc[0]
}

vectorized! {
    /// The inner product of two short vectors, in 64 interleaved partial sums.
    pub(crate) fn dot_block[T: Float](x: &[T], y: &[T]) -> T {
        const L: usize = 64;
        let mut acc = [T::zero(); L];
        let (xs, ys) = (x.chunks_exact(L), y.chunks_exact(L));
        let (xt, yt) = (xs.remainder(), ys.remainder());
        for (x, y) in xs.zip(ys) {
            for l in 0..L {
                acc[l] += x[l] * y[l];
            }
        }
        let tail = xt.iter().zip(yt).fold(T::zero(), |s, (&x, &y)| s + x * y);
        halves(acc) + tail
    }
}

vectorized! {
    /// y += α·x over short vectors.
    pub(crate) fn axpy_block[T: Float](alpha: T, x: &[T], y: &mut [T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += alpha * x;
        }
    }
}
