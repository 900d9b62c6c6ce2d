//! Runs of elements that come several times in a row, and the sums of as many.

use lgm_core::{Axes3, DeviceCall, DevicePtr, Float, Grid, Result, args, kernel};

use super::launch::extent;
use super::loops::for_rows;

/// The longer blob is `axes`: `outer` runs of `inner` elements, each `channels` times.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Repeat {
    axes: Axes3,
}

impl Repeat {
    /// See the type.
    pub fn new(axes: Axes3) -> Repeat {
        Repeat { axes }
    }

    /// long = coeff · each run of short, as often as it comes.
    pub fn expand<T: Float>(&self, long: &mut [T], short: &[T], coeff: f64) {
        let (c, Axes3 { channels: times, inner, .. }) = (T::of(coeff), self.axes);
        for_rows(long, inner, inner, |row, long| {
            let pairs = long.iter_mut().zip(&short[row / times * inner..]);
            pairs.for_each(|(y, &x)| *y = c * x);
        });
    }

    /// short = coeff · the sum of each run of long over the times that it comes.
    pub fn fold<T: Float>(&self, short: &mut [T], long: &[T], coeff: f64) {
        let (c, Axes3 { channels: times, inner, .. }) = (T::of(coeff), self.axes);
        for_rows(short, inner, times * inner, |row, short| {
            let mut runs = long[row * times * inner..].chunks(inner.max(1)).take(times);
            short.copy_from_slice(runs.next().unwrap_or_default());
            runs.for_each(|run| short.iter_mut().zip(run).for_each(|(y, &x)| *y += x));
            short.iter_mut().for_each(|y| *y *= c);
        });
    }

    /// [`Repeat::expand`] on a device.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn expand_on(&self, call: DeviceCall<'_>, long: DevicePtr, short: DevicePtr, coeff: f64) -> Result<()> {
        let (n, Axes3 { channels: times, inner, .. }) = (self.axes.count(), self.axes);
        let args = args![long, short, coeff as f32, extent(times)?, extent(inner)?, extent(n)?];
        call.launch(kernel!("arrange_expand"), Grid::elements(n), args)
    }

    /// [`Repeat::fold`] on a device.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn fold_on(&self, call: DeviceCall<'_>, short: DevicePtr, long: DevicePtr, coeff: f64) -> Result<()> {
        let Axes3 { outer, channels: times, inner } = self.axes;
        let n = outer * inner;
        let args = args![short, long, coeff as f32, extent(times)?, extent(inner)?, extent(n)?];
        call.launch(kernel!("arrange_fold"), Grid::elements(n), args)
    }
}
