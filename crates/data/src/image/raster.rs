//! Pixels as files have them: the channels of one pixel together, row by row.

use image::metadata::Orientation;
use lgm_core::{count, memory};
use lgm_cpu::vectorized;

use super::{BadImage, Image, Pixels};
use crate::pixels::Extent;

/// Bytes that a decoded image file may take, and four bytes for each of its pixels: some kilobytes of PNG can claim to be
/// any size.
pub(super) const MOST_BYTES: usize = 512 << 20;

/// Fails unless an image that takes so many bytes as decoded, and so many besides while it is decoded, may be decoded.
pub(super) fn check_size(width: usize, height: usize, bytes: usize, beside: usize) -> Result<(), BadImage> {
    let planes = count(&[4, width, height]);
    if planes == 0 {
        return Err(BadImage::NoPixels { width, height });
    }
    if bytes.max(planes) > MOST_BYTES {
        return Err(BadImage::TooLarge { width, height });
    }
    // As decoded, in other colours, and one plane behind the other.
    let all = planes.saturating_mul(2).saturating_add(bytes).saturating_add(beside);
    memory::check(all, format!("an image of {width} x {height} pixels")).map_err(BadImage::Memory)
}

/// An image of 8-bit channels: gray, or blue, green, red, and alpha where there are four.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Raster {
    pub extent: Extent,
    /// `height` rows of `width` pixels of `channels` values.
    pub data: Vec<u8>,
}

impl Raster {
    /// So many zeros.
    pub fn zeros(extent: Extent) -> Result<Self, BadImage> {
        let what = format!("an image of {} x {} pixels", extent.width, extent.height);
        Ok(Raster { extent, data: memory::zeros(extent.count(), what).map_err(BadImage::Memory)? })
    }

    /// The image as nets see it.
    pub fn planes(self) -> Result<Image, BadImage> {
        let Extent { channels, height, width } = self.extent;
        if channels == 1 {
            return Ok(Image { extent: self.extent, pixels: Pixels::U8(self.data) });
        }
        let mut planes = Raster::zeros(self.extent)?.data;
        match channels {
            3 => split(self.data.as_chunks::<3>().0, &mut planes),
            4 => split(self.data.as_chunks::<4>().0, &mut planes),
            _ => {
                let area = count(&[height, width]).max(1);
                for (c, plane) in planes.chunks_exact_mut(area).enumerate() {
                    plane.iter_mut().zip(self.data.iter().skip(c).step_by(channels)).for_each(|(o, &v)| *o = v);
                }
            }
        }
        Ok(Image { extent: self.extent, pixels: Pixels::U8(planes) })
    }

    /// The image in one channel or three: gray from colour, colour from gray, alpha dropped.
    pub fn with_channels(self, channels: usize) -> Result<Self, BadImage> {
        let has = self.extent.channels;
        if has == channels {
            return Ok(self);
        }
        let mut out = Raster::zeros(Extent { channels, ..self.extent })?;
        let pixels = self.data.chunks_exact(has.max(1)).zip(out.data.chunks_exact_mut(channels.max(1)));
        for (pixel, out) in pixels {
            match pixel {
                [b, g, r, ..] if channels == 1 => out[0] = luma([*r, *g, *b]),
                [gray] | [gray, _] => out.fill(*gray),
                _ => out.iter_mut().zip(pixel).for_each(|(o, v)| *o = *v),
            }
        }
        Ok(out)
    }

    /// The image turned and mirrored as a camera's note of how it was held asks.
    pub fn oriented(self, as_held: Orientation) -> Result<Self, BadImage> {
        // What makes the image: rows and columns exchanged, then columns reversed, then rows reversed.
        let (exchanged, columns, rows) = match as_held {
            Orientation::NoTransforms => return Ok(self),
            Orientation::FlipHorizontal => (false, true, false),
            Orientation::Rotate180 => (false, true, true),
            Orientation::FlipVertical => (false, false, true),
            Orientation::Rotate90FlipH => (true, false, false),
            Orientation::Rotate90 => (true, true, false),
            Orientation::Rotate270FlipH => (true, true, true),
            Orientation::Rotate270 => (true, false, true),
        };
        let Extent { channels, height, width } = self.extent;
        let (high, wide) = if exchanged { (width, height) } else { (height, width) };
        let mut out = Raster::zeros(Extent { channels, height: high, width: wide })?;
        let places = (0..high).flat_map(|y| (0..wide).map(move |x| (y, x)));
        for (pixel, (y, x)) in out.data.chunks_exact_mut(channels.max(1)).zip(places) {
            let back =
                |reversed: bool, i: usize, of: usize| if reversed { of.saturating_sub(i).saturating_sub(1) } else { i };
            let (y, x) = (back(rows, y, high), back(columns, x, wide));
            let (y, x) = if exchanged { (x, y) } else { (y, x) };
            let at = y.saturating_mul(width).saturating_add(x).saturating_mul(channels);
            pixel.copy_from_slice(&self.data[at..at.saturating_add(channels)]);
        }
        Ok(out)
    }
}

vectorized! {
    /// Takes pixels of `N` channels apart.
    fn split[const N: usize](pixels: &[[u8; N]], planes: &mut [u8]) {
        for (c, plane) in planes.chunks_exact_mut(pixels.len().max(1)).enumerate() {
            plane.iter_mut().zip(pixels).for_each(|(o, p)| *o = p[c]);
        }
    }
}

/// Luminance by ITU-R BT.601, in 14 bits as OpenCV weighs it.
pub(super) fn luma([r, g, b]: [u8; 3]) -> u8 {
    let weighed = [(r, 4899), (g, 9617), (b, 1868)].map(|(value, weight)| u32::from(value).saturating_mul(weight));
    (weighed.into_iter().fold(1 << 13, u32::saturating_add) >> 14) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(channels: usize, height: usize, width: usize) -> Raster {
        let extent = Extent { channels, height, width };
        Raster { extent, data: (0..extent.count() as u8).collect() }
    }

    #[test]
    fn channels_come_apart() {
        for (channels, want) in
            [(1, vec![0, 1]), (2, vec![0, 2, 1, 3]), (3, vec![0, 3, 1, 4, 2, 5]), (4, vec![0, 4, 1, 5, 2, 6, 3, 7])]
        {
            assert_eq!(of(channels, 1, 2).planes().unwrap().pixels, Pixels::U8(want));
        }
    }

    #[test]
    fn orientations_are_those_of_exif() {
        // 0 1
        // 2 3
        // 4 5, and where its first and last pixels come to lie.
        let want: [&[u8]; 8] = [
            &[0, 1, 2, 3, 4, 5],
            &[1, 0, 3, 2, 5, 4],
            &[5, 4, 3, 2, 1, 0],
            &[4, 5, 2, 3, 0, 1],
            &[0, 2, 4, 1, 3, 5],
            &[4, 2, 0, 5, 3, 1],
            &[5, 3, 1, 4, 2, 0],
            &[1, 3, 5, 0, 2, 4],
        ];
        for (number, want) in (1..).zip(want) {
            let turned = of(1, 3, 2).oriented(Orientation::from_exif(number).unwrap()).unwrap();
            let (height, width) = if number < 5 { (3, 2) } else { (2, 3) };
            assert_eq!((turned.extent, &turned.data[..]), (Extent { channels: 1, height, width }, want), "{number}");
        }
        let color = of(3, 1, 2).oriented(Orientation::FlipHorizontal).unwrap();
        assert_eq!(color.data, [3, 4, 5, 0, 1, 2]);
    }
}
