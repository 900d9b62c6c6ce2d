//! AVX-512 micro-kernels: 14 × 32 in single precision, 28 accumulators of the 32 registers.

use std::arch::x86_64::*;

use super::{Micro, TileArgs, portable};

/// Single precision.
pub(super) static F32: Micro<f32> = Micro { mr: 14, nr: 32, run: run_f32, transpose: transpose_f32 };
/// Double precision: the portable body compiled for these instructions.
pub(super) static F64: Micro<f64> = Micro { mr: 8, nr: 16, run: run_f64, transpose: transpose_f64 };

type Tile = unsafe fn(usize, &TileArgs<f32>);

macro_rules! tiles {
    ($v:literal: $($r:literal)*) => { [$([tile::<$r, $v, false> as Tile, tile::<$r, $v, true>]),*] };
}
static TILES: [[[Tile; 2]; 14]; 2] =
    [tiles!(1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14), tiles!(2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14)];

/// # Safety
/// As for [`Micro::run`].
unsafe fn run_f32(rows: usize, cols: usize, t: &TileArgs<f32>) {
    // SAFETY: passed on from the caller.
    unsafe { TILES[(cols - 1) / 16][rows - 1][usize::from(t.a_row != 1)](cols, t) }
}

/// The product of an R-row panel of A, its rows side by side or apart, and V vectors of B, the last possibly partial.
///
/// # Safety
/// As for [`Micro::run`].
#[target_feature(enable = "avx512f")]
unsafe fn tile<const R: usize, const V: usize, const STRIDED: bool>(cols: usize, t: &TileArgs<f32>) {
    let tail: __mmask16 = 0xffff >> (V * 16 - cols);
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b) = (t.a, t.b);
    let (a_row, a_step) = (if STRIDED { t.a_row } else { 1 }, t.a_step);
    // SAFETY: the panels hold k steps of R and of `cols` elements; lanes past `cols` are masked away, in B as in C.
    unsafe {
        for i in 0..R {
            _mm_prefetch::<_MM_HINT_T0>(t.c.wrapping_add(i * t.ldc) as *const i8);
            _mm_prefetch::<_MM_HINT_T0>(t.c.wrapping_add(i * t.ldc + cols - 1) as *const i8);
        }
        for _ in 0..t.k {
            let mut bv = [_mm512_setzero_ps(); V];
            for v in 0..V {
                bv[v] =
                    if v + 1 < V { _mm512_loadu_ps(b.add(16 * v)) } else { _mm512_maskz_loadu_ps(tail, b.add(16 * v)) };
            }
            for i in 0..R {
                let ai = _mm512_set1_ps(*a.add(i * a_row));
                for v in 0..V {
                    acc[i][v] = _mm512_fmadd_ps(ai, bv[v], acc[i][v]);
                }
            }
            a = a.wrapping_add(a_step);
            b = b.wrapping_add(t.ldb);
        }
        let alpha = _mm512_set1_ps(t.alpha);
        for i in 0..R {
            for v in 0..V {
                let c = t.c.add(i * t.ldc + 16 * v);
                let mask = if v + 1 < V { 0xffff } else { tail };
                let sum = if t.accumulate {
                    _mm512_fmadd_ps(alpha, acc[i][v], _mm512_maskz_loadu_ps(mask, c))
                } else {
                    _mm512_mul_ps(alpha, acc[i][v])
                };
                _mm512_mask_storeu_ps(c, mask, sum);
            }
        }
    }
}

/// # Safety
/// As for [`Micro::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn run_f64(rows: usize, cols: usize, t: &TileArgs<f64>) {
    // SAFETY: passed on from the caller.
    unsafe { portable::tile::<f64, 8, 16, true>(rows, cols, t) }
}

/// # Safety
/// As for [`Micro::transpose`].
unsafe fn transpose_f64(width: usize, k: usize, src: *const f64, ld_src: usize, dst: *mut f64, ld_dst: usize) {
    // SAFETY: passed on from the caller.
    unsafe { portable::transpose(width, k, src, ld_src, dst, ld_dst) }
}

