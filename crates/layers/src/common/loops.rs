//! Loops over the elements of blobs, for layers that may share memory between bottom and top, and sums in a fixed order.

use lgm_core::Float;
use lgm_cpu::elementwise::{zip_into, zip2_into};
use lgm_cpu::for_each_part;

/// dst = f(a, b), or f(a, dst) in place when `b` is absent.
pub(crate) fn map2<T: Float>(a: &[T], b: Option<&[T]>, dst: &mut [T], f: impl Fn(T, T) -> T + Sync) {
    match b {
        Some(b) => zip2_into(a, b, dst, f),
        None => zip_into(a, dst, |d, a| f(a, d)),
    }
}

/// Elements of work in a parallel task of [`for_rows`].
const WORK: usize = 1 << 17;
/// Partial sums kept apart, so that they fit vector registers.
const LANES: usize = 16;
/// Elements summed before the sum moves on to double precision.
const RUN: usize = 4096;

/// Calls `task(i, row)` for each row of `len` elements of `dst`, each worth `work`; in parallel when there is enough.
pub(crate) fn for_rows<T: Send>(dst: &mut [T], len: usize, work: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let (len, rows) = (len.max(1), (WORK / work.max(1)).max(1));
    for_each_part(dst, rows * len, |block, part| {
        part.chunks_mut(len).enumerate().for_each(|(i, row)| task(block * rows + i, row));
    });
}

/// Σ f(a, b).
#[inline(always)]
pub(crate) fn sum<T: Float>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let b = &b[..a.len()];
    let mut lanes = [T::zero(); LANES];
    let whole = a.len() / LANES * LANES;
    for (a, b) in a[..whole].chunks_exact(LANES).zip(b[..whole].chunks_exact(LANES)) {
        for l in 0..LANES {
            lanes[l] += f(a[l], b[l]);
        }
    }
    for (l, (&a, &b)) in a[whole..].iter().zip(&b[whole..]).enumerate() {
        lanes[l] += f(a, b);
    }
    lanes.into_iter().sum()
}

/// Σ v · f(a, b).
#[inline(always)]
pub(crate) fn sum_weighted<T: Float>(a: &[T], b: &[T], v: &[T], f: impl Fn(T, T) -> T) -> T {
    let (b, v) = (&b[..a.len()], &v[..a.len()]);
    let mut lanes = [T::zero(); LANES];
    let whole = a.len() / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        let (a, b, v) = (&a[k..k + LANES], &b[k..k + LANES], &v[k..k + LANES]);
        for l in 0..LANES {
            lanes[l] += v[l] * f(a[l], b[l]);
        }
    }
    for k in whole..a.len() {
        lanes[k - whole] += v[k] * f(a[k], b[k]);
    }
    lanes.into_iter().sum()
}

/// Σ f(a, b) over long slices, which single precision alone would round away.
pub(crate) fn total<T: Float>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> f64 {
    a.chunks(RUN).zip(b.chunks(RUN)).map(|(a, b)| sum(a, b, &f).f64()).sum()
}
