//! The matrix multiplication C ← α·A·B + β·C over row-major slices.
//!
//! Blocked as in Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): a block of B's
//! inner extent is packed for the second-level cache, panels of A pass over it, and a micro-kernel keeps a tile of C in
//! registers. Threads share the packed blocks and take fixed rectangles of C; the inner extent is never split among
//! them, so the sums are the same whatever their number.

use std::ops::Range;

use crate::kernel::{Kernel, Micro, TileArgs, micro};
use crate::pack::{Panels, pack_panel, pack_wide};
use crate::parallel::{Shared, tasks};
use crate::scratch::Scratch;
use crate::{Float, MatMut, MatRef};

/// Longest inner extent of one pass.
pub(crate) const KC: usize = 320;
/// Most columns packed at once.
const NC: usize = 4096;
/// Most rows packed at once.
const MC: usize = 4096;
/// Columns of one task.
const TASK_COLS: usize = 512;
/// The same of a product with a packed factor, which has few rows.
const PACKED_COLS: usize = 64;
/// Panels of rows of one task.
const TASK_PANELS: usize = 8;
/// Multiply-adds below which threads cost more than they bring.
const PARALLEL_FROM: usize = 1 << 20;

/// Most rows of a product whose B is not worth packing: each of its elements is used no more often than there are rows.
const FEW_ROWS: usize = 96;
/// Fewest columns of such a product.
const FEW_ROWS_FROM: usize = 64;

/// C ← α·A·B + β·C on the host; on a device it is [`lgm_core::Gemm`].
///
/// The semantics are those of BLAS `gemm`: with β = 0, C is overwritten unread. The result does not depend on the number
/// of threads.
#[derive(Debug)]
pub struct Gemm<'a, T> {
    /// Factor on the product.
    pub alpha: T,
    /// A, m × k.
    pub a: MatRef<'a, T>,
    /// B, k × n.
    pub b: MatRef<'a, T>,
    /// Factor on what C holds; with 0 it is not read.
    pub beta: T,
    /// C, m × n.
    pub c: MatMut<'a, T>,
}

impl<T: Float> Gemm<'_, T> {
    /// Multiplies.
    ///
    /// # Panics
    /// When the extents do not agree.
    pub fn run(self) {
        self.run_on(Kernel::active());
    }

    /// Multiplies on a named kernel.
    ///
    /// # Panics
    /// When the processor lacks the kernel's instructions, or the extents do not agree.
    pub fn run_on(self, kernel: Kernel) {
        let Gemm { alpha, a, b, beta, mut c } = self;
        assert!(kernel.is_available(), "this processor cannot run the {kernel:?} kernel");
        let (m, n, k) = (c.rows(), c.columns(), a.columns());
        assert!(
            a.rows() == m && b.columns() == n && b.rows() == k,
            "a {}x{k} and a {}x{} matrix do not multiply to one of {m}x{n}",
            a.rows(),
            b.rows(),
            b.columns()
        );
        if m == 0 || n == 0 {
            return;
        }
        let empty = k == 0 || alpha == T::zero();
        if beta == T::zero() && empty {
            c.each_row().for_each(|row| row.fill(T::zero()));
        } else if beta != T::zero() && beta != T::one() {
            c.each_row().flatten().for_each(|v| *v *= beta);
        }
        if empty {
            return;
        }
        let product = Product {
            micro: micro(kernel),
            alpha,
            a,
            b: b.t(),
            accumulate: beta != T::zero(),
            parallel: m * n * k >= PARALLEL_FROM,
        };
        if m <= FEW_ROWS && n >= FEW_ROWS_FROM && n >= 2 * m { product.few_rows(c) } else { product.blocked(c) }
    }
}

/// `extent` split into the fewest equal parts of at most `most`; the part's length.
pub(crate) fn even_block(extent: usize, most: usize) -> usize {
    extent.div_ceil(extent.div_ceil(most).max(1))
}

/// A product that is not empty, C scaled by β already.
struct Product<'a, T> {
    micro: &'a Micro<T>,
    alpha: T,
    a: MatRef<'a, T>,
    /// B transposed: the inner extent runs along the rows of both operands.
    b: MatRef<'a, T>,
    accumulate: bool,
    parallel: bool,
}

