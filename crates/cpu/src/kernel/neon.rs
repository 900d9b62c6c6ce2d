//! NEON micro-kernels: 6 × 16 in single precision, 24 accumulators of the 32 registers.

use std::arch::aarch64::*;

use super::{Micro, TileArgs, portable};

/// Single precision.
pub(super) static F32: Micro<f32> = Micro { mr: 6, nr: 16, run: run_f32, transpose: transpose_f32 };
/// Double precision: the portable body, which the compiler turns into fused NEON instructions.
pub(super) static F64: Micro<f64> = Micro { mr: 6, nr: 8, run: run_f64, transpose: portable::transpose::<f64> };

type Tile = unsafe fn(usize, &TileArgs<f32>);

macro_rules! tiles {
    ($v:literal: $($r:literal)*) => { [$([tile::<$r, $v, false> as Tile, tile::<$r, $v, true>]),*] };
}
static TILES: [[[Tile; 2]; 6]; 4] =
    [tiles!(1: 1 2 3 4 5 6), tiles!(2: 1 2 3 4 5 6), tiles!(3: 1 2 3 4 5 6), tiles!(4: 1 2 3 4 5 6)];

/// # Safety
/// As for [`Micro::run`].
unsafe fn run_f32(rows: usize, cols: usize, t: &TileArgs<f32>) {
    // SAFETY: passed on from the caller.
    unsafe { TILES[(cols - 1) / 4][rows - 1][usize::from(t.a_row != 1)](cols, t) }
}

/// # Safety
/// As for [`Micro::run`].
unsafe fn run_f64(rows: usize, cols: usize, t: &TileArgs<f64>) {
    // SAFETY: passed on from the caller.
    unsafe { portable::tile::<f64, 6, 8, true>(rows, cols, t) }
}

/// The product of an R-row panel of A, its rows side by side or apart, and V vectors of B, the last possibly partial.
///
/// # Safety
/// As for [`Micro::run`].
unsafe fn tile<const R: usize, const V: usize, const STRIDED: bool>(cols: usize, t: &TileArgs<f32>) {
    let (mut a, mut b) = (t.a, t.b);
    let (a_row, a_step) = (if STRIDED { t.a_row } else { 1 }, t.a_step);
    let tail = cols - 4 * (V - 1);
    // SAFETY: the panels hold k steps of R and of `cols` elements, and C has R rows of `cols`; elements past `cols` are
    // neither read nor written.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); V]; R];
        for _ in 0..t.k {
            let mut bv = [vdupq_n_f32(0.0); V];
            for v in 0..V {
                bv[v] = if v + 1 < V || tail == 4 { vld1q_f32(b.add(4 * v)) } else { load_some(b.add(4 * v), tail) };
            }
            for i in 0..R {
                let ai = *a.add(i * a_row);
                for v in 0..V {
                    acc[i][v] = vfmaq_n_f32(acc[i][v], bv[v], ai);
                }
            }
            a = a.wrapping_add(a_step);
            b = b.wrapping_add(t.ldb);
        }
        for i in 0..R {
            for v in 0..V {
                let c = t.c.add(i * t.ldc + 4 * v);
                let full = v + 1 < V || tail == 4;
                let sum = if t.accumulate {
                    vfmaq_n_f32(if full { vld1q_f32(c) } else { load_some(c, tail) }, acc[i][v], t.alpha)
                } else {
                    vmulq_n_f32(acc[i][v], t.alpha)
                };
                if full {
                    vst1q_f32(c, sum);
                } else {
                    let mut lanes = [0.0; 4];
                    vst1q_f32(lanes.as_mut_ptr(), sum);
                    c.copy_from_nonoverlapping(lanes.as_ptr(), tail);
                }
            }
        }
    }
}

/// The first `n` of four lanes, the others zero.
///
/// # Safety
/// `n` elements, at most four, must be there.
#[inline(always)]
unsafe fn load_some(from: *const f32, n: usize) -> float32x4_t {
    let mut lanes = [0.0; 4];
    // SAFETY: `n` elements are there, and four lanes.
    unsafe {
        lanes.as_mut_ptr().copy_from_nonoverlapping(from, n);
        vld1q_f32(lanes.as_ptr())
    }
}

/// Transposes 4 × 4 blocks in registers, and what is left element by element.
///
/// # Safety
/// As for [`Micro::transpose`].
unsafe fn transpose_f32(width: usize, k: usize, src: *const f32, ld_src: usize, dst: *mut f32, ld_dst: usize) {
    let (w4, k4) = (width / 4 * 4, k / 4 * 4);
    // SAFETY: whole blocks are within the spans that the caller promises, and so do the remainders.
    unsafe {
        for i0 in (0..w4).step_by(4) {
            for p0 in (0..k4).step_by(4) {
                let row = |i: usize| vld1q_f32(src.add((i0 + i) * ld_src + p0));
                let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
                let pair = |low, high| (vtrn1q_f32(low, high), vtrn2q_f32(low, high));
                let ((a, b), (c, d)) = (pair(r0, r1), pair(r2, r3));
                let join = |x: float32x4_t, y: float32x4_t| {
                    let (x, y) = (vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y));
                    (vreinterpretq_f32_f64(vtrn1q_f64(x, y)), vreinterpretq_f32_f64(vtrn2q_f64(x, y)))
                };
                let ((c0, c2), (c1, c3)) = (join(a, c), join(b, d));
                for (p, column) in [c0, c1, c2, c3].into_iter().enumerate() {
                    vst1q_f32(dst.add((p0 + p) * ld_dst + i0), column);
                }
            }
        }
        if k4 < k {
            portable::transpose(w4, k - k4, src.add(k4), ld_src, dst.add(k4 * ld_dst), ld_dst);
        }
        if w4 < width {
            portable::transpose(width - w4, k, src.add(w4 * ld_src), ld_src, dst.add(w4), ld_dst);
        }
    }
}
