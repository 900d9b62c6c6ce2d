//! Images in files, as OpenCV reads them for Caffe.
//!
//! `decode` reads files and `encode` writes them, `raster` and `resize` work on pixels as files have them, channels
//! together; nets see an [`Image`]: one plane a channel.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod decode;
#[allow(dead_code)]
mod encode;
mod jpeg;
mod raster;
#[allow(dead_code)]
mod resize;

use image::{ColorType, ImageError};
use lgm_core::Error;
use lgm_core::memory::in_units;

use crate::pixels::Extent;

pub(crate) use decode::decode_raster;
#[allow(unused_imports)]
pub use encode::ImageFile;
pub(crate) use raster::Raster;

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
    #[error("cannot be decoded (JPEG, PNG and BMP can be): {0}")]
    Format(#[from] ImageError),
    #[error("cannot be decoded as a JPEG: {0}")]
    Jpeg(String),
    #[error("cannot be decoded: it is cut short, the end of the JPEG is missing")]
    CutShort,
    #[error("cannot be decoded: the JPEG has {0} scans, more than {most}", most = jpeg::MOST_SCANS)]
    Scans(usize),
    #[error("cannot be decoded: it claims to be {width} x {height} pixels, more than {}", in_units(decode::MOST_BYTES as u64))]
    TooLarge { width: usize, height: usize },
    #[error("cannot be decoded: {0}")]
    Memory(Error),
    #[error("has pixels of type {0:?}, expected 8 bits a channel (set force_color or force_gray)")]
    Depth(ColorType),
}

/// Decodes an image file in memory.
pub(crate) fn decode(bytes: &[u8], color: Color) -> Result<Image, BadImage> {
    decode_raster(bytes, color)?.planes()
}