impl<T: Float> Product<'_, T> {
    fn blocked(&self, mut c: MatMut<'_, T>) {
        let (micro, ldc) = (self.micro, c.stride());
        let (m, n, k) = (c.rows(), c.columns(), self.a.columns());
        let kc = even_block(k, KC);
        let nc = even_block(n, NC).next_multiple_of(micro.nr);
        let mc = even_block(m, MC);
        let mut packed_a = Scratch::<T>::new(mc * kc);
        let mut packed_b = Scratch::<T>::new(nc * kc);
        for j0 in (0..n).step_by(nc) {
            let cols = nc.min(n - j0);
            for p0 in (0..k).step_by(kc) {
                let inner = p0..(p0 + kc).min(k);
                pack_columns(micro, self.b, (j0..j0 + cols, inner.clone()), self.parallel, &mut packed_b);
                for i0 in (0..m).step_by(mc) {
                    let panels = Panels::new(mc.min(m - i0), micro.mr);
                    let dealt = (panels, TASK_PANELS);
                    pack_rows(micro, (self.a, i0), dealt, inner.clone(), self.parallel, &mut packed_a);
                    let block = Block {
                        micro,
                        depth: inner.len(),
                        alpha: self.alpha,
                        accumulate: self.accumulate || p0 > 0,
                        a: &packed_a,
                        panels,
                        b: &packed_b,
                        cols,
                        ldc,
                    };
                    let c = Shared::new(&mut c.data()[i0 * ldc + j0..]);
                    let (down, across) = (panels.count.div_ceil(TASK_PANELS), cols.div_ceil(TASK_COLS));
                    tasks(down * across, self.parallel, |t| {
                        let (j, i) = (t / down * TASK_COLS, t % down * TASK_PANELS);
                        block.run(i..(i + TASK_PANELS).min(panels.count), j..(j + TASK_COLS).min(cols), &c);
                    });
                }
            }
        }
    }

    /// The product as Cᵀ = α·Bᵀ·Aᵀ: B, much the larger operand, is read where it is stored, once; A is packed.
    fn few_rows(&self, mut c: MatMut<'_, T>) {
        let (micro, b, ldc) = (self.micro, self.b, c.stride());
        let (m, n, k) = (c.rows(), c.columns(), self.a.columns());
        let (nr, wide) = (micro.nr, m.next_multiple_of(micro.nr));
        let mut packed = Scratch::<T>::new(wide * k);
        for (q, panel) in packed.chunks_exact_mut(nr * k).enumerate() {
            pack_panel(micro, self.a.from(q * nr, 0), self.a.strides(), (nr.min(m - q * nr), k), panel, nr);
        }
        let (packed, c) = (&packed, Shared::new(c.data()));
        let columns = TASK_PANELS * micro.mr;
        tasks(n.div_ceil(columns), self.parallel, |t| {
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
                    assert!((height - 1) * b.row_stride() + (depth - 1) * b.column_stride() < rows.len());
                    for j in (0..m).step_by(nr) {
                        let width = nr.min(m - j);
                        let args = TileArgs {
                            k: depth,
                            a: rows.as_ptr(),
                            a_row: b.row_stride(),
                            a_step: b.column_stride(),
                            b: packed[j * k + p * nr..(j + nr) * k].as_ptr(),
                            ldb: nr,
                            c: out.at(start * wide + j, (height - 1) * wide + width),
                            ldc: wide,
                            alpha: self.alpha,
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
                match self.accumulate {
                    true => row.iter_mut().zip(column).for_each(|(c, &v)| *c += v),
                    false => row.iter_mut().zip(column).for_each(|(c, &v)| *c = v),
                }
            }
        });
    }
}

/// Packs some columns of B, which is given transposed, over some inner indices.
fn pack_columns<T: Float>(
    micro: &Micro<T>,
    b: MatRef<'_, T>,
    (columns, inner): (Range<usize>, Range<usize>),
    parallel: bool,
    dst: &mut [T],
) {
    let (nr, depth, cols) = (micro.nr, inner.len(), columns.len());
    let shared = Shared::new(dst);
    tasks(cols.div_ceil(TASK_COLS), parallel, |t| {
        let (from, to) = (t * TASK_COLS, ((t + 1) * TASK_COLS).min(cols));
        // SAFETY: tasks own whole panels, TASK_COLS being a multiple of every kernel's nr.
        let part = unsafe { shared.part(from * depth..to.next_multiple_of(nr) * depth) };
        if b.row_stride() == 1 {
            let src = b.from(columns.start + from, inner.start);
            return pack_wide(src, b.column_stride(), (to - from, depth), part, nr);
        }
        for (q, panel) in part.chunks_mut(nr * depth).enumerate() {
            let j = from + q * nr;
            let src = b.from(columns.start + j, inner.start);
            pack_panel(micro, src, b.strides(), (nr.min(to - j), depth), panel, nr);
        }
    });
}

