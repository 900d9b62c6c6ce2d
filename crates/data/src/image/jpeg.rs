//! JPEG, by libjpeg-turbo as OpenCV uses it: accurate DCT, smooth upsampling of chroma.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use lgm_core::{count, memory};
use lgm_cpu::vectorized;
use mozjpeg::decompress::DecompressStarted;
use mozjpeg::{ColorSpace, ColorSpaceExt, Compress, Decompress, Marker};

use super::raster::{check_size, luma};
use super::{BadImage, Color, Raster};
use crate::pixels::Extent;
use crate::warnings::Flaw;

/// Scans of a progressive file: each costs a pass over all of the image, and takes few bytes.
pub(super) const MOST_SCANS: usize = 500;

/// What marks a JPEG's EXIF data among those of its kind.
const EXIF: &[u8] = b"Exif\0\0";

/// What a file without its end may go on with: not what the library makes up for what is missing, nor a marker.
const MORE: [u8; 64] = [0xa7; 64];

/// Decodes a JPEG, and says how the camera was held and what is amiss.
pub(super) fn decode(bytes: &[u8], color: Color) -> Result<(Raster, Orientation, Option<Flaw>), BadImage> {
    // Within the scans' data, 0xff is followed by 0.
    let scans = pairs(bytes, [0xff, 0xda]);
    if scans > MOST_SCANS {
        return Err(BadImage::Scans(scans));
    }
    caught(|| {
        let (mut started, as_held, gray) = start(bytes, color)?;
        let channels = started.color_space().num_components();
        let extent = Extent { channels, height: started.height(), width: started.width() };
        let mut raster = Raster::zeros(extent)?;
        started.read_scanlines_into(&mut raster.data).map_err(failed)?;
        let rest = started.finish_into_inner().map_err(failed)?.len();
        let is_whole = bytes[..bytes.len().saturating_sub(rest)].ends_with(&[0xff, 0xd9]);
        let flaw = (!is_whole && is_cut(bytes, color, &raster)?).then_some(Flaw::CutShort);
        if channels == 4 {
            raster = from_cmyk(&raster, gray)?;
        }
        Ok((raster, as_held, flaw))
    })
}

/// Whether a file that lacks its end lacks some of its rows too: then what it went on with would show in the pixels.
fn is_cut(bytes: &[u8], color: Color, pixels: &Raster) -> Result<bool, BadImage> {
    let len = bytes.len().saturating_add(MORE.len()).saturating_add(1);
    let mut longer = memory::room(len, "a JPEG that lacks its end").map_err(BadImage::Memory)?;
    longer.extend_from_slice(bytes);
    if bytes.ends_with(&[0xff]) {
        // Not half a marker.
        longer.push(0);
    }
    longer.extend_from_slice(&MORE);
    let width = count(&[pixels.extent.width, pixels.extent.channels]).max(1);
    let mut row = memory::zeros::<u8>(width, "a row of a JPEG").map_err(BadImage::Memory)?;
    let same = caught(|| {
        let (mut started, ..) = start(&longer, color)?;
        for known in pixels.data.chunks_exact(width) {
            started.read_scanlines_into(&mut row).map_err(failed)?;
            if row != known {
                return Ok(false);
            }
        }
        Ok(true)
    });
    Ok(!same.unwrap_or(false))
}

/// A decoder at the first row, how the camera was held, and whether the image is to be gray.
fn start(bytes: &[u8], color: Color) -> Result<(DecompressStarted<&[u8]>, Orientation, bool), BadImage> {
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
    let out = match decoder.color_space() {
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => ColorSpace::JCS_CMYK,
        _ if gray => ColorSpace::JCS_GRAYSCALE,
        _ => ColorSpace::JCS_EXT_BGR,
    };
    Ok((decoder.to_colorspace(out).map_err(failed)?, as_held, gray))
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
