//! The products of transformed tiles and transformed kernels, one matrix multiplication for each frequency.

use std::ops::Range;

use super::kernels::Kernels;
use super::spaced;
use super::tile::{Frequencies, LANES};
use crate::Float;
use crate::kernel::{Micro, TileArgs};
use crate::pack::Panels;
use crate::parallel::Shared;
use crate::scratch::Scratch;

/// Longest inner extent of one pass of the products.
const DEPTH: usize = 512;

/// A block's products: `data[frequency·stride + tile·pitch + column]`.
pub(super) struct Products<T, const IN: usize> {
    data: Scratch<T>,
    tiles: usize,
    pub columns: Range<usize>,
    pub pitch: usize,
    stride: usize,
}

impl<T: Float, const IN: usize> Products<T, IN> {
    pub fn new(tiles: usize, columns: Range<usize>) -> Self {
        let pitch = spaced(columns.len());
        let stride = tiles * pitch + LANES;
        Products { data: Scratch::new(IN * IN * stride), tiles, columns, pitch, stride }
    }

    /// The frequencies of the tile and columns whose first element is at `first`.
    pub fn from(&self, first: usize) -> Frequencies<'_, T> {
        Frequencies { data: &self.data, first, stride: self.stride }
    }
}

/// products (+)= v·kernels, the kernels being those of inner indices from `from` on; v is laid out as [`Spread`](super::Spread) leaves it.
pub(super) fn multiply<T: Float, const IN: usize>(
    micro: &Micro<T>,
    kernels: &Kernels<T>,
    (v, v_stride, v_pitch): (&[T], usize, usize),
    products: &mut Products<T, IN>,
    from: usize,
) {
    let (nr, pitch) = (micro.nr, products.pitch);
    let panels = Panels::new(products.tiles, micro.mr);
    let m = Shared::new(&mut products.data);
    for f in 0..IN * IN {
        let v = &v[f * v_stride..][..v_stride];
        for p in (0..kernels.depth).step_by(DEPTH) {
            let depth = DEPTH.min(kernels.depth - p);
            for i in 0..panels.count {
                let (start, height) = (panels.start(i), panels.height(i));
                let a = &v[start * v_pitch + from + p..][..(height - 1) * v_pitch + depth];
                for j in (0..products.columns.len()).step_by(nr) {
                    let width = nr.min(products.columns.len() - j);
                    let b = &kernels.panel(f, j, p)[..(depth - 1) * nr + width];
                    let at = f * products.stride + start * pitch + j;
                    let args = TileArgs {
                        k: depth,
                        a: a.as_ptr(),
                        a_row: v_pitch,
                        a_step: 1,
                        b: b.as_ptr(),
                        ldb: nr,
                        c: m.at(at, (height - 1) * pitch + width),
                        ldc: pitch,
                        alpha: T::one(),
                        accumulate: from + p > 0,
                    };
                    // SAFETY: the operands hold `depth` steps and the tile of m was checked.
                    unsafe { (micro.run)(height, width, &args) }
                }
            }
        }
    }
}
