//! The matrix product C = α·op(A)·op(B) + β·C over row-major slices.
//!
//! Blocked as in Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): a block of B's
//! inner extent is packed for the second-level cache, panels of A pass over it, and a micro-kernel keeps a tile of C in
//! registers. Threads share the packed blocks and take fixed rectangles of C; the inner extent is never split among
//! them, so the sums are the same whatever their number.

use crate::Float;
use crate::kernel::{Kernel, Micro, TileArgs, micro};
use crate::pack::{Panels, Strides, pack_panel, pack_wide};
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;

/// Whether an operand of [`gemm`] is transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trans {
    /// Taken as stored.
    No,
    /// Taken transposed.
    Yes,
}

/// Longest inner extent of one pass.
pub(crate) const KC: usize = 320;
/// Most columns packed at once.
const NC: usize = 4096;
/// Most rows packed at once.
const MC: usize = 4096;
/// Columns of one task.
const TASK_COLS: usize = 512;
/// Panels of rows of one task.
const TASK_PANELS: usize = 8;
/// Multiply-adds below which threads cost more than they bring.
const PARALLEL_FROM: usize = 1 << 20;

/// Most rows of a product whose B is not worth packing: each of its elements is used no more often than there are rows.
const FEW_ROWS: usize = 96;
/// Fewest columns of such a product.
const FEW_ROWS_FROM: usize = 64;

/// C = α·op(A)·op(B) + β·C, with op(A) m × k, op(B) k × n and C m × n, all row-major.
///
/// `lda`, `ldb`, `ldc` are the distances between rows as stored. With β = 0, C is overwritten unread. The semantics are
/// those of BLAS `gemm`; the result does not depend on the number of threads.
///
/// # Panics
/// When a slice is shorter than its matrix.
#[allow(clippy::too_many_arguments)]
pub fn gemm<T: Float>(
    trans_a: Trans,
    trans_b: Trans,
    m: usize,
    n: usize,
    k: usize,
    alpha: T,
    a: &[T],
    lda: usize,
    b: &[T],
    ldb: usize,
    beta: T,
    c: &mut [T],
    ldc: usize,
) {
    gemm_with(Kernel::active(), trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

/// [`gemm`] on a named kernel.
///
/// # Panics
/// When the processor lacks the kernel's instructions, or a slice is shorter than its matrix.
#[allow(clippy::too_many_arguments)]
pub fn gemm_with<T: Float>(
    kernel: Kernel,
    trans_a: Trans,
    trans_b: Trans,
    m: usize,
    n: usize,
    k: usize,
    alpha: T,
    a: &[T],
    lda: usize,
    b: &[T],
    ldb: usize,
    beta: T,
    c: &mut [T],
    ldc: usize,
) {
    assert!(kernel.is_available(), "this processor cannot run the {kernel:?} kernel");
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "C is shorter than {m} rows of {n}, {ldc} apart");
    if k == 0 || alpha == T::zero() {
        scale(c, m, n, ldc, beta);
        return;
    }
    let a_len = if trans_a == Trans::No { (m - 1) * lda + k } else { (k - 1) * lda + m };
    let b_len = if trans_b == Trans::No { (k - 1) * ldb + n } else { (n - 1) * ldb + k };
    assert!(a.len() >= a_len && b.len() >= b_len, "an operand of a {m}x{n}x{k} product is too short");
    if beta != T::zero() && beta != T::one() {
        scale(c, m, n, ldc, beta);
    }
    let a = Operand {
        data: a,
        strides: match trans_a {
            Trans::No => Strides { across: lda, along: 1 },
            Trans::Yes => Strides { across: 1, along: lda },
        },
    };
    let b = Operand {
        data: b,
        strides: match trans_b {
            Trans::No => Strides { across: 1, along: ldb },
            Trans::Yes => Strides { across: ldb, along: 1 },
        },
    };
    let micro = micro(kernel);
    if m <= FEW_ROWS && n >= FEW_ROWS_FROM && n >= 2 * m {
        few_rows(micro, (m, n, k), alpha, a, b, beta != T::zero(), c, ldc);
    } else {
        blocked(micro, (m, n, k), alpha, a, b, beta != T::zero(), c, ldc);
    }
}

/// C = β·C.
fn scale<T: Float>(c: &mut [T], m: usize, n: usize, ldc: usize, beta: T) {
    for row in c.chunks_mut(ldc).take(m) {
        if beta == T::zero() {
            row[..n].fill(T::zero());
        } else {
            row[..n].iter_mut().for_each(|v| *v *= beta);
        }
    }
}

#[derive(Clone, Copy)]
struct Operand<'a, T> {
    data: &'a [T],
    strides: Strides,
}

