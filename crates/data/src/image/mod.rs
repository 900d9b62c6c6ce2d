//! Images in files, as OpenCV reads them for Caffe.
//!
//! `decode` reads files and `encode` writes them, `raster` and `resize` work on pixels as files have them, channels
//! together; nets see an [`Image`]: one plane a channel.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod decode;
mod encode;
mod jpeg;
mod raster;
mod resize;

use std::path::Path;

use image::{ColorType, ImageError};
use lgm_core::memory::in_units;
use lgm_core::{Error, Result};
use lgm_proto::FileKind;

use crate::pixels::Extent;
use crate::warnings::Flaw;

pub(crate) use decode::decode_raster;
pub use encode::ImageFile;
pub(crate) use raster::Raster;

/// The formats that are read.
pub(crate) const FORMATS: &str = "JPEG, PNG, BMP, TIFF, WebP and PPM, PGM or PBM";

/// Ends of the names of files in these formats.
pub const IMAGE_ENDS: [&str; 13] =
    ["jpg", "jpeg", "jpe", "png", "bmp", "dib", "tif", "tiff", "webp", "ppm", "pgm", "pbm", "pnm"];

/// Whether a file's name ends as those of image files do, in any case.
pub fn is_image_name(path: &Path) -> bool {
    let end = path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase());
    end.is_some_and(|end| IMAGE_ENDS.contains(&&*end))
}

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

/// How image files are to be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Color {
    /// As many channels as the file has, alpha among them, as it lies there: OpenCV's IMREAD_UNCHANGED.
    Native,
    /// Three channels, turned as the file's EXIF data ask: IMREAD_COLOR.
    Force,
    /// One channel, turned as the file's EXIF data ask: IMREAD_GRAYSCALE.
    Gray,
}

/// What is wrong with an image, or with making a file of it; completes the sentence "the image …".
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadImage {
    #[error("cannot be decoded ({FORMATS} can be): {0}")]
    Format(#[from] ImageError),
    #[error("cannot be decoded: TIFFs of this kind are not read ({0}); convert it to PNG")]
    Tiff(String),
    #[error("cannot be decoded as a JPEG: {0}")]
    Jpeg(String),
    #[error("cannot be decoded: it is cut short, the end of the WebP is missing")]
    CutShort,
    #[error("cannot be decoded: the JPEG has {0} scans, more than {most}", most = jpeg::MOST_SCANS)]
    Scans(usize),
    #[error("cannot be decoded: it claims to be {width} x {height} pixels, more than {}", in_units(raster::MOST_BYTES as u64))]
    TooLarge { width: usize, height: usize },
    #[error("has no pixels: it is {width} x {height}")]
    NoPixels { width: usize, height: usize },
    #[error("cannot be decoded: {0}")]
    Memory(Error),
    #[error("has pixels of type {0:?}, expected 8 bits a channel (set force_color or force_gray)")]
    Depth(ColorType),
    #[error("has floating-point pixels of type {0:?}, expected 8 or 16 bits a channel")]
    Floats(ColorType),
}

/// Decodes an image file in memory; with what is amiss with it.
pub(crate) fn decode(bytes: &[u8], color: Color) -> Result<(Image, Option<Flaw>), BadImage> {
    let (raster, flaw) = decode_raster(bytes, color)?;
    Ok((raster.planes()?, flaw))
}

/// Reads an image file; with what is amiss with it.
///
/// # Errors
/// When it cannot be read or decoded; names the file, and says what it is if it is something else.
pub(crate) fn read_file(path: &Path, color: Color) -> Result<(Raster, Option<Flaw>)> {
    decode_file(&read_bytes(path)?, path, color)
}

/// The bytes of an image file.
///
/// # Errors
/// When it cannot be read, or is larger than any image may be.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let length = std::fs::metadata(path).map_err(Error::io(path, "read"))?.len();
    if length > raster::MOST_BYTES as u64 {
        let most = in_units(raster::MOST_BYTES as u64);
        return Err(Error::data(path, format!("has {}, more than the {most} of an image", in_units(length))));
    }
    std::fs::read(path).map_err(Error::io(path, "read"))
}

/// Decodes the bytes of an image file; with what is amiss with it.
///
/// # Errors
/// When it cannot be decoded; names the file, and says what it is if it is something else.
pub(crate) fn decode_file(bytes: &[u8], path: &Path, color: Color) -> Result<(Raster, Option<Flaw>)> {
    decode_raster(bytes, color).map_err(|e| match FileKind::of_head(bytes) {
        FileKind::Unknown | FileKind::Image(_) => Error::data(path, e.to_string()),
        other => Error::data(path, format!("expected a picture ({FORMATS}), found {}", other.described())),
    })
}
