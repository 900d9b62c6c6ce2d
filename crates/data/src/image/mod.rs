//! Images in files, as nets see them.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use lgm_core::memory::{self, in_units};
use lgm_core::{Error, count};

use crate::pixels::Extent;

/// An image as a net sees it: channel-major, colour in the order blue, green, red.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    pub extent: Extent,
    pub pixels: Pixels,
}

/// An image's values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pixels {
    U8(Vec<u8>),
    F32(Vec<f32>),
}

/// How encoded images are to be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Color {
    /// As many channels as the file has.
    Native,
    /// Three channels.
    Force,
    /// One channel.
    Gray,
}

/// What is wrong with an image; completes the sentence "the image …".
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadImage {
    #[error("cannot be decoded (JPEG and PNG can be): {0}")]
    Format(#[from] ImageError),
    #[error("cannot be decoded: it claims to be {width} x {height} pixels, more than {}", in_units(MOST_BYTES as u64))]
    TooLarge { width: u32, height: u32 },
    #[error("cannot be decoded: {0}")]
    Memory(Error),
    #[error("has pixels of type {0:?}, expected 8 bits a channel (set force_color or force_gray)")]
    Depth(ColorType),
}

/// Bytes that a decoded image file may take, and four bytes for each of its pixels: some kilobytes of PNG can claim to be
/// any size.
const MOST_BYTES: usize = 512 << 20;

/// Decodes a JPEG or PNG file in memory.
pub(crate) fn decode(bytes: &[u8], color: Color) -> Result<Image, BadImage> {
    let mut reader = ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().map_err(ImageError::from)?;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_BYTES as u64);
    reader.limits(limits);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    let size = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    let planes = count(&[4, width as usize, height as usize]);
    if size.max(planes) > MOST_BYTES {
        return Err(BadImage::TooLarge { width, height });
    }
    // As decoded, in other colours, and one plane behind the other.
    let all = planes.saturating_mul(2).saturating_add(size);
    memory::check(all, format!("an image of {width} x {height} pixels")).map_err(BadImage::Memory)?;
    let image = DynamicImage::from_decoder(decoder)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let planar = |channels, interleaved: &[u8], order: &[usize]| {
        let mut planes = Vec::with_capacity(interleaved.len());
        for &c in order {
            planes.extend(interleaved.iter().skip(c).step_by(channels));
        }
        Image { extent: Extent { channels, height, width }, pixels: Pixels::U8(planes) }
    };
    Ok(match (color, image) {
        (Color::Native | Color::Gray, DynamicImage::ImageLuma8(gray)) => planar(1, gray.as_raw(), &[0]),
        (Color::Gray, image) => {
            let rgb = image.into_rgb8();
            let gray: Vec<u8> = rgb.as_raw().chunks_exact(3).map(|p| luma(p[0], p[1], p[2])).collect();
            planar(1, &gray, &[0])
        }
        (Color::Native, DynamicImage::ImageRgba8(rgba)) => planar(4, rgba.as_raw(), &[2, 1, 0, 3]),
        (Color::Native, image @ DynamicImage::ImageLumaA8(_)) => planar(4, image.into_rgba8().as_raw(), &[2, 1, 0, 3]),
        (Color::Native, image) if !matches!(image, DynamicImage::ImageRgb8(_)) => {
            return Err(BadImage::Depth(image.color()));
        }
        (_, image) => planar(3, image.into_rgb8().as_raw(), &[2, 1, 0]),
    })
}

/// Luminance by ITU-R BT.601, as JPEG and OpenCV weigh it.
fn luma(r: u8, g: u8, b: u8) -> u8 {
    let weighed = [(r, 299), (g, 587), (b, 114)].map(|(value, weight)| u32::from(value).saturating_mul(weight));
    (weighed.into_iter().fold(500, u32::saturating_add) / 1000) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn pixels(image: &DynamicImage, color: Color) -> (usize, Vec<u8>) {
        let image = decode(&png(image), color).unwrap();
        match image.pixels {
            Pixels::U8(p) => (image.extent.channels, p),
            Pixels::F32(_) => panic!("floats"),
        }
    }

    #[test]
    fn encoded_images_become_blue_green_red_planes() {
        let rgb = DynamicImage::ImageRgb8(image::RgbImage::from_raw(2, 1, vec![10, 20, 30, 40, 50, 60]).unwrap());
        assert_eq!(pixels(&rgb, Color::Native), (3, vec![30, 60, 20, 50, 10, 40]));
        assert_eq!(pixels(&rgb, Color::Gray), (1, vec![18, 48]));
        let gray = DynamicImage::ImageLuma8(image::GrayImage::from_raw(2, 1, vec![5, 6]).unwrap());
        assert_eq!(pixels(&gray, Color::Native), (1, vec![5, 6]));
        assert_eq!(pixels(&gray, Color::Force), (3, vec![5, 6, 5, 6, 5, 6]));
        let rgba = DynamicImage::ImageRgba8(image::RgbaImage::from_raw(1, 1, vec![1, 2, 3, 4]).unwrap());
        assert_eq!(pixels(&rgba, Color::Native), (4, vec![3, 2, 1, 4]));
        let deep = DynamicImage::ImageLuma16(image::ImageBuffer::from_raw(1, 1, vec![65535]).unwrap());
        assert!(decode(&png(&deep), Color::Native).unwrap_err().to_string().contains("expected 8 bits"));
        assert_eq!(pixels(&deep, Color::Force), (3, vec![255; 3]));
    }

    #[test]
    fn sizes_that_headers_claim_are_bounded() {
        // Less than the limit as decoded, far more as three planes.
        let mut large = std::io::Cursor::new(Vec::new());
        DynamicImage::new_luma8(1, 1).write_to(&mut large, image::ImageFormat::Jpeg).unwrap();
        let mut large = large.into_inner();
        let frame = large.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        large[frame + 5..frame + 9].copy_from_slice(&[0x40, 0, 0x40, 0]);
        for color in [Color::Native, Color::Force, Color::Gray] {
            let error = decode(&large, color).unwrap_err().to_string();
            assert!(error.contains("it claims to be 16384 x 16384 pixels, more than 512.0 MiB"), "{error}");
        }
    }
}
