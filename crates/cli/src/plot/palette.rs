//! How series are told apart: by colour, and for readers who see fewer colours, in print, and where there are more series
//! than colours, by marker, dash and lightness.
//!
//! The colours are those of Okabe and Ito, "Color Universal Design" (2008), but for their yellow, which is too pale for
//! thin lines and small points on white.

use plotters::element::{DashedPathElement, Drawable, PointCollection};
use plotters::prelude::*;
use plotters_backend::{BackendCoord, DrawingErrorKind};

use super::px;

/// Blue, vermilion, bluish green, reddish purple, orange, sky blue, black.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// The shape of a series' points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Ring,
    Frame,
    TriangleDown,
    HollowTriangle,
}

/// The stroke of a series' line: lengths of dash and gap in pixels, none where it is solid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dash(pub Option<(u32, u32)>);

/// How one series looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Series {
    /// Its colour.
    pub color: RGBColor,
    /// Its points.
    pub marker: Marker,
    /// Its line.
    pub dash: Dash,
}

const MARKERS: [Marker; 8] = [
    Marker::Circle,
    Marker::Square,
    Marker::Triangle,
    Marker::Diamond,
    Marker::Ring,
    Marker::Frame,
    Marker::TriangleDown,
    Marker::HollowTriangle,
];

const DASHES: [Dash; 4] = [Dash(None), Dash(Some((8, 4))), Dash(Some((2, 3))), Dash(Some((14, 5)))];

/// The look of the series of an index. The first seven differ by colour; each further seven have the next marker, dash and
/// lightness, so that points differ up to 168 series and lines up to 84.
pub fn series(index: usize) -> Series {
    let round = index / COLORS.len();
    Series {
        color: shade(COLORS[index % COLORS.len()], round % 3),
        marker: MARKERS[round % MARKERS.len()],
        dash: DASHES[round % DASHES.len()],
    }
}

/// A colour as it is, paler or darker; black, which has nothing darker, in two greys.
fn shade(color: RGBColor, step: usize) -> RGBColor {
    let black = color == RGBColor(0, 0, 0);
    let (toward, share) = match (step, black) {
        (0, _) => return color,
        (1, false) => (255.0, 0.45),
        (1, true) => (255.0, 0.65),
        (_, false) => (0.0, 0.42),
        (_, true) => (255.0, 0.35),
    };
    let mixed = |v: u8| (v as f64 + (toward - v as f64) * share).round() as u8;
    RGBColor(mixed(color.0), mixed(color.1), mixed(color.2))
}

impl Series {
    /// A point of the series with a radius in pixels; `opacity` 1 hides what is behind.
    pub fn point<C>(self, at: C, radius: u32, opacity: f64) -> Point<C> {
        Point { at, radius: px(radius), marker: self.marker, color: self.color.mix(opacity) }
    }

    /// The series' line through points, two pixels wide.
    pub fn line<C>(self, through: Vec<C>) -> Line<C> {
        Line { through, dash: self.dash, style: self.color.stroke_width(px(2)) }
    }
}

/// A point to draw.
#[derive(Clone, Debug)]
pub struct Point<C> {
    at: C,
    radius: u32,
    marker: Marker,
    color: RGBAColor,
}

/// A line to draw.
#[derive(Clone, Debug)]
pub struct Line<C> {
    through: Vec<C>,
    dash: Dash,
    style: ShapeStyle,
}

impl<'a, C: 'a> PointCollection<'a, C> for &'a Point<C> {
    type Point = &'a C;
    type IntoIter = std::iter::Once<&'a C>;

    fn point_iter(self) -> Self::IntoIter {
        std::iter::once(&self.at)
    }
}

impl<'a, C: 'a> PointCollection<'a, C> for &'a Line<C> {
    type Point = &'a C;
    type IntoIter = &'a [C];

    fn point_iter(self) -> Self::IntoIter {
        &self.through
    }
}

