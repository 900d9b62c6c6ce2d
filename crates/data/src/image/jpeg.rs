//! JPEG, by libjpeg-turbo as OpenCV uses it: accurate DCT, smooth upsampling of chroma.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use lgm_core::count;
use lgm_cpu::vectorized;
use mozjpeg::{ColorSpace, Compress, Decompress, Marker};

use super::raster::{check_size, luma};
use super::{BadImage, Color, Raster};
use crate::pixels::Extent;

/// Scans of a progressive file: each costs a pass over all of the image, and takes few bytes.
pub(super) const MOST_SCANS: usize = 500;

/// What marks a JPEG's EXIF data among those of its kind.
const EXIF: &[u8] = b"Exif\0\0";

/// Decodes a JPEG, and says how the camera was held.
pub(super) fn decode(bytes: &[u8], color: Color) -> Result<(Raster, Orientation), BadImage> {
    // Within the scans' data, 0xff is followed by 0.
    let scans = pairs(bytes, [0xff, 0xda]);
    if scans > MOST_SCANS {
        return Err(BadImage::Scans(scans));
    }
    caught(|| {
        let decoder = Decompress::with_markers(&[Marker::APP(1)]).from_mem(bytes).map_err(failed)?;
        let exif = decoder.markers().find_map(|marker| marker.data.strip_prefix(EXIF));
        let as_held = exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
        let (width, height) = decoder.size();
        // A progressive file's coefficients, of 16 bits, are kept until its last scan.
        check_size(width, height, count(&[8, width, height]), 0)?;
        let gray = match color {
            Color::Native => decoder.components().len() == 1,
            Color::Force => false,
            Color::Gray => true,
        };
        let (out, channels) = match decoder.color_space() {
            ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => (ColorSpace::JCS_CMYK, 4),
            _ if gray => (ColorSpace::JCS_GRAYSCALE, 1),
            _ => (ColorSpace::JCS_EXT_BGR, 3),
        };
        let mut raster = Raster::zeros(Extent { channels, height, width })?;
        let mut started = decoder.to_colorspace(out).map_err(failed)?;
        started.read_scanlines_into(&mut raster.data).map_err(failed)?;
        // What is missing at the end the library makes up.
        let rest = started.finish_into_inner().map_err(failed)?.len();
        if !bytes[..bytes.len().saturating_sub(rest)].ends_with(&[0xff, 0xd9]) {
            return Err(BadImage::CutShort("JPEG"));
        }
        if channels == 4 {
            raster = from_cmyk(&raster, gray)?;
        }
        Ok((raster, as_held))
    })
}

vectorized! {
    /// How often two bytes stand side by side.
    fn pairs[](bytes: &[u8], pair: [u8; 2]) -> usize {
        bytes.iter().zip(bytes.iter().skip(1)).filter(|&(&a, &b)| [a, b] == pair).count()
    }
}

/// From inks as Adobe's programs store them, 255 for none.
fn from_cmyk(inks: &Raster, gray: bool) -> Result<Raster, BadImage> {
    let channels = if gray { 1 } else { 3 };
    let mut out = Raster::zeros(Extent { channels, ..inks.extent })?;
    for (pixel, &[c, m, y, k]) in out.data.chunks_exact_mut(channels).zip(inks.data.as_chunks::<4>().0) {
        let under = |ink: u8| {
            let (absent, black) = (u32::from(255u8.saturating_sub(ink)), u32::from(k));
            black.saturating_sub(absent.saturating_mul(black) >> 8) as u8
        };
        match pixel {
            [value] => *value = luma([under(c), under(m), under(y)]),
            _ => pixel.copy_from_slice(&[under(y), under(m), under(c)]),
        }
    }
    Ok(out)
}

/// Encodes blue, green, red or gray as OpenCV does, chroma at half the resolution.
pub(super) fn encode(raster: &Raster, quality: f32) -> Result<Vec<u8>, BadImage> {
    let space = if raster.extent.channels == 1 { ColorSpace::JCS_GRAYSCALE } else { ColorSpace::JCS_EXT_BGR };
    caught(|| {
        let mut encoder = Compress::new(space);
        encoder.set_fastest_defaults();
        encoder.set_quality(quality);
        encoder.set_size(raster.extent.width, raster.extent.height);
        let mut encoder = encoder.start_compress(Vec::new()).map_err(failed)?;
        encoder.write_scanlines(&raster.data).map_err(failed)?;
        encoder.finish().map_err(failed)
    })
}

fn failed(e: io::Error) -> BadImage {
    BadImage::Jpeg(e.to_string())
}

/// The library reports errors by unwinding, with a text.
fn caught<T>(work: impl FnOnce() -> Result<T, BadImage>) -> Result<T, BadImage> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map_or("the library failed", |text| text);
        Err(BadImage::Jpeg(text.trim_start_matches("libjpeg fatal error: ").to_string()))
    })
}
