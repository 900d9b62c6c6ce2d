//! Image files to pixels: JPEG, PNG, BMP, TIFF, WebP, and PPM with its kin (PGM, PBM, PAM), told apart by their first bytes.
//!
//! Colours come in the order blue, green, red. Without alpha asked for, it is dropped; of 16 bits the upper 8 stay.
//! Gray is a JPEG's own luminance, and otherwise r · 0.299 + g · 0.587 + b · 0.114. Photographs are turned as the EXIF
//! data ask. All as OpenCV does for Caffe, with the same pixels; only the gray of a coloured PNG or WebP, and a JPEG within a
//! TIFF, may differ by 1. What is missing of a JPEG that was cut short is gray, as where OpenCV reads a file, and the caller
//! is told of it; one that lacks its end marker alone is whole. Of the other formats a file that was cut short is an error.
//!
//! Differences from OpenCV: where a PPM's largest value is less than its bytes hold, values are scaled to the whole range;
//! a TIFF's colours are not multiplied by its alpha, as those of no other format are. Of several images in a file the first
//! is read. TIFFs of gray with alpha, with a palette or of floating-point values are not.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, guess_format};
use lgm_core::count;

use super::raster::{MOST_BYTES, check_size, luma};
use super::{BadImage, Color, Raster, jpeg};
use crate::pixels::Extent;
use crate::warnings::Flaw;

/// Decodes an image file in memory; with what is amiss with it.
pub(crate) fn decode_raster(bytes: &[u8], color: Color) -> Result<(Raster, Option<Flaw>), BadImage> {
    let (raster, as_held, flaw) = match guess_format(bytes)? {
        ImageFormat::Jpeg => jpeg::decode(bytes, color)?,
        other => lossless(bytes, other, color).map(|(raster, as_held)| (raster, as_held, None))?,
    };
    Ok((if color == Color::Native { raster } else { raster.oriented(as_held)? }, flaw))
}

fn lossless(bytes: &[u8], format: ImageFormat, color: Color) -> Result<(Raster, Orientation), BadImage> {
    let bytes = if format == ImageFormat::WebP { whole_chunks(bytes)? } else { bytes };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_BYTES as u64);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| match e {
        ImageError::Unsupported(why) if format == ImageFormat::Tiff => BadImage::Tiff(why.to_string()),
        e => e.into(),
    })?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    let whole = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    // What a decoder holds besides its result.
    let beside = match format {
        ImageFormat::Tiff | ImageFormat::WebP => whole.max(count(&[8, width, height])),
        _ => 0,
    };
    check_size(width, height, whole, beside)?;
    let as_held = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let raster = |channels: usize, data: Vec<u8>| Raster { extent: Extent { channels, height, width }, data };
    let image = match DynamicImage::from_decoder(decoder)? {
        image @ (DynamicImage::ImageLuma8(_)
        | DynamicImage::ImageLumaA8(_)
        | DynamicImage::ImageRgb8(_)
        | DynamicImage::ImageRgba8(_)) => image,
        deep @ (DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_)) => {
            return Err(BadImage::Floats(deep.color()));
        }
        deep if color == Color::Native => return Err(BadImage::Depth(deep.color())),
        deep => upper_bytes(deep),
    };
    let image = match (color, image) {
        (Color::Native | Color::Gray, DynamicImage::ImageLuma8(gray)) => raster(1, gray.into_raw()),
        (Color::Gray, DynamicImage::ImageLumaA8(gray)) => raster(1, gray.into_raw().into_iter().step_by(2).collect()),
        (Color::Native, image @ (DynamicImage::ImageRgba8(_) | DynamicImage::ImageLumaA8(_))) => {
            let mut data = image.into_rgba8().into_raw();
            data.as_chunks_mut::<4>().0.iter_mut().for_each(|p| p.swap(0, 2));
            raster(4, data)
        }
        (Color::Native, DynamicImage::ImageRgb8(rgb))
            if format == ImageFormat::Bmp && has_gray_palette(bytes, &rgb) =>
        {
            raster(1, rgb.into_raw().into_iter().step_by(3).collect())
        }
        (_, image) => from_rgb(raster(3, image.into_rgb8().into_raw()), color)?,
    };
    Ok((image, as_held))
}

/// A WebP without what may stand behind its end. Fails unless its chunks lie within it: the library, which reads on behind the
/// end, takes as much memory as they claim.
fn whole_chunks(webp: &[u8]) -> Result<&[u8], BadImage> {
    let size = |at: usize| {
        let bytes = webp.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let cut_short = || BadImage::CutShort;
    let end = size(4).and_then(|size| size.checked_add(8)).filter(|&end| end <= webp.len()).ok_or_else(cut_short)?;
    let mut at = 12usize;
    while let Some(start) = at.checked_add(8).filter(|&start| start <= end) {
        let length = size(start.saturating_sub(4)).unwrap_or(usize::MAX);
        at = start.saturating_add(length).saturating_add(length % 2);
        if start.saturating_add(length) > end {
            return Err(cut_short());
        }
    }
    Ok(&webp[..end])
}

/// Whether a bitmap has a palette, and the colours in use are gray: bitmaps know no other gray.
fn has_gray_palette(bytes: &[u8], pixels: &[u8]) -> bool {
    let bits = bytes.get(28).copied().unwrap_or(24);
    bits <= 8 && pixels.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b)
}

/// Red, green, blue as a raster has it.
fn from_rgb(mut rgb: Raster, color: Color) -> Result<Raster, BadImage> {
    let (pixels, _) = rgb.data.as_chunks_mut::<3>();
    if color == Color::Gray {
        let mut gray = Raster::zeros(Extent { channels: 1, ..rgb.extent })?;
        gray.data.iter_mut().zip(&*pixels).for_each(|(o, p)| *o = luma(*p));
        return Ok(gray);
    }
    pixels.iter_mut().for_each(|p| p.swap(0, 2));
    Ok(rgb)
}

/// The upper half of every value of 16 bits.
fn upper_bytes(deep: DynamicImage) -> DynamicImage {
    let upper = |values: &mut [u16]| values.iter_mut().for_each(|v| *v = (*v >> 8).saturating_mul(257));
    // What a value of equal bytes becomes in 8 bits is one of them.
    match deep {
        DynamicImage::ImageLuma16(mut image) => {
            upper(&mut image);
            DynamicImage::ImageLuma16(image).into_luma8().into()
        }
        DynamicImage::ImageLumaA16(mut image) => {
            upper(&mut image);
            DynamicImage::ImageLumaA16(image).into_luma_alpha8().into()
        }
        DynamicImage::ImageRgb16(mut image) => {
            upper(&mut image);
            DynamicImage::ImageRgb16(image).into_rgb8().into()
        }
        DynamicImage::ImageRgba16(mut image) => {
            upper(&mut image);
            DynamicImage::ImageRgba16(image).into_rgba8().into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