impl<'a, T> Operand<'a, T> {
    /// The elements from (i, p) on.
    fn from(&self, i: usize, p: usize) -> &'a [T] {
        &self.data[i * self.strides.across + p * self.strides.along..]
    }
}

/// `extent` split into the fewest equal parts of at most `most`; the part's length.
pub(crate) fn even_block(extent: usize, most: usize) -> usize {
    extent.div_ceil(extent.div_ceil(most).max(1))
}

#[allow(clippy::too_many_arguments)]
fn blocked<T: Float>(
    micro: &Micro<T>,
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    accumulate: bool,
    c: &mut [T],
    ldc: usize,
) {
    let parallel = m * n * k >= PARALLEL_FROM;
    let kc = even_block(k, KC);
    let nc = even_block(n, NC).next_multiple_of(micro.nr);
    let mc = even_block(m, MC);
    let mut packed_a = Scratch::<T>::new(mc * kc);
    let mut packed_b = Scratch::<T>::new(nc * kc);
    for j0 in (0..n).step_by(nc) {
        let cols = nc.min(n - j0);
        for p0 in (0..k).step_by(kc) {
            let depth = kc.min(k - p0);
            pack_columns(micro, b, j0, cols, p0, depth, parallel, &mut packed_b);
            for i0 in (0..m).step_by(mc) {
                let rows = mc.min(m - i0);
                let panels = Panels::new(rows, micro.mr);
                pack_rows(micro, a, i0, panels, p0, depth, parallel, &mut packed_a);
                let block = Block {
                    micro,
                    depth,
                    alpha,
                    accumulate: accumulate || p0 > 0,
                    a: &packed_a,
                    panels,
                    b: &packed_b,
                    cols,
                    ldc,
                };
                let c = Shared::new(&mut c[i0 * ldc + j0..]);
                let (down, across) = (panels.count.div_ceil(TASK_PANELS), cols.div_ceil(TASK_COLS));
                tasks(down * across, parallel, |t| {
                    let (j, i) = (t / down * TASK_COLS, t % down * TASK_PANELS);
                    block.run(i..(i + TASK_PANELS).min(panels.count), j..(j + TASK_COLS).min(cols), &c);
                });
            }
        }
    }
}

/// The product as Cᵀ = α·op(B)ᵀ·op(A)ᵀ: B, much the larger operand, is read where it lies, once; A is packed.
#[allow(clippy::too_many_arguments)]
fn few_rows<T: Float>(
    micro: &Micro<T>,
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    accumulate: bool,
    c: &mut [T],
    ldc: usize,
) {
    let (nr, wide) = (micro.nr, m.next_multiple_of(micro.nr));
    let mut packed = Scratch::<T>::new(wide * k);
    for (q, panel) in packed.chunks_exact_mut(nr * k).enumerate() {
        pack_panel(micro, a.from(q * nr, 0), a.strides, (nr.min(m - q * nr), k), panel, nr);
    }
    let (packed, c) = (&packed, Shared::new(c));
    let columns = TASK_PANELS * micro.mr;
    tasks(n.div_ceil(columns), m * n * k >= PARALLEL_FROM, |t| {
        let first = t * columns;
        let count = columns.min(n - first);
        let panels = Panels::new(count, micro.mr);
        let mut out = Scratch::<T>::new(count * wide);
        let out = Shared::new(&mut out);
        let kc = even_block(k, KC);
        for p in (0..k).step_by(kc) {
            let depth = kc.min(k - p);
            for i in 0..panels.count {
                let (start, height) = (panels.start(i), panels.height(i));
                let rows = b.from(first + start, p);
                assert!((height - 1) * b.strides.across + (depth - 1) * b.strides.along < rows.len());
                for j in (0..m).step_by(nr) {
                    let width = nr.min(m - j);
                    let args = TileArgs {
                        k: depth,
                        a: rows.as_ptr(),
                        a_row: b.strides.across,
                        a_step: b.strides.along,
                        b: packed[j * k + p * nr..(j + nr) * k].as_ptr(),
                        ldb: nr,
                        c: out.at(start * wide + j, (height - 1) * wide + width),
                        ldc: wide,
                        alpha,
                        accumulate: p > 0,
                    };
                    // SAFETY: the operands hold `depth` steps, and the tile of `out` was checked.
                    unsafe { (micro.run)(height, width, &args) }
                }
            }
        }
        for i in 0..m {
            // SAFETY: these columns of C belong to one task.
            let row = unsafe { c.part(i * ldc + first..i * ldc + first + count) };
            // SAFETY: nothing writes `out` any more.
            let column = unsafe { out.part(i..(count - 1) * wide + i + 1) }.iter().step_by(wide);
            match accumulate {
                true => row.iter_mut().zip(column).for_each(|(c, &v)| *c += v),
                false => row.iter_mut().zip(column).for_each(|(c, &v)| *c = v),
            }
        }
    });
}

