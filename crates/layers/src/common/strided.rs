//! Elements of one blob that lie at fixed distances in another: what permutes axes, cuts out and repeats.

use lgm_core::{Arg, Axes3, DeviceCall, DevicePtr, Element, Float, Format, Grid, Layout, Result, count, kernel};

use super::convert::convert;
use super::launch::extent;
use super::loops::for_rows;

/// Rows that the host copies together, so that what lies side by side in either blob is used at once.
const ROWS: usize = 16;
/// Axes that the kernels know.
const AXES: usize = 6;

/// A blob of its own, element by element in another: element (i, j, …) lies at `from` + i·sᵢ + j·sⱼ + … there. A stride
/// below 0 turns an axis round, one of 0 repeats.
#[derive(Clone, Debug, Default)]
pub(crate) struct Strided {
    /// Extents and strides, outermost first; those that lie end to end are one.
    axes: Vec<(usize, isize)>,
    from: usize,
}

impl Strided {
    /// A blob of axes of so many elements that are so far apart in the other, outermost first.
    pub fn new(axes: impl IntoIterator<Item = (usize, usize)>, from: usize) -> Strided {
        Strided::signed(axes.into_iter().map(|(extent, stride)| (extent, stride as isize)), from)
    }

    /// The same by strides of any sign.
    pub fn signed(axes: impl IntoIterator<Item = (usize, isize)>, from: usize) -> Strided {
        let mut merged: Vec<(usize, isize)> = Vec::new();
        for (extent, stride) in axes {
            match merged.last_mut() {
                _ if extent == 1 => {}
                Some((outer, apart)) if *apart == extent as isize * stride => {
                    (*outer, *apart) = (*outer * extent, stride)
                }
                _ => merged.push((extent, stride)),
            }
        }
        if merged.is_empty() {
            merged.push((1, 1));
        }
        Strided { axes: merged, from }
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        count(&self.axes.iter().map(|&(extent, _)| extent).collect::<Vec<_>>())
    }

    /// Whether the kernels know as many axes.
    pub fn is_supported(&self) -> bool {
        self.axes.len() <= AXES
    }

    /// Where row `row` of the innermost axis begins in the other blob.
    fn place(&self, mut row: usize) -> usize {
        let mut at = self.from;
        for &(extent, stride) in self.axes.iter().rev().skip(1) {
            at = at.wrapping_add_signed((row % extent) as isize * stride);
            row /= extent;
        }
        at
    }

    /// Takes every element from where it lies in the other blob.
    pub fn gather<T: Float>(&self, own: &mut [T], other: &[T]) {
        let (len, stride) = self.axes[self.axes.len() - 1];
        for_rows(own, ROWS * len, ROWS * len, |block, rows| {
            let starts: [usize; ROWS] = std::array::from_fn(|r| self.place(block * ROWS + r));
            if stride == 1 {
                for (row, start) in rows.chunks_mut(len).zip(starts) {
                    row.copy_from_slice(&other[start..][..len]);
                }
                return;
            }
            for i in (0..len).step_by(ROWS) {
                for (row, start) in rows.chunks_mut(len).zip(starts) {
                    let run = row[i..].iter_mut().take(ROWS).enumerate();
                    run.for_each(|(k, y)| *y = other[start.wrapping_add_signed((i + k) as isize * stride)]);
                }
            }
        });
    }

    /// Matrices, their rows and columns, where the blob is the transposes of the matrices that the other is.
    fn transposed(&self) -> Option<Axes3> {
        let (matrices, rest) = match self.axes[..] {
            [(n, apart), a, b] if apart == (a.0 * b.0) as isize => (n, [a, b]),
            [a, b] => (1, [a, b]),
            _ => return None,
        };
        let [(columns, near), (rows, far)] = rest;
        (self.from == 0 && near == 1 && far == columns as isize).then(|| Axes3::new(matrices, rows, columns))
    }

    /// The same on a device.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn gather_on(&self, call: DeviceCall<'_>, own: DevicePtr, other: DevicePtr) -> Result<()> {
        let element = call.format().element;
        match self.transposed() {
            Some(axes) => {
                let format = |layout| Format { element, layout };
                let (own, other) = ((own, format(Layout::ChannelsLast)), (other, format(Layout::ChannelsFirst)));
                convert(call.queue, own, other, axes, false)
            }
            None => self.launch(call, kernel!(element, "arrange_gather"), own, other, element),
        }
    }

    /// Puts every element where it lies in the other blob, on a device. No two may lie in one place.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn scatter_on(&self, call: DeviceCall<'_>, own: DevicePtr, other: DevicePtr) -> Result<()> {
        let element = call.format().element;
        self.launch(call, kernel!(element, "arrange_scatter"), own, other, element)
    }

    fn launch(
        &self,
        call: DeviceCall<'_>,
        kernel: &'static str,
        own: DevicePtr,
        other: DevicePtr,
        element: Element,
    ) -> Result<()> {
        let n = self.count();
        let mut args: Vec<Arg> = vec![own.into(), other.elements(self.from, element).into(), extent(n)?.into()];
        let absent = std::iter::repeat_n(&(1, 0), AXES - self.axes.len());
        for &(extent, stride) in absent.chain(&self.axes) {
            args.extend([Arg::U32(extent as u32), Arg::I64(stride as i64)]);
        }
        call.launch(kernel, Grid::elements(n), &args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_to_end_are_one_and_transposes_are_seen() {
        let whole = Strided::new([(2, 12), (3, 4), (1, 9), (4, 1)], 0);
        assert_eq!(whole.axes[..], [(24, 1)]);
        // (2, 3, 4, 5) to (2, 4, 5, 3).
        let last = Strided::new([(2, 60), (4, 5), (5, 1), (3, 20)], 0);
        assert_eq!(last.axes[..], [(2, 60), (20, 1), (3, 20)]);
        assert_eq!(last.transposed(), Some(Axes3::new(2, 3, 20)));
        assert_eq!(Strided::new([(4, 1), (3, 4)], 0).transposed(), Some(Axes3::new(1, 3, 4)));
        assert_eq!(Strided::new([(4, 1), (3, 4)], 1).transposed(), None);
        assert_eq!(Strided::new([(4, 1), (3, 8)], 0).transposed(), None);
        assert_eq!(Strided::new([(1, 7), (1, 3)], 0).count(), 1);
        assert_eq!(Strided::new([(0, 7), (3, 7)], 0).count(), 0);
    }

    #[test]
    fn elements_are_taken_from_where_they_lie() {
        let from: Vec<f32> = (0..60).map(|v| v as f32).collect();
        let mut to = vec![f32::NAN; 40];
        // The transpose of 3 × 20 without its first row.
        Strided::new([(20, 1), (2, 20)], 20).gather(&mut to, &from);
        let want: Vec<f32> = (0..20).flat_map(|i| [20.0 + i as f32, 40.0 + i as f32]).collect();
        assert_eq!(to, want);
    }
}
