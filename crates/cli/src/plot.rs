//! What every figure shares: PNG or SVG by the name of the file, the font, the colours and markers of series, the
//! legend, and writing in one step.
//!
//! Figures are drawn in units of half a pixel, because the backends take whole coordinates only and the one for bitmaps
//! does not smooth edges: a PNG is scaled down from twice its size, an SVG keeps the finer coordinates.

mod axes;
mod legend;
mod palette;

use std::fmt::Display;
use std::io::Cursor;
use std::path::Path;
use std::sync::Once;

use image::RgbImage;
use lgm_core::fs::write_bytes;
use lgm_core::{Error, Result, memory};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

pub use axes::{Axes, aspect};
pub use legend::{Entry, Legend, Sign};
pub use palette::{Series, series};

/// Units to a pixel.
const UNITS: u32 = 2;
/// PNG and its libraries take no longer sides.
const LONGEST: u32 = 1 << 16;
/// DejaVu Sans is what PNGs are lettered in; an SVG names others for readers without it, of nearly the same widths first.
const FONT: &str = "DejaVu Sans, Verdana, sans-serif";

/// A part of a figure to draw on.
pub type Area<B> = DrawingArea<B, Shift>;

/// What drawing gives.
pub type Drawn<T, B> = std::result::Result<T, DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// A figure: whatever can be drawn to a PNG or an SVG file.
pub trait Drawing {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);

    /// Draws all of it; the area is white.
    ///
    /// # Errors
    /// Whatever the backend refuses.
    fn draw<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<(), B>;
}

/// What a figure is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Pixels.
    Png,
    /// Shapes, drawn sharply at any size.
    Svg,
}

impl Format {
    /// The format that a file's name asks for.
    ///
    /// # Errors
    /// When it ends neither in `.png` nor in `.svg`.
    pub fn of(path: &Path) -> Result<Format> {
        let end = path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase());
        match end.as_deref() {
            Some("png") => Ok(Format::Png),
            Some("svg") => Ok(Format::Svg),
            _ => Err(Error::config(format!(
                "{}: a figure is written as PNG or SVG; expected a name that ends in .png or .svg",
                path.display()
            ))),
        }
    }
}

/// Pixels in units.
pub const fn px(pixels: u32) -> u32 {
    pixels * UNITS
}

/// The font at a height of lines in pixels, anchored at the left, in the middle of its height.
pub fn text(height: u32) -> TextStyle<'static> {
    static REGISTERED: Once = Once::new();
    // The only failure is a font that cannot be parsed; text then fails where it is drawn, with a reason.
    REGISTERED.call_once(|| drop(register_font(FONT, FontStyle::Normal, dejavu::sans::regular())));
    TextStyle::from((FONT, px(height))).pos(Pos::new(HPos::Left, VPos::Center))
}

/// The width of a text in pixels, at a height of lines in pixels.
pub fn text_width(words: &str, height: u32) -> u32 {
    text(height).font.box_size(words).map_or(0, |(width, _)| width.div_ceil(UNITS))
}

/// A text cut to a width in pixels, at a height of lines in pixels; what was cut is told by an ellipsis.
pub fn shortened(words: &str, height: u32, width: u32) -> String {
    if text_width(words, height) <= width {
        return words.to_string();
    }
    let ends: Vec<usize> = words.char_indices().map(|(at, _)| at).collect();
    let cut = |count: usize| format!("{}…", &words[..ends[count]]);
    let fits = ends.len().min(ends.partition_point(|at| text_width(&format!("{}…", &words[..*at]), height) <= width));
    cut(fits.saturating_sub(1))
}

/// Writes a figure to a PNG or SVG file, by the file's name; an older file is replaced in one step.
///
/// # Errors
/// When the name is neither's, the figure is larger than the memory there is, or the file cannot be written.
pub fn write(path: impl AsRef<Path>, figure: &impl Drawing) -> Result<()> {
    let path = path.as_ref();
    let bytes = match Format::of(path)? {
        Format::Svg => svg(figure)?.into_bytes(),
        Format::Png => {
            let mut png = Cursor::new(Vec::new());
            let encoded = pixels(figure)?.write_to(&mut png, image::ImageFormat::Png);
            encoded.map_err(|e| Error::data(path, format!("cannot be written as a PNG: {e}")))?;
            png.into_inner()
        }
    };
    write_bytes(path, &bytes)
}

fn failed(error: impl Display) -> Error {
    Error::internal(format!("drawing a figure: {error}"))
}

