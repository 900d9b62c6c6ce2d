//! The shapes of the ten digits as strokes, several ways of writing each.
//!
//! Coordinates: the glyph stands in −1 ≤ y ≤ 1 with y downwards, and in about −0.6 ≤ x ≤ 0.6.

/// A point of a glyph.
pub(super) type Point = (f64, f64);

/// One stroke of the pen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stroke {
    /// Straight pieces between points.
    Line(&'static [Point]),
    /// A smooth curve through points.
    Curve(&'static [Point]),
    /// A smooth closed curve through points.
    Loop(&'static [Point]),
}

use Stroke::{Curve, Line, Loop};

/// One way to write a digit.
pub(super) type Skeleton = &'static [Stroke];

/// Eight points round an ellipse.
const fn ellipse(center: Point, rx: f64, ry: f64) -> [Point; 8] {
    const D: f64 = std::f64::consts::FRAC_1_SQRT_2;
    let (x, y) = center;
    [
        (x, y - ry),
        (x + D * rx, y - D * ry),
        (x + rx, y),
        (x + D * rx, y + D * ry),
        (x, y + ry),
        (x - D * rx, y + D * ry),
        (x - rx, y),
        (x - D * rx, y - D * ry),
    ]
}

const ZERO: [Point; 8] = ellipse((0.0, 0.0), 0.52, 0.95);
const EIGHT_UPPER: [Point; 8] = ellipse((0.0, -0.49), 0.38, 0.45);
const EIGHT_LOWER: [Point; 8] = ellipse((0.0, 0.46), 0.48, 0.49);
const NINE_HEAD: [Point; 8] = ellipse((-0.02, -0.45), 0.44, 0.48);

/// The ways to write each digit.
pub(super) const DIGITS: [&[Skeleton]; 10] = [
    &[&[Loop(&ZERO)]],
    &[
        &[Line(&[(0.0, -0.95), (0.0, 0.95)])],
        &[Line(&[(-0.34, -0.55), (0.06, -0.95), (0.06, 0.95)])],
        &[Line(&[(-0.3, -0.6), (0.04, -0.95), (0.04, 0.93)]), Line(&[(-0.36, 0.93), (0.42, 0.93)])],
    ],
    &[
        &[
            Curve(&[
                (-0.5, -0.52),
                (-0.26, -0.88),
                (0.2, -0.9),
                (0.47, -0.5),
                (0.26, 0.0),
                (-0.16, 0.46),
                (-0.54, 0.92),
            ]),
            Line(&[(-0.54, 0.92), (0.55, 0.92)]),
        ],
        &[Curve(&[
            (-0.46, -0.6),
            (-0.1, -0.93),
            (0.4, -0.66),
            (0.3, -0.12),
            (-0.1, 0.42),
            (-0.48, 0.86),
            (-0.36, 0.62),
            (0.1, 0.84),
            (0.58, 0.86),
        ])],
    ],
    &[
        &[
            Curve(&[(-0.5, -0.72), (-0.08, -0.94), (0.4, -0.7), (0.34, -0.28), (-0.1, -0.06)]),
            Curve(&[(-0.1, -0.06), (0.38, 0.12), (0.5, 0.54), (0.12, 0.92), (-0.5, 0.76)]),
        ],
        &[
            Line(&[(-0.46, -0.92), (0.44, -0.92), (-0.06, -0.18)]),
            Curve(&[(-0.06, -0.18), (0.4, 0.02), (0.48, 0.54), (0.1, 0.92), (-0.5, 0.76)]),
        ],
    ],
    &[
        &[Line(&[(-0.34, -0.9), (-0.5, 0.16), (0.56, 0.16)]), Line(&[(0.24, -0.5), (0.22, 0.95)])],
        &[Line(&[(0.2, 0.95), (0.2, -0.94), (-0.56, 0.32), (0.6, 0.32)])],
    ],
    &[
        &[
            Line(&[(0.5, -0.92), (-0.38, -0.92), (-0.46, -0.1)]),
            Curve(&[(-0.46, -0.1), (0.02, -0.26), (0.48, 0.1), (0.46, 0.6), (0.04, 0.93), (-0.5, 0.76)]),
        ],
        &[
            Line(&[(-0.36, -0.92), (-0.42, -0.14)]),
            Curve(&[(-0.42, -0.14), (0.06, -0.22), (0.46, 0.16), (0.42, 0.64), (0.0, 0.93), (-0.48, 0.8)]),
            Line(&[(-0.36, -0.92), (0.52, -0.95)]),
        ],
    ],
    &[
        &[Curve(&[
            (0.42, -0.9),
            (-0.1, -0.66),
            (-0.44, -0.1),
            (-0.46, 0.5),
            (-0.1, 0.94),
            (0.36, 0.78),
            (0.44, 0.34),
            (0.08, 0.04),
            (-0.38, 0.3),
        ])],
        &[Curve(&[
            (0.12, -0.95),
            (-0.24, -0.5),
            (-0.46, 0.1),
            (-0.38, 0.7),
            (0.04, 0.95),
            (0.42, 0.62),
            (0.34, 0.16),
            (-0.06, 0.06),
            (-0.42, 0.4),
        ])],
    ],
    &[
        &[Line(&[(-0.5, -0.9), (0.5, -0.9), (-0.08, 0.95)])],
        &[Line(&[(-0.5, -0.9), (0.5, -0.9), (-0.1, 0.95)]), Line(&[(-0.22, 0.0), (0.42, 0.0)])],
        &[
            Line(&[(-0.5, -0.66), (-0.46, -0.92), (0.5, -0.9)]),
            Curve(&[(0.5, -0.9), (0.16, -0.3), (-0.02, 0.3), (-0.06, 0.95)]),
        ],
    ],
    &[
        &[Loop(&EIGHT_UPPER), Loop(&EIGHT_LOWER)],
        &[Loop(&[
            (0.38, -0.74),
            (-0.02, -0.95),
            (-0.4, -0.6),
            (-0.18, -0.16),
            (0.3, 0.16),
            (0.46, 0.6),
            (0.0, 0.95),
            (-0.46, 0.6),
            (-0.28, 0.16),
            (0.22, -0.2),
        ])],
    ],
    &[
        &[Loop(&NINE_HEAD), Curve(&[(0.42, -0.45), (0.42, 0.1), (0.3, 0.95)])],
        &[Loop(&NINE_HEAD), Curve(&[(0.42, -0.45), (0.4, 0.36), (0.08, 0.9), (-0.38, 0.8)])],
        &[Loop(&NINE_HEAD), Line(&[(0.42, -0.6), (0.4, 0.95)])],
    ],
];

/// Pieces that each span of a curve is cut into.
const PIECES: usize = 6;

impl Stroke {
    /// The stroke as straight pieces, each control point moved by `place` once.
    pub fn pieces(&self, place: impl FnMut(Point) -> Point) -> Vec<Point> {
        match self {
            Line(points) => points.iter().copied().map(place).collect(),
            Curve(points) => {
                let points: Vec<Point> = points.iter().copied().map(place).collect();
                let last = points.len() - 1;
                smooth(last, |i| points[i.saturating_sub(1).min(last)])
            }
            Loop(points) => {
                let points: Vec<Point> = points.iter().copied().map(place).collect();
                let n = points.len();
                smooth(n, |i| points[(i + n - 1) % n])
            }
        }
    }
}

/// A Catmull–Rom curve of so many spans; span `s` runs from point `s + 1` to `s + 2`.
fn smooth(spans: usize, point: impl Fn(usize) -> Point) -> Vec<Point> {
    let mut out = vec![point(1)];
    for span in 0..spans {
        let [a, b, c, d] = [point(span), point(span + 1), point(span + 2), point(span + 3)];
        for piece in 1..=PIECES {
            let t = piece as f64 / PIECES as f64;
            let at = |a: f64, b: f64, c: f64, d: f64| {
                b + 0.5 * t * (c - a + t * (2.0 * a - 5.0 * b + 4.0 * c - d + t * (3.0 * (b - c) + d - a)))
            };
            out.push((at(a.0, b.0, c.0, d.0), at(a.1, b.1, c.1, d.1)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_pass_through_their_points() {
        let points = &[(0.0, 0.0), (1.0, 2.0), (3.0, -1.0)];
        let open = Curve(points).pieces(|p| p);
        assert_eq!(open.len(), 2 * PIECES + 1);
        let near = |a: Point, b: Point| (a.0 - b.0).abs() + (a.1 - b.1).abs() < 1e-12;
        for (i, &p) in points.iter().enumerate() {
            assert!(near(open[i * PIECES], p), "{p:?}");
        }
        let closed = Loop(points).pieces(|p| p);
        assert_eq!(closed.len(), 3 * PIECES + 1);
        assert!(near(closed[0], points[0]) && near(closed[3 * PIECES], points[0]));
        assert!(near(closed[2 * PIECES], points[2]));
    }

    #[test]
    fn glyphs_stay_in_their_box() {
        for (sign, ways) in DIGITS.iter().chain(&super::super::letters::LETTERS).enumerate() {
            for p in ways.iter().flat_map(|w| w.iter()).flat_map(|s| s.pieces(|p| p)) {
                assert!(p.0.abs() < 0.65 && p.1.abs() < 1.03, "{sign} leaves its box at {p:?}");
            }
        }
    }
}