/// Packs rows from `first` on of A, as dealt into panels, over some inner indices; a task takes some panels.
fn pack_rows<T: Float>(
    micro: &Micro<T>,
    (a, first): (MatRef<'_, T>, usize),
    (panels, at_once): (Panels, usize),
    inner: Range<usize>,
    parallel: bool,
    dst: &mut [T],
) {
    let depth = inner.len();
    let shared = Shared::new(dst);
    tasks(panels.count.div_ceil(at_once), parallel, |t| {
        for i in t * at_once..((t + 1) * at_once).min(panels.count) {
            let (start, height) = (panels.start(i), panels.height(i));
            // SAFETY: a panel belongs to one task.
            let panel = unsafe { shared.part(start * depth..(start + height) * depth) };
            let src = a.from(first + start, inner.start);
            pack_panel(micro, src, a.strides(), (height, depth), panel, height);
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
    fn run(&self, rows: Range<usize>, cols: Range<usize>, c: &Shared<'_, T>) {
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

/// B of many products C ← A·B or C ← C + A·B, packed once for all of them.
pub struct PackedFactor<T: 'static> {
    micro: &'static Micro<T>,
    /// Blocks of the inner extent, in each the panels of columns.
    data: Scratch<T>,
    rows: usize,
    columns: usize,
    block: usize,
}

impl<T: Float> PackedFactor<T> {
    /// Packs B.
    pub fn new(b: MatRef<'_, T>) -> Self {
        let (micro, rows, columns) = (micro::<T>(Kernel::active()), b.rows(), b.columns());
        let (block, wide) = (even_block(rows, KC).max(1), columns.next_multiple_of(micro.nr));
        let mut data = Scratch::new(rows * wide);
        for from in (0..rows).step_by(block) {
            let inner = from..(from + block).min(rows);
            let parallel = rows * columns >= PARALLEL_FROM / 16;
            pack_columns(micro, b.t(), (0..columns, inner), parallel, &mut data[from * wide..]);
        }
        PackedFactor { micro, data, rows, columns, block }
    }

    /// C ← A·B, or C ← C + A·B where it is to be added.
    ///
    /// # Panics
    /// When the extents do not agree.
    pub fn multiply(&self, a: MatRef<'_, T>, add: bool, mut c: MatMut<'_, T>) {
        let PackedFactor { micro, ref data, rows: k, columns: n, block } = *self;
        let (m, ldc, wide) = (c.rows(), c.stride(), n.next_multiple_of(micro.nr));
        let agree = a.rows() == m && a.columns() == k && c.columns() == n;
        assert!(
            agree,
            "a {}x{} and a {k}x{n} matrix do not multiply to one of {m}x{}",
            a.rows(),
            a.columns(),
            c.columns()
        );
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 && !add {
            c.each_row().for_each(|row| row.fill(T::zero()));
        }
        let parallel = m * n * k >= PARALLEL_FROM;
        let panels = Panels::new(m, micro.mr);
        let inner = || (0..k).step_by(block).map(|from| from..(from + block).min(k));
        let mut packed = Scratch::<T>::new(m * k);
        inner().for_each(|inner| {
            let at = inner.start * m;
            pack_rows(micro, (a, 0), (panels, 1), inner, parallel, &mut packed[at..]);
        });
        let (packed, c) = (&packed, Shared::new(c.data()));
        let (down, across) = (panels.count.div_ceil(TASK_PANELS), n.div_ceil(PACKED_COLS));
        tasks(down * across, parallel, |t| {
            let (j, i) = (t / down * PACKED_COLS, t % down * TASK_PANELS);
            for inner in inner() {
                let (from, depth) = (inner.start, inner.len());
                let block = Block {
                    micro,
                    depth,
                    alpha: T::one(),
                    accumulate: add || from > 0,
                    a: &packed[from * m..][..m * depth],
                    panels,
                    b: &data[from * wide..][..wide * depth],
                    cols: n,
                    ldc,
                };
                block.run(i..(i + TASK_PANELS).min(panels.count), j..(j + PACKED_COLS).min(n), &c);
            }
        });
    }
}

#[cfg(test)]
mod tests;
