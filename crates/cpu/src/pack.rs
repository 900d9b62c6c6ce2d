//! Packing: operands copied into the panels that the micro-kernels read front to back.
//!
//! Rows of A are dealt into panels of nearly equal height, at most `mr`; a panel of height h holds k groups of h
//! elements, so the panel that starts at row r begins at element r·k of the block. Columns of B go into panels of `nr`,
//! each k rows of `nr` elements; the last panel's unused columns are left as they are, and the kernels mask them away.

use crate::Float;
use crate::kernel::Micro;

/// Rows dealt into panels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels {
    /// Number of panels.
    pub count: usize,
    low: usize,
    taller: usize,
}

impl Panels {
    /// Deals `rows` into the fewest panels of at most `mr`.
    pub fn new(rows: usize, mr: usize) -> Self {
        let count = rows.div_ceil(mr).max(1);
        Panels { count, low: rows / count, taller: rows % count }
    }

    /// First row of panel `i` (or one past the last row, for `i == count`).
    #[inline]
    pub fn start(&self, i: usize) -> usize {
        i * self.low + i.min(self.taller)
    }

    /// Height of panel `i`.
    #[inline]
    pub fn height(&self, i: usize) -> usize {
        self.low + usize::from(i < self.taller)
    }
}

/// Where an operand's elements are: element (i, p) — i across the panel, p along the inner extent — is at
/// `i * across + p * along`. One of the two strides is 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strides {
    pub across: usize,
    pub along: usize,
}

/// Copies a `width` × `k` operand to `dst[p * ld + i]`.
pub(crate) fn pack_panel<T: Float>(
    micro: &Micro<T>,
    src: &[T],
    strides: Strides,
    (width, k): (usize, usize),
    dst: &mut [T],
    ld: usize,
) {
    if width == 0 || k == 0 {
        return;
    }
    assert!((width - 1) * strides.across + (k - 1) * strides.along < src.len());
    assert!((k - 1) * ld + width <= dst.len());
    if strides.across == 1 {
        for p in 0..k {
            let row = &src[p * strides.along..][..width];
            dst[p * ld..][..width].copy_from_slice(row);
        }
    } else {
        assert!(strides.along == 1);
        // SAFETY: both spans were checked above; the micro-kernel table is that of an available instruction set.
        unsafe { (micro.transpose)(width, k, src.as_ptr(), strides.across, dst.as_mut_ptr(), ld) }
    }
}

/// Packs `cols` columns of a B that is contiguous across them into panels of `nr`, row by row, so that the source is
/// read front to back.
pub(crate) fn pack_wide<T: Float>(src: &[T], ld_src: usize, (cols, k): (usize, usize), dst: &mut [T], nr: usize) {
    for p in 0..k {
        let row = &src[p * ld_src..][..cols];
        copy_to_panels(row, &mut dst[p * nr..], nr, nr * k);
    }
}

/// Deals a row into pieces of `nr`, `step` apart in `dst`.
#[inline]
pub(crate) fn copy_to_panels<T: Float>(row: &[T], dst: &mut [T], nr: usize, step: usize) {
    let pieces = row.chunks_exact(nr);
    let tail = pieces.remainder();
    let mut at = 0;
    for piece in pieces {
        match nr {
            32 => dst[at..][..32].copy_from_slice(&piece[..32]),
            16 => dst[at..][..16].copy_from_slice(&piece[..16]),
            8 => dst[at..][..8].copy_from_slice(&piece[..8]),
            _ => dst[at..][..nr].copy_from_slice(piece),
        }
        at += step;
    }
    if !tail.is_empty() {
        dst[at..][..tail.len()].copy_from_slice(tail);
    }
}