/// A figure in pixels.
///
/// # Errors
/// When it is larger than a PNG or the memory there is.
pub fn pixels(figure: &impl Drawing) -> Result<RgbImage> {
    let (width, height) = figure.size();
    if width.max(height) > LONGEST {
        return Err(Error::config(format!(
            "the figure has {width}×{height} pixels, and a PNG at most {LONGEST} on a side; write an SVG"
        )));
    }
    let bytes = px(width) as usize * px(height) as usize * 3;
    let mut buffer = memory::zeros(bytes, format_args!("a figure of {width}×{height} pixels"))?;
    {
        let area = BitMapBackend::with_buffer(&mut buffer, (px(width), px(height))).into_drawing_area();
        area.fill(&WHITE).and_then(|()| figure.draw(&area)).and_then(|()| area.present()).map_err(failed)?;
    }
    // Each pixel is the mean of its units.
    let (row, count) = (px(width) as usize * 3, UNITS * UNITS);
    let mean = |x: usize, y: usize, channel: usize| {
        let units = (0..UNITS as usize).flat_map(|dy| (0..UNITS as usize).map(move |dx| (dx, dy)));
        let sum: u32 = units.map(|(dx, dy)| u32::from(buffer[(y + dy) * row + (x + dx) * 3 + channel])).sum();
        ((sum + count / 2) / count) as u8
    };
    Ok(RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (px(x) as usize, px(y) as usize);
        image::Rgb([0, 1, 2].map(|channel| mean(x, y, channel)))
    }))
}

/// A figure as the text of an SVG file.
///
/// # Errors
/// Whatever the backend refuses.
pub fn svg(figure: &impl Drawing) -> Result<String> {
    let (width, height) = figure.size();
    let units = (px(width), px(height));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, units).into_drawing_area();
        area.fill(&WHITE).and_then(|()| figure.draw(&area)).and_then(|()| area.present()).map_err(failed)?;
    }
    // Names from files may hold characters that XML does not allow.
    svg.retain(|c| c == '\n' || !(c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')));
    let size = |(width, height): (u32, u32)| format!("width=\"{width}\" height=\"{height}\"");
    Ok(svg.replacen(&size(units), &size((width, height)), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str, (u32, u32));

    impl Drawing for Named {
        fn size(&self) -> (u32, u32) {
            self.1
        }

        fn draw<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<(), B> {
            area.draw(&Rectangle::new([(px(10) as i32, 0), (px(20) as i32, px(5) as i32)], BLUE.filled()))?;
            area.draw(&Text::new(self.0, (px(30) as i32, px(20) as i32), text(16)))
        }
    }

    #[test]
    fn the_name_of_the_file_chooses_the_format() {
        let dir = tempfile::tempdir().unwrap();
        let (png, svg) = (dir.path().join("a.PNG"), dir.path().join("a.svg"));
        let figure = Named("conv1", (120, 40));
        write(&png, &figure).unwrap();
        write(&svg, &figure).unwrap();
        assert_eq!(image::open(&png).unwrap().to_rgb8().dimensions(), (120, 40));
        assert!(
            std::fs::read_to_string(&svg)
                .unwrap()
                .starts_with("<svg width=\"120\" height=\"40\" viewBox=\"0 0 240 80\"")
        );
        for other in ["a.pdf", "a", "png"] {
            let error = write(dir.path().join(other), &figure).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains("ends in .png or .svg"), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn both_formats_show_the_same_shapes_and_text() {
        let image = pixels(&Named("conv1", (120, 40))).unwrap();
        assert_eq!((image[(15, 2)].0, image[(25, 2)].0), ([0, 0, 255], [255; 3]));
        let letters = image.enumerate_pixels().filter(|(x, y, p)| *x >= 30 && *y > 10 && p.0[0] < 128).count();
        assert!(letters > 50, "{letters} dark pixels");
        let text = svg(&Named("<a> & \u{1}\u{fffe}'b'", (120, 40))).unwrap();
        assert!(text.contains("&lt;a&gt; &amp; &apos;b&apos;") && text.contains("DejaVu Sans"), "{text}");
        assert!(text.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn a_png_has_a_largest_size() {
        let error = pixels(&Named("", (10, LONGEST + 1))).unwrap_err().to_string();
        assert!(error.contains("10×65537 pixels") && error.contains("write an SVG"), "{error}");
        svg(&Named("", (10, LONGEST + 1))).unwrap();
    }

    #[test]
    fn the_width_of_a_text_grows_with_it() {
        assert!(text_width("convolution", 16) > text_width("conv", 16));
        assert!((text_width("conv", 32) as i32 - 2 * text_width("conv", 16) as i32).abs() <= 2);
        assert_eq!(text_width("", 16), 0);
    }
}
