//! Cutting a window from an image: crop, take off the mean, mirror, scale, in one pass.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fmt;

/// An image of `channels` planes of `height` by `width`, channel-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

impl Extent {
    /// Number of pixels, all channels together; see [`lgm_core::count`].
    pub fn count(&self) -> usize {
        lgm_core::count(&[self.channels, self.height, self.width])
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} x {}", self.channels, self.height, self.width)
    }
}

/// What to take off the values.
#[derive(Clone, Debug, Default)]
pub(crate) enum Mean {
    #[default]
    None,
    /// One value for each channel.
    Channels(Vec<f32>),
    /// One value for each pixel of the uncropped image.
    Image(Vec<f32>),
}

/// A window on an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
    pub mirror: bool,
}

impl Window {
    /// The whole image.
    pub fn whole(of: Extent, mirror: bool) -> Self {
        Window { top: 0, left: 0, height: of.height, width: of.width, mirror }
    }

    /// A square window with its corner at (top, left).
    pub fn square(corner: (usize, usize), side: usize, mirror: bool) -> Self {
        Window { top: corner.0, left: corner.1, height: side, width: side, mirror }
    }
}

/// Elements that widen to `f32`.
pub(crate) trait Pixel: Copy {
    fn f32(self) -> f32;
}

impl Pixel for u8 {
    #[inline(always)]
    fn f32(self) -> f32 {
        f32::from(self)
    }
}

impl Pixel for f32 {
    #[inline(always)]
    fn f32(self) -> f32 {
        self
    }
}

/// Writes `(image − mean)·scale`, seen through `window`, to `out`, which has `channels · height · width` of the window.
pub(crate) fn cut<P: Pixel>(image: &[P], of: Extent, window: Window, mean: &Mean, scale: f32, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let places = (0..of.channels).flat_map(|channel| (0..window.height).map(move |row| (channel, row)));
    for (out, (channel, row)) in out.chunks_exact_mut(window.width).zip(places) {
        let above = channel.saturating_mul(of.height).saturating_add(row).saturating_add(window.top);
        let start = above.saturating_mul(of.width).saturating_add(window.left);
        let span = start..start.saturating_add(window.width);
        let pixels = &image[span.clone()];
        match mean {
            Mean::None => fill(out, pixels.iter().map(|p| p.f32() * scale), window.mirror),
            Mean::Channels(m) => {
                let m = m[channel];
                fill(out, pixels.iter().map(|p| (p.f32() - m) * scale), window.mirror);
            }
            Mean::Image(m) => fill(out, pixels.iter().zip(&m[span]).map(|(p, m)| (p.f32() - m) * scale), window.mirror),
        }
    }
}

#[inline(always)]
fn fill(out: &mut [f32], values: impl Iterator<Item = f32>, mirror: bool) {
    if mirror {
        out.iter_mut().rev().zip(values).for_each(|(o, v)| *o = v);
    } else {
        out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Extent = Extent { channels: 2, height: 3, width: 4 };

    fn ramp() -> Vec<u8> {
        (0..24).collect()
    }

    #[test]
    fn windows_are_cropped_centred_mirrored_and_scaled_in_that_order() {
        let mut out = [0.0; 8];
        let window = Window::square((1, 2), 2, true);
        cut(&ramp(), OF, window, &Mean::Channels(vec![1.0, 10.0]), 0.5, &mut out);
        assert_eq!(out, [3.0, 2.5, 5.0, 4.5, 4.5, 4.0, 6.5, 6.0]);
    }

    #[test]
    fn a_mean_image_is_read_through_the_same_window() {
        let mean: Vec<f32> = ramp().iter().map(|&v| f32::from(v) - 1.0).collect();
        let mut out = [0.0; 8];
        cut(&ramp(), OF, Window::square((0, 1), 2, true), &Mean::Image(mean), 3.0, &mut out);
        assert_eq!(out, [3.0; 8]);
    }

    #[test]
    fn the_whole_image_unchanged() {
        let floats: Vec<f32> = ramp().into_iter().map(f32::from).collect();
        let mut out = vec![0.0; 24];
        cut(&floats, OF, Window::whole(OF, false), &Mean::None, 1.0, &mut out);
        assert_eq!(out, floats);
    }
}