/// Packs columns `j0..j0 + cols` of B over inner indices `p0..p0 + depth`.
#[allow(clippy::too_many_arguments)]
fn pack_columns<T: Float>(
    micro: &Micro<T>,
    b: Operand<'_, T>,
    j0: usize,
    cols: usize,
    p0: usize,
    depth: usize,
    parallel: bool,
    dst: &mut [T],
) {
    let nr = micro.nr;
    let shared = Shared::new(dst);
    tasks(cols.div_ceil(TASK_COLS), parallel, |t| {
        let (from, to) = (t * TASK_COLS, ((t + 1) * TASK_COLS).min(cols));
        // SAFETY: tasks own whole panels, TASK_COLS being a multiple of every kernel's nr.
        let part = unsafe { shared.part(from * depth..to.next_multiple_of(nr) * depth) };
        if b.strides.across == 1 {
            return pack_wide(b.from(j0 + from, p0), b.strides.along, (to - from, depth), part, nr);
        }
        for (q, panel) in part.chunks_mut(nr * depth).enumerate() {
            let j = from + q * nr;
            pack_panel(micro, b.from(j0 + j, p0), b.strides, (nr.min(to - j), depth), panel, nr);
        }
    });
}

/// Packs rows from `i0` on of A, as dealt into panels, over inner indices `p0..p0 + depth`.
#[allow(clippy::too_many_arguments)]
fn pack_rows<T: Float>(
    micro: &Micro<T>,
    a: Operand<'_, T>,
    i0: usize,
    panels: Panels,
    p0: usize,
    depth: usize,
    parallel: bool,
    dst: &mut [T],
) {
    let shared = Shared::new(dst);
    tasks(panels.count.div_ceil(TASK_PANELS), parallel, |t| {
        for i in t * TASK_PANELS..((t + 1) * TASK_PANELS).min(panels.count) {
            let (start, height) = (panels.start(i), panels.height(i));
            // SAFETY: a panel belongs to one task.
            let panel = unsafe { shared.part(start * depth..(start + height) * depth) };
            pack_panel(micro, a.from(i0 + start, p0), a.strides, (height, depth), panel, height);
        }
    });
}

/// Packed operands of one pass.
struct Block<'a, T> {
    micro: &'a Micro<T>,
    depth: usize,
    alpha: T,
    accumulate: bool,
    a: &'a [T],
    panels: Panels,
    b: &'a [T],
    cols: usize,
    ldc: usize,
}

impl<T: Float> Block<'_, T> {
    /// Multiplies the panels `rows` by the columns `cols` into C.
    fn run(&self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>, c: &Shared<'_, T>) {
        let nr = self.micro.nr;
        debug_assert!(cols.start.is_multiple_of(nr) && cols.end <= self.cols);
        for i in rows {
            let (start, height) = (self.panels.start(i), self.panels.height(i));
            let a = &self.a[start * self.depth..(start + height) * self.depth];
            for j in cols.clone().step_by(nr) {
                let width = nr.min(cols.end - j);
                let b = &self.b[j * self.depth..(j + nr) * self.depth];
                let args = TileArgs {
                    k: self.depth,
                    a: a.as_ptr(),
                    a_row: 1,
                    a_step: height,
                    b: b.as_ptr(),
                    ldb: nr,
                    c: c.at(start * self.ldc + j, (height - 1) * self.ldc + width),
                    ldc: self.ldc,
                    alpha: self.alpha,
                    accumulate: self.accumulate,
                };
                // SAFETY: the panels hold `depth` steps, the tile of C was checked and belongs to this task alone, and
                // the kernel's instructions are available.
                unsafe { (self.micro.run)(height, width, &args) }
            }
        }
    }
}

#[cfg(test)]
mod tests;
