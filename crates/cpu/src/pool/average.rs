//! Average pooling and its gradient.

use std::ops::Range;

use smallvec::SmallVec;

use super::PoolGeometry;
use super::windows::{LANES, OfWindow, for_windows};
use crate::kernel::{Kernel, micro, vectorized};
use crate::scratch::Scratch;
use crate::{Float, for_each_part, for_each_row};

impl PoolGeometry {
    /// y = the mean of each window.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn average_forward<T: Float>(&self, x: &[T], y: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(x.len() / area.max(1), y.len() / out.max(1));
        for_each_part(y, LANES * out, |group, y| {
            average_planes(self, &x[group * LANES * area..][..y.len() / out * area], y);
        });
    }

    /// dx from dy, overwriting dx.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn average_backward<T: Float>(&self, dy: &[T], dx: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(dx.len() / area.max(1), dy.len() / out.max(1));
        if out == 1 && self.windows.iter().all(|w| w.covered(0) == (0..w.input)) {
            let all = self.padded_area::<T>([0, 0]);
            return for_each_row(dx, area, |plane, dx| dx.fill(dy[plane] / all));
        }
        for_each_part(dx, LANES * area, |group, dx| {
            spread_planes(self, &dy[group * LANES * out..][..dx.len() / area * out], dx);
        });
    }
}

/// The mean of each window.
struct Mean;

impl OfWindow<1> for Mean {
    #[inline(always)]
    fn take<T: Float>(
        g: &PoolGeometry,
        region: &[[T; LANES]],
        top: usize,
        window: [usize; 2],
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> [[T; LANES]; 1] {
        let mut sum = [T::zero(); LANES];
        for row in rows {
            for v in &region[(row - top) * g.windows[1].input..][columns.clone()] {
                for l in 0..LANES {
                    sum[l] += v[l];
                }
            }
        }
        let area = g.padded_area::<T>(window);
        sum.iter_mut().for_each(|s| *s /= area);
        [sum]
    }
}

vectorized! {
    /// Average pooling of [`LANES`] planes at most.
    fn average_planes[T: Float](g: &PoolGeometry, x: &[T], y: &mut [T]) {
        for_windows::<T, Mean, 1>(g, x, [y]);
    }
}

vectorized! {
    /// The gradient of [`LANES`] planes at most from that of their means.
    fn spread_planes[T: Float](g: &PoolGeometry, dy: &[T], dx: &mut [T]) {
        let ([down, across], transpose) = (g.windows, micro::<T>(Kernel::active()).transpose);
        let (width, ow) = (across.input, across.output);
        let (area, out) = (g.input_area(), g.output_area());
        let planes = dx.len() / area;
        let (mut shares, mut region) = (Scratch::<T>::new(out * LANES), Scratch::<T>::new(area * LANES));
        assert!(dy.len() == planes * out && dx.len() == planes * area);
        // SAFETY: every plane has `out` windows, and there are as many vectors; the kernel is available.
        unsafe { transpose(planes, out, dy.as_ptr(), out, shares.as_mut_ptr(), LANES) }
        let shares = shares.as_chunks_mut::<LANES>().0;
        for (o, share) in shares.iter_mut().enumerate() {
            let area = g.padded_area::<T>([o / ow, o % ow]);
            share.iter_mut().for_each(|s| *s /= area);
        }
        let positions = region.as_chunks_mut::<LANES>().0;
        let columns_over: SmallVec<[_; 64]> = (0..width).map(|column| across.covering(column)).collect();
        for row in 0..down.input {
            let rows = down.covering(row);
            for (column, columns) in columns_over.iter().enumerate() {
                let mut sum = [T::zero(); LANES];
                for row in rows.clone() {
                    for share in &shares[row * ow..][columns.clone()] {
                        for l in 0..LANES {
                            sum[l] += share[l];
                        }
                    }
                }
                positions[row * width + column] = sum;
            }
        }
        // SAFETY: every plane has `area` positions, and there are as many vectors.
        unsafe { transpose(area, planes, region.as_ptr(), LANES, dx.as_mut_ptr(), area) }
    }
}
