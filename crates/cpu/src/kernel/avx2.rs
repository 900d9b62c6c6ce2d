//! AVX2 micro-kernels: 6 × 16 in single precision, 12 accumulators of the 16 registers.

use std::arch::x86_64::*;

use super::{Micro, TileArgs, portable};

/// Single precision.
pub(super) static F32: Micro<f32> = Micro { mr: 6, nr: 16, run: run_f32, transpose: transpose_f32 };
/// Double precision: the portable body compiled for these instructions.
pub(super) static F64: Micro<f64> = Micro { mr: 4, nr: 8, run: run_f64, transpose: transpose_f64 };

type Tile = unsafe fn(usize, &TileArgs<f32>);

macro_rules! tiles {
    ($v:literal: $($r:literal)*) => { [$([tile::<$r, $v, false> as Tile, tile::<$r, $v, true>]),*] };
}
static TILES: [[[Tile; 2]; 6]; 2] = [tiles!(1: 1 2 3 4 5 6), tiles!(2: 1 2 3 4 5 6)];

/// Eight words of ones and eight of zeros: a window starting at `8 - n` masks `n` lanes.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// # Safety
/// As for [`Micro::run`].
unsafe fn run_f32(rows: usize, cols: usize, t: &TileArgs<f32>) {
    // SAFETY: passed on from the caller.
    unsafe { TILES[(cols - 1) / 8][rows - 1][usize::from(t.a_row != 1)](cols, t) }
}

/// The product of an R-row panel of A, its rows side by side or apart, and V vectors of B, the last possibly partial.
///
/// # Safety
/// As for [`Micro::run`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const V: usize, const STRIDED: bool>(cols: usize, t: &TileArgs<f32>) {
    let mut acc = [[_mm256_setzero_ps(); V]; R];
    let (mut a, mut b) = (t.a, t.b);
    let (a_row, a_step) = (if STRIDED { t.a_row } else { 1 }, t.a_step);
    let whole = cols == V * 8;
    // SAFETY: the panels hold k steps of R and of `cols` elements; lanes past `cols` are masked away, in B as in C.
    unsafe {
        let tail = _mm256_loadu_si256(MASKS.as_ptr().add(V * 8 - cols).cast());
        for _ in 0..t.k {
            let mut bv = [_mm256_setzero_ps(); V];
            for v in 0..V {
                bv[v] = if v + 1 < V || whole {
                    _mm256_loadu_ps(b.add(8 * v))
                } else {
                    _mm256_maskload_ps(b.add(8 * v), tail)
                };
            }
            for i in 0..R {
                let ai = _mm256_broadcast_ss(&*a.add(i * a_row));
                for v in 0..V {
                    acc[i][v] = _mm256_fmadd_ps(ai, bv[v], acc[i][v]);
                }
            }
            a = a.wrapping_add(a_step);
            b = b.wrapping_add(t.ldb);
        }
        let alpha = _mm256_set1_ps(t.alpha);
        for i in 0..R {
            for v in 0..V {
                let c = t.c.add(i * t.ldc + 8 * v);
                let full = v + 1 < V || whole;
                let sum = if t.accumulate {
                    let old = if full { _mm256_loadu_ps(c) } else { _mm256_maskload_ps(c, tail) };
                    _mm256_fmadd_ps(alpha, acc[i][v], old)
                } else {
                    _mm256_mul_ps(alpha, acc[i][v])
                };
                if full {
                    _mm256_storeu_ps(c, sum);
                } else {
                    _mm256_maskstore_ps(c, tail, sum);
                }
            }
        }
    }
}

/// # Safety
/// As for [`Micro::run`].
#[target_feature(enable = "avx2,fma")]
unsafe fn run_f64(rows: usize, cols: usize, t: &TileArgs<f64>) {
    // SAFETY: passed on from the caller.
    unsafe { portable::tile::<f64, 4, 8, true>(rows, cols, t) }
}

/// # Safety
/// As for [`Micro::transpose`].
unsafe fn transpose_f64(width: usize, k: usize, src: *const f64, ld_src: usize, dst: *mut f64, ld_dst: usize) {
    // SAFETY: passed on from the caller.
    unsafe { portable::transpose(width, k, src, ld_src, dst, ld_dst) }
}

/// Transposes 8 × 8 blocks in registers, and what is left element by element.
///
/// # Safety
/// As for [`Micro::transpose`].
#[target_feature(enable = "avx2")]
unsafe fn transpose_f32(width: usize, k: usize, src: *const f32, ld_src: usize, dst: *mut f32, ld_dst: usize) {
    let (w8, k8) = (width / 8 * 8, k / 8 * 8);
    // SAFETY: whole blocks are within the spans that the caller promises, and so do the remainders.
    unsafe {
        for i0 in (0..w8).step_by(8) {
            for p0 in (0..k8).step_by(8) {
                let mut r = [_mm256_setzero_ps(); 8];
                for (i, v) in r.iter_mut().enumerate() {
                    *v = _mm256_loadu_ps(src.add((i0 + i) * ld_src + p0));
                }
                for (p, v) in transpose8(r).iter().enumerate() {
                    _mm256_storeu_ps(dst.add((p0 + p) * ld_dst + i0), *v);
                }
            }
        }
        if k8 < k {
            portable::transpose(w8, k - k8, src.add(k8), ld_src, dst.add(k8 * ld_dst), ld_dst);
        }
        if w8 < width {
            portable::transpose(width - w8, k, src.add(w8 * ld_src), ld_src, dst.add(w8), ld_dst);
        }
    }
}

/// The transpose of an 8 × 8 block.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    let mut t = [_mm256_setzero_ps(); 8];
    let mut u = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for q in 0..2 {
        let [a, b, c, d] = [t[4 * q], t[4 * q + 1], t[4 * q + 2], t[4 * q + 3]];
        u[4 * q] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
        u[4 * q + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
        u[4 * q + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
        u[4 * q + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
    }
    let mut out = [_mm256_setzero_ps(); 8];
    for j in 0..4 {
        out[j] = _mm256_permute2f128_ps::<0x20>(u[j], u[4 + j]);
        out[4 + j] = _mm256_permute2f128_ps::<0x31>(u[j], u[4 + j]);
    }
    out
}