/// Transposes 16 × 16 blocks in registers; edges by masks.
///
/// # Safety
/// As for [`Micro::transpose`].
#[target_feature(enable = "avx512f")]
unsafe fn transpose_f32(width: usize, k: usize, src: *const f32, ld_src: usize, dst: *mut f32, ld_dst: usize) {
    for i in (0..width).step_by(16) {
        for p in (0..k).step_by(16) {
            let (rows, steps) = ((width - i).min(16), (k - p).min(16));
            let (from, to) = (src.wrapping_add(i * ld_src + p), dst.wrapping_add(p * ld_dst + i));
            // SAFETY: of the source there are `rows` rows of `steps` elements here, of the target as many the other way.
            unsafe {
                if rows == 16 && steps == 16 {
                    block(from, ld_src, to, ld_dst);
                } else {
                    edge(rows, steps, from, ld_src, to, ld_dst);
                }
            }
        }
    }
}

/// The transpose of a whole block, which never leaves the registers.
///
/// # Safety
/// As for [`Micro::transpose`], 16 × 16.
#[target_feature(enable = "avx512f")]
unsafe fn block(src: *const f32, ld_src: usize, dst: *mut f32, ld_dst: usize) {
    let mut r = [_mm512_setzero_ps(); 16];
    // SAFETY: passed on from the caller.
    unsafe {
        for i in 0..16 {
            let at = src.wrapping_add(i * ld_src);
            // Rows far apart are streams that the processor does not foresee; they may share a set of the nearest cache,
            // where they would drive each other out.
            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(64) as *const i8);
            r[i] = _mm512_loadu_ps(at);
        }
        let c = transpose16(r);
        for p in 0..16 {
            _mm512_storeu_ps(dst.wrapping_add(p * ld_dst), c[p]);
        }
    }
}

/// The transpose of part of a block.
///
/// # Safety
/// As for [`Micro::transpose`], `rows` × `steps`, 16 of each at most.
#[target_feature(enable = "avx512f")]
unsafe fn edge(rows: usize, steps: usize, src: *const f32, ld_src: usize, dst: *mut f32, ld_dst: usize) {
    let (row_mask, step_mask): (__mmask16, __mmask16) = (0xffff >> (16 - rows), 0xffff >> (16 - steps));
    let mut r = [_mm512_setzero_ps(); 16];
    // SAFETY: other lanes and rows than the caller speaks for are not touched. The loops are of fixed length, as in `block`.
    unsafe {
        for i in 0..16 {
            if i < rows {
                r[i] = _mm512_maskz_loadu_ps(step_mask, src.wrapping_add(i * ld_src));
            }
        }
        let c = transpose16(r);
        for p in 0..16 {
            if p < steps {
                _mm512_mask_storeu_ps(dst.wrapping_add(p * ld_dst), row_mask, c[p]);
            }
        }
    }
}

/// The transpose of a 16 × 16 block.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose16(r: [__m512; 16]) -> [__m512; 16] {
    let mut t = [_mm512_setzero_ps(); 16];
    let mut u = [_mm512_setzero_ps(); 16];
    // Pairs of rows, then pairs of pairs, within 128-bit lanes.
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for q in 0..4 {
        let [a, b, c, d] = [t[4 * q], t[4 * q + 1], t[4 * q + 2], t[4 * q + 3]].map(|v| _mm512_castps_pd(v));
        u[4 * q] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        u[4 * q + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        u[4 * q + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        u[4 * q + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // u[4q + j] holds, in lane l, column 4l + j of rows 4q..4q+4: a 4 × 4 transpose of lanes remains.
    let mut out = [_mm512_setzero_ps(); 16];
    for j in 0..4 {
        let (a, b, c, d) = (u[j], u[4 + j], u[8 + j], u[12 + j]);
        let ab02 = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        let ab13 = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        let cd02 = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
        let cd13 = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
        out[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab02, cd02);
        out[8 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab02, cd02);
        out[4 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab13, cd13);
        out[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab13, cd13);
    }
    out
}
