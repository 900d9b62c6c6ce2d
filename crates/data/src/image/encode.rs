//! Pixels to image files, as OpenCV writes them: JPEG of quality 95 with chroma at half the resolution, PNG, BMP.

use std::io::Cursor;

use image::codecs::bmp::BmpEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use lgm_core::memory;

use super::{BadImage, Raster, jpeg};

/// Kinds of image files that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFile {
    /// JPEG, quality 95, chroma at half the resolution.
    Jpeg,
    /// PNG.
    Png,
    /// Windows bitmap.
    Bmp,
}

impl ImageFile {
    /// The kind with the extension `name`, in any case; `None` for all but `jpg`, `jpeg`, `jpe`, `png`, `bmp` and `dib`.
    pub fn of(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "jpg" | "jpeg" | "jpe" => Some(ImageFile::Jpeg),
            "png" => Some(ImageFile::Png),
            "bmp" | "dib" => Some(ImageFile::Bmp),
            _ => None,
        }
    }
}

impl Raster {
    /// The image, of one or three channels, as a JPEG of a quality from 1 to 100.
    pub fn as_jpeg(&self, quality: f32) -> Result<Vec<u8>, BadImage> {
        jpeg::encode(self, quality)
    }

    /// The image, of one or three channels, as a file.
    pub fn encode(&self, kind: ImageFile) -> Result<Vec<u8>, BadImage> {
        if kind == ImageFile::Jpeg {
            return self.as_jpeg(95.0);
        }
        let extent = self.extent;
        let color = if extent.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let rgb = match color {
            ExtendedColorType::L8 => &self.data,
            _ => {
                let mut rgb = memory::room(self.data.len(), "an image to be encoded").map_err(BadImage::Memory)?;
                rgb.extend_from_slice(&self.data);
                rgb.as_chunks_mut::<3>().0.iter_mut().for_each(|p| p.swap(0, 2));
                &{ rgb }
            }
        };
        let extents = |v: usize| u32::try_from(v).unwrap_or(u32::MAX);
        let (width, height) = (extents(extent.width), extents(extent.height));
        let mut file = Cursor::new(Vec::new());
        match kind {
            ImageFile::Bmp => BmpEncoder::new(&mut file).encode(rgb, width, height, color),
            _ => PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Adaptive)
                .write_image(rgb, width, height, color),
        }?;
        Ok(file.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Color, decode_raster};
    use crate::pixels::Extent;

    fn ramp(channels: usize) -> Raster {
        let extent = Extent { channels, height: 9, width: 7 };
        Raster { extent, data: (0..extent.count()).map(|v| v as u8).collect() }
    }

    #[test]
    fn files_hold_the_image() {
        for (kind, name) in [(ImageFile::Png, "png"), (ImageFile::Bmp, "bmp"), (ImageFile::Jpeg, "JPG")] {
            assert_eq!(ImageFile::of(name), Some(kind));
            for channels in [1, 3] {
                let (again, _) = decode_raster(&ramp(channels).encode(kind).unwrap(), Color::Native).unwrap();
                assert_eq!(again.extent, ramp(channels).extent);
                // The chroma of so steep a ramp does not survive at half the resolution.
                let allowed = if kind == ImageFile::Jpeg { if channels == 1 { 3 } else { 12 } } else { 0 };
                let far = again.data.iter().zip(&ramp(channels).data).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(far <= allowed, "{kind:?} {channels} {far}");
            }
        }
        assert_eq!(ImageFile::of("webp"), None);
    }
}
