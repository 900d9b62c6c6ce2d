//! Pictures: drawn twice as large and scaled down, because the bitmap backend does not smooth edges.

use std::error::Error as StdError;
use std::io::Cursor;
use std::path::Path;
use std::sync::Once;

use image::RgbImage;
use image::imageops::{FilterType, resize};
use lgm_core::fs::write_bytes;
use lgm_core::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

/// Width and height, in pixels.
pub const SIZE: (u32, u32) = (1200, 1000);
const SMOOTHING: u32 = 2;

/// What is drawn on, larger than the picture.
pub type Paper<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// A length of the picture, in pixels, on its paper.
pub fn scaled(length: u32) -> u32 {
    length * SMOOTHING
}

/// Makes a picture of what `draw` draws on white paper.
///
/// # Errors
/// When something cannot be drawn.
pub fn render(
    draw: impl FnOnce(&Paper<'_>) -> std::result::Result<(), Box<dyn StdError>>,
) -> std::result::Result<RgbImage, Box<dyn StdError>> {
    static FONT: Once = Once::new();
    // The only failure is a font that cannot be parsed; text then fails below, with a reason.
    FONT.call_once(|| drop(register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())));
    let (width, height) = (scaled(SIZE.0), scaled(SIZE.1));
    let mut pixels = vec![0u8; (width * height * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        root.fill(&WHITE)?;
        draw(&root)?;
        root.present()?;
    }
    let large = RgbImage::from_raw(width, height, pixels).ok_or("the buffer does not fill the image")?;
    Ok(resize(&large, SIZE.0, SIZE.1, FilterType::Triangle))
}

/// Writes a rendered picture to a PNG file, which replaces an older one in one step.
///
/// # Errors
/// When it could not be drawn, or the file cannot be written.
pub fn write(path: &Path, rendered: std::result::Result<RgbImage, Box<dyn StdError>>) -> Result<()> {
    let image = rendered.map_err(|e| Error::internal(format!("drawing the figure: {e}")))?;
    let mut png = Cursor::new(Vec::new());
    let encoded = image.write_to(&mut png, image::ImageFormat::Png);
    encoded.map_err(|e| Error::data(path, format!("cannot be written as a PNG: {e}")))?;
    write_bytes(path, png.get_ref())
}
