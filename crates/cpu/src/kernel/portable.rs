//! The micro-kernel in plain Rust, also compiled for wider instruction sets, where it serves `f64`.

use super::{Micro, TileArgs};
use crate::Float;

/// `f32` on the base instruction set.
pub(super) static F32: Micro<f32> = Micro { mr: 4, nr: 8, run: run::<f32, 4, 8>, transpose: transpose::<f32> };
/// `f64` on the base instruction set.
pub(super) static F64: Micro<f64> = Micro { mr: 4, nr: 4, run: run::<f64, 4, 4>, transpose: transpose::<f64> };

/// # Safety
/// As for [`Micro::run`].
unsafe fn run<T: Float, const R: usize, const N: usize>(rows: usize, cols: usize, t: &TileArgs<T>) {
    // SAFETY: passed on from the caller.
    unsafe { tile::<T, R, N, false>(rows, cols, t) }
}

/// The tile product for at most R × N. Fused multiply-add is asked for only where it is an instruction.
///
/// # Safety
/// As for [`Micro::run`].
#[inline(always)]
pub(super) unsafe fn tile<T: Float, const R: usize, const N: usize, const FMA: bool>(
    rows: usize,
    cols: usize,
    t: &TileArgs<T>,
) {
    let mut acc = [[T::zero(); N]; R];
    let (mut a, mut b) = (t.a, t.b);
    if rows == R && cols == N {
        for _ in 0..t.k {
            // SAFETY: a full tile reads R elements of A and N of B at each step, as the caller promises.
            let (av, bv) = unsafe { (std::array::from_fn(|i| *a.add(i * t.a_row)), b.cast::<[T; N]>().read()) };
            step::<T, R, N, FMA>(&mut acc, &av, &bv);
            (a, b) = (a.wrapping_add(t.a_step), b.wrapping_add(t.ldb));
        }
    } else {
        let (mut av, mut bv) = ([T::zero(); R], [T::zero(); N]);
        for _ in 0..t.k {
            // SAFETY: rows and cols elements are there.
            unsafe {
                av.iter_mut().take(rows).enumerate().for_each(|(i, v)| *v = *a.add(i * t.a_row));
                bv.iter_mut().take(cols).enumerate().for_each(|(j, v)| *v = *b.add(j));
            }
            step::<T, R, N, FMA>(&mut acc, &av, &bv);
            (a, b) = (a.wrapping_add(t.a_step), b.wrapping_add(t.ldb));
        }
    }
    if rows == R && cols == N {
        // SAFETY: the whole tile of C is there.
        unsafe { store::<T, R, N>(&acc, t.c, t.ldc, t.alpha, t.accumulate) };
        return;
    }
    // A partial tile goes through a whole one: indices that vary would keep the accumulators in memory.
    let mut whole = [[T::zero(); N]; R];
    // SAFETY: `whole` has R rows of N.
    unsafe { store::<T, R, N>(&acc, whole.as_mut_ptr().cast(), N, t.alpha, false) };
    for (i, row) in whole.iter().enumerate().take(rows) {
        for (j, &v) in row.iter().enumerate().take(cols) {
            // SAFETY: (i, j) is in the tile of C.
            unsafe {
                let c = t.c.add(i * t.ldc + j);
                *c = if t.accumulate { *c + v } else { v };
            }
        }
    }
}

/// Writes a whole tile.
///
/// # Safety
/// `c` must have R rows of N elements, `ldc` apart.
#[inline(always)]
unsafe fn store<T: Float, const R: usize, const N: usize>(
    acc: &[[T; N]; R],
    c: *mut T,
    ldc: usize,
    alpha: T,
    accumulate: bool,
) {
    for (i, row) in acc.iter().enumerate() {
        // SAFETY: row i of the tile.
        unsafe {
            let c = c.add(i * ldc).cast::<[T; N]>();
            let old = if accumulate { c.read() } else { [T::zero(); N] };
            c.write(std::array::from_fn(|j| if accumulate { old[j] + alpha * row[j] } else { alpha * row[j] }));
        }
    }
}

/// One outer product added to the accumulators.
#[inline(always)]
fn step<T: Float, const R: usize, const N: usize, const FMA: bool>(acc: &mut [[T; N]; R], a: &[T; R], b: &[T; N]) {
    for i in 0..R {
        for j in 0..N {
            acc[i][j] = if FMA { a[i].mul_add(b[j], acc[i][j]) } else { acc[i][j] + a[i] * b[j] };
        }
    }
}

/// `dst[p * ld_dst + i] = src[i * ld_src + p]` for `i < width`, `p < k`.
///
/// # Safety
/// Both must span those elements.
pub(super) unsafe fn transpose<T: Float>(
    width: usize,
    k: usize,
    src: *const T,
    ld_src: usize,
    dst: *mut T,
    ld_dst: usize,
) {
    // Blocks of eight keep the strided side within a few cache lines.
    for p0 in (0..k).step_by(8) {
        let p1 = (p0 + 8).min(k);
        for i in 0..width {
            for p in p0..p1 {
                // SAFETY: within the spans the caller promises.
                unsafe { *dst.add(p * ld_dst + i) = *src.add(i * ld_src + p) };
            }
        }
    }
}