impl<B: DrawingBackend, C> Drawable<B> for Point<C> {
    fn draw<I: Iterator<Item = BackendCoord>>(
        &self,
        mut at: I,
        backend: &mut B,
        _: (u32, u32),
    ) -> Result<(), DrawingErrorKind<B::ErrorType>> {
        const SQUARE: [(i32, i32); 4] = [(-7, -7), (7, -7), (7, 7), (-7, 7)];
        const TRIANGLE: [(i32, i32); 3] = [(0, -10), (9, 6), (-9, 6)];
        const DOWN: [(i32, i32); 3] = [(0, 10), (9, -6), (-9, -6)];
        const DIAMOND: [(i32, i32); 4] = [(0, -10), (10, 0), (0, 10), (-10, 0)];
        let Some((x, y)) = at.next() else { return Ok(()) };
        let r = self.radius as i32;
        let around = |corners: &[(i32, i32)]| -> Vec<BackendCoord> {
            corners.iter().map(|(dx, dy)| (x + dx * r / 8, y + dy * r / 8)).collect()
        };
        let closed = |corners: &[(i32, i32)]| around(&[corners, &corners[..1]].concat());
        let line = self.color.stroke_width(px(1).max(self.radius / 3));
        match self.marker {
            Marker::Circle => backend.draw_circle((x, y), self.radius, &self.color, true),
            Marker::Ring => backend.draw_circle((x, y), self.radius, &line, false),
            Marker::Square => backend.fill_polygon(around(&SQUARE), &self.color),
            Marker::Triangle => backend.fill_polygon(around(&TRIANGLE), &self.color),
            Marker::TriangleDown => backend.fill_polygon(around(&DOWN), &self.color),
            Marker::Diamond => backend.fill_polygon(around(&DIAMOND), &self.color),
            Marker::Frame => backend.draw_path(closed(&SQUARE), &line),
            Marker::HollowTriangle => backend.draw_path(closed(&TRIANGLE), &line),
        }
    }
}

impl<B: DrawingBackend, C> Drawable<B> for Line<C> {
    fn draw<I: Iterator<Item = BackendCoord>>(
        &self,
        through: I,
        backend: &mut B,
        size: (u32, u32),
    ) -> Result<(), DrawingErrorKind<B::ErrorType>> {
        match self.dash.0 {
            None => backend.draw_path(through, &self.style),
            Some((dash, gap)) => {
                let none = std::iter::empty::<BackendCoord>();
                DashedPathElement::new(none, px(dash), px(gap), self.style).draw(through, backend, size)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Linear light of a colour.
    fn linear(RGBColor(r, g, b): RGBColor) -> [f64; 3] {
        [r, g, b].map(|v| {
            let v = f64::from(v) / 255.0;
            if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        })
    }

    fn apply(matrix: &[[f64; 3]; 3], v: [f64; 3]) -> [f64; 3] {
        matrix.map(|row| row.iter().zip(v).map(|(a, b)| a * b).sum())
    }

    /// CIE L*a*b* under D65.
    fn lab(linear: [f64; 3]) -> [f64; 3] {
        const XYZ: [[f64; 3]; 3] = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]];
        let [x, y, z] = apply(&XYZ, linear);
        let f = |t: f64| if t > 216.0 / 24389.0 { t.cbrt() } else { t * 841.0 / 108.0 + 4.0 / 29.0 };
        let [x, y, z] = [f(x / 0.9505), f(y), f(z / 1.089)];
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    /// What a reader without red, without green and without blue cones sees of linear light: Machado, Oliveira and
    /// Fernandes (2009), severity 1.
    const EYES: [[[f64; 3]; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    ];

    #[test]
    fn every_eye_tells_the_colours_apart() {
        for (eye, matrix) in EYES.iter().enumerate() {
            let seen: Vec<_> =
                COLORS.iter().map(|c| lab(apply(matrix, linear(*c)).map(|v| v.clamp(0.0, 1.0)))).collect();
            for a in 0..seen.len() {
                for b in 0..a {
                    let distance = seen[a].iter().zip(seen[b]).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
                    assert!(distance > 10.0, "eye {eye}, {a} and {b}: {distance}");
                }
                assert!(seen[a][0] < 80.0, "eye {eye}: colour {a} is too pale on white");
            }
        }
    }

    #[test]
    fn looks_do_not_run_out() {
        let points: HashSet<_> = (0..168).map(|i| (rgb(series(i).color), series(i).marker)).collect();
        let lines: HashSet<_> = (0..84).map(|i| (rgb(series(i).color), series(i).dash)).collect();
        assert_eq!((points.len(), lines.len()), (168, 84));
        series(usize::MAX);
    }

    fn rgb(RGBColor(r, g, b): RGBColor) -> [u8; 3] {
        [r, g, b]
    }
}
