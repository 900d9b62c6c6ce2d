//! Matrix–vector products and rank-one updates.

use crate::kernel::vectorized;
use crate::parallel::{Shared, tasks};
use crate::{Float, Trans};

/// Columns of one task of the transposed product.
const COLS: usize = 1024;
/// Elements from which threads are used.
const PARALLEL_FROM: usize = 1 << 16;

/// y = α·op(A)·x + β·y with A m × n as stored, row-major, rows `lda` apart.
///
/// `x` has n elements and `y` m, or the other way round when transposed. With β = 0, y is overwritten unread.
///
/// # Panics
/// When a slice is shorter than its matrix or vector.
#[allow(clippy::too_many_arguments)]
pub fn gemv<T: Float>(trans: Trans, m: usize, n: usize, alpha: T, a: &[T], lda: usize, x: &[T], beta: T, y: &mut [T]) {
    let parallel = m * n >= PARALLEL_FROM;
    match trans {
        Trans::No => {
            let rows_at_once = (PARALLEL_FROM / 4 / n.max(1)).max(1);
            let y = Shared::new(&mut y[..m]);
            tasks(m.div_ceil(rows_at_once), parallel, |t| {
                let from = t * rows_at_once;
                // SAFETY: tasks take consecutive, disjoint ranges.
                let part = unsafe { y.part(from..(from + rows_at_once).min(m)) };
                for (i, y) in part.iter_mut().enumerate() {
                    let sum = alpha * dot_block(&a[(from + i) * lda..][..n], &x[..n]);
                    *y = if beta == T::zero() { sum } else { beta * *y + sum };
                }
            });
        }
        Trans::Yes => {
            let y = Shared::new(&mut y[..n]);
            tasks(n.div_ceil(COLS), parallel, |t| {
                // SAFETY: tasks take consecutive, disjoint ranges.
                let part = unsafe { y.part(t * COLS..((t + 1) * COLS).min(n)) };
                if beta == T::zero() {
                    part.fill(T::zero());
                } else if beta != T::one() {
                    part.iter_mut().for_each(|v| *v *= beta);
                }
                for (i, &xi) in x[..m].iter().enumerate() {
                    axpy_block(alpha * xi, &a[i * lda + t * COLS..][..part.len()], part);
                }
            });
        }
    }
}

/// A += α·x·yᵀ with A m × n, row-major, rows `lda` apart.
///
/// # Panics
/// When a slice is shorter than its matrix or vector.
pub fn ger<T: Float>(m: usize, n: usize, alpha: T, x: &[T], y: &[T], a: &mut [T], lda: usize) {
    assert!(lda >= n && x.len() >= m);
    if m == 0 || n == 0 {
        return;
    }
    crate::for_each_row(&mut a[..(m - 1) * lda + n], lda, |i, row| axpy_block(alpha * x[i], &y[..n], &mut row[..n]));
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
        let mut width = L;
        while width > 1 {
            width /= 2;
            for l in 0..width {
                let high = acc[l + width];
                acc[l] += high;
            }
        }
        let tail = xt.iter().zip(yt).fold(T::zero(), |s, (&x, &y)| s + x * y);
        acc[0] + tail
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, same_bits_on_any_threads};

    #[test]
    fn agrees_with_the_definition() {
        for (m, n) in [(1, 1), (3, 65), (65, 3), (130, 1500)] {
            for trans in [Trans::No, Trans::Yes] {
                let lda = n + 2;
                let a: Vec<f32> = noise(m * lda, 1);
                let (xl, yl) = if trans == Trans::No { (n, m) } else { (m, n) };
                let (x, y0): (Vec<f32>, Vec<f32>) = (noise(xl, 2), noise(yl, 3));
                for beta in [0.0f32, 1.0, 0.5] {
                    let mut y = if beta == 0.0 { vec![f32::NAN; yl] } else { y0.clone() };
                    gemv(trans, m, n, 2.0, &a, lda, &x, beta, &mut y);
                    for i in 0..yl {
                        let at = |j: usize| if trans == Trans::No { a[i * lda + j] } else { a[j * lda + i] };
                        let sum: f64 = (0..xl).map(|j| at(j) as f64 * x[j] as f64).sum();
                        let want = 2.0 * sum + beta as f64 * y0[i] as f64;
                        assert!((y[i] as f64 - want).abs() < 1e-4, "{m}x{n} {trans:?} {beta}: {} for {want}", y[i]);
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        let (m, n) = (300, 2500);
        let (a, x): (Vec<f32>, Vec<f32>) = (noise(m * n, 1), noise(n, 2));
        for trans in [Trans::No, Trans::Yes] {
            same_bits_on_any_threads(|| {
                let mut y = vec![0.0f32; n];
                gemv(trans, m, n, 1.0, &a, n, &x, 0.0, &mut y);
                y
            });
        }
    }

    #[test]
    fn rank_one_update() {
        let mut a = vec![1.0f64; 8];
        ger(2, 3, 2.0, &[1.0, 2.0], &[1.0, 0.0, -1.0], &mut a, 4);
        assert_eq!(a, [3.0, 1.0, -1.0, 1.0, 5.0, 1.0, -3.0, 1.0]);
    }
}
