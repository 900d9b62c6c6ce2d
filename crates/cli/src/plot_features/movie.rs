//! Figures one after another, as an animated PNG.

use std::io::Cursor;
use std::path::Path;

use lgm_core::fs::write_bytes;
use lgm_core::{Error, Result};

use super::figure::Figure;
use crate::plot::{self, Drawing};

/// Seconds that a figure is shown, and the last one.
const SHOWN: (u16, u16) = (1, 2);

/// Writes figures of one size to an animated PNG, which begins again after its end; an older file is replaced in one step.
///
/// # Errors
/// When there are no figures, they cannot be drawn or the file cannot be written.
pub fn write(path: &Path, figures: &[Figure<'_>]) -> Result<()> {
    let failed = |e: png::EncodingError| Error::data(path, format!("cannot be written as an animated PNG: {e}"));
    let (width, height) = figures.first().map_or((0, 0), Drawing::size);
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_animated(figures.len() as u32, 0).map_err(failed)?;
    let mut writer = encoder.write_header().map_err(failed)?;
    for (number, figure) in figures.iter().enumerate() {
        let seconds = if number + 1 == figures.len() { SHOWN.1 } else { SHOWN.0 };
        writer.set_frame_delay(seconds, 1).map_err(failed)?;
        writer.write_image_data(&plot::pixels(figure)?).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    write_bytes(path, bytes.get_ref())
}
