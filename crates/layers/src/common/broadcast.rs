//! A blob that is repeated along the axes that another has besides.

use lgm_core::{Axes3, Error, Float, Format, Formats, Offer, Result, Shape, ensure};
use lgm_cpu::{batchnorm, elementwise, for_each_row};

use super::by_channel::ByChannel;

/// The shape of a learned blob that spans `num_axes` axes of `bottom` from `axis` on.
pub(crate) fn learned_shape(bottom: &Shape, axis: i32, num_axes: i32) -> Result<Shape> {
    let start = bottom.axis(axis)?;
    ensure!(num_axes >= -1, "num_axes is {num_axes}; it must be at least 0, or -1 for all axes from axis on");
    let end = if num_axes == -1 { bottom.len() } else { start + num_axes as usize };
    ensure!(
        end <= bottom.len(),
        "axis {axis} + num_axes {num_axes} goes past the {}-axis bottom {bottom}",
        bottom.len()
    );
    Ok(Shape::from(&bottom[start..end]))
}

/// How a blob with some of another's axes is repeated along the rest: its elements are the
/// channels of `axes`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Broadcast {
    axes: Axes3,
}

impl Broadcast {
    /// A blob of shape `by`, called `what`, along the axes of `bottom` from `axis` on.
    pub fn new(bottom: &Shape, axis: i32, by: &Shape, what: &str) -> Result<Broadcast> {
        let start = if by.is_empty() { 0 } else { bottom.axis(axis)? };
        let end = start + by.len();
        if end > bottom.len() || bottom[start..end] != by[..] {
            let what = format!("{what} must have the extents of bottom 0, {bottom}, from axis {axis} on");
            let expected = Shape::from(&bottom[start..end.min(bottom.len())]);
            return Err(Error::Shape { what, expected, found: by.clone() });
        }
        Ok(Broadcast { axes: Axes3::around(bottom, start..end) })
    }

    /// Elements of the repeated blob.
    pub fn count(&self) -> usize {
        self.axes.channels
    }

    /// y = x + b; on `y` itself when `x` is absent.
    pub fn add<T: Float>(&self, x: Option<&[T]>, b: &[T], y: &mut [T]) {
        self.rows(x, y, |d, row| {
            if self.axes.inner == 1 {
                row.iter_mut().zip(b).for_each(|(y, &b)| *y += b);
            } else {
                row.iter_mut().for_each(|y| *y += b[d]);
            }
        });
    }

    /// y = x · s, and + b if there is one; on `y` itself when `x` is absent.
    pub fn scale_shift<T: Float>(&self, x: Option<&[T]>, s: &[T], b: Option<&[T]>, y: &mut [T]) {
        if self.axes.inner > 1 {
            return batchnorm::scale_shift(x, self.axes, s, b, y);
        }
        self.rows(x, y, |_, row| {
            row.iter_mut().zip(s).for_each(|(y, &s)| *y *= s);
            if let Some(b) = b {
                row.iter_mut().zip(b).for_each(|(y, &b)| *y += b);
            }
        });
    }

    /// Calls `row` with runs of `y`, copied from `x` if there is one: the elements that meet element d of the repeated
    /// blob or, when nothing stands after it, all of it.
    fn rows<T: Float>(&self, x: Option<&[T]>, y: &mut [T], row: impl Fn(usize, &mut [T]) + Sync) {
        let len = if self.axes.inner == 1 { self.axes.channels } else { self.axes.inner };
        for_each_row(y, len, |r, y| {
            if let Some(x) = x {
                y.copy_from_slice(&x[r * len..][..y.len()]);
            }
            row(r % self.axes.channels, y);
        });
    }

    /// Adds to `out` the sums of dy · x (of dy, without x) over the elements that each of the repeated blob meets.
    pub fn add_sums<T: Float>(&self, dy: &[T], x: Option<&[T]>, out: &mut [T]) {
        match x {
            _ if self.axes.inner == 1 => {
                elementwise::sum_rows(&dy[..self.axes.count()], x, &mut out[..self.axes.channels])
            }
            Some(x) => elementwise::dot_per_channel(dy, x, self.axes, out),
            None => elementwise::sum_per_channel(dy, self.axes, out),
        }
    }
}

impl Broadcast {
    /// How kernels go over the blob.
    pub fn by_channel(&self, format: Format) -> ByChannel {
        ByChannel::new(self.axes, format)
    }

    /// The blob as it comes, what is repeated along it in single precision. Channels may be last where it is they that
    /// the repeated blob has.
    pub fn formats(&self, offer: &Offer<'_>) -> Formats {
        let shape = &offer.bottoms[0].shape;
        let by_channel = shape.len() > 1 && (self.axes.outer, self.axes.channels) == (shape[0], shape[1]);
        let format = offer.arriving.first().copied().unwrap_or_default();
        let format = if by_channel { format } else { format.channels_first() };
        Formats { bottoms: [format].into_iter().collect(), tops: [format].into_iter().collect() }
    }
}
