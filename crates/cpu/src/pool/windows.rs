//! Windows of several planes side by side, a plane for each lane.

use std::ops::Range;

use super::PoolGeometry;
use crate::Float;
use crate::kernel::{Kernel, micro};
use crate::scratch::Scratch;

/// Planes whose windows are computed together.
pub(super) const LANES: usize = 16;
/// Positions of them held at a time, about: what stays in the nearest caches.
const POSITIONS: usize = 512;

/// What comes of a window; a trait, for closures are not always inlined where the instructions are.
pub(super) trait OfWindow<const N: usize> {
    /// Of the window's rows and columns in [`LANES`] planes, whose rows from `top` on the region holds side by side.
    fn take<T: Float>(
        g: &PoolGeometry,
        region: &[[T; LANES]],
        top: usize,
        window: [usize; 2],
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> [[T; LANES]; N];
}

/// Puts what comes of each window of [`LANES`] planes at most where it belongs in `outs`.
#[inline(always)]
pub(super) fn for_windows<T: Float, W: OfWindow<N>, const N: usize>(
    g: &PoolGeometry,
    x: &[T],
    mut outs: [&mut [T]; N],
) {
    let ([down, across], transpose) = (g.windows, micro::<T>(Kernel::active()).transpose);
    let (height, width, oh, ow) = (down.input, across.input, down.output, across.output);
    let (area, out) = (height * width, oh * ow);
    let planes = outs[0].len() / out;
    // Rows of windows at a time.
    let band = ((POSITIONS / width.max(1)).saturating_sub(down.kernel) / down.stride + 1).min(oh);
    let mut region = Scratch::<T>::new(((band - 1) * down.stride + down.kernel).min(height) * width * LANES);
    let mut found = [(); N].map(|()| Scratch::<T>::new(band * ow * LANES));
    for first in (0..oh).step_by(band) {
        let last = (first + band).min(oh) - 1;
        let (top, bottom) = (down.covered(first).start, down.covered(last).end);
        let positions = bottom.saturating_sub(top) * width;
        if positions > 0 {
            let x = &x[top * width..][..(planes - 1) * area + positions];
            assert!(positions * LANES <= region.len());
            // SAFETY: x was cut to what is read, the region holds what is written, and the kernel is available.
            unsafe { transpose(planes, positions, x.as_ptr(), area, region.as_mut_ptr(), LANES) }
        }
        let region = region.as_chunks().0;
        let vectors = found.each_mut().map(|f| f.as_chunks_mut::<LANES>().0);
        for (n, i) in (first..=last).enumerate() {
            let rows = down.covered(i);
            for j in 0..ow {
                let values = W::take(g, region, top, [i, j], rows.clone(), across.covered(j));
                for k in 0..N {
                    vectors[k][n * ow + j] = values[k];
                }
            }
        }
        let len = (last + 1 - first) * ow;
        for (to, from) in outs.iter_mut().zip(&found) {
            let to = &mut to[first * ow..][..(planes - 1) * out + len];
            // SAFETY: `to` was cut to what is written, and `len` vectors were found.
            unsafe { transpose(len, planes, from.as_ptr(), LANES, to.as_mut_ptr(), out) }
        }
    }
}
