//! Strokes to pixels: every pixel's distance to the nearest stroke decides how much ink it gets.

use super::skeleton::Point;

/// Side of an image, in pixels.
pub(super) const SIDE: usize = 28;

/// Ink in [0, 1], row by row.
pub(super) type Ink = [f64; SIDE * SIDE];

/// How a line is drawn; lengths in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pen {
    /// Half the width of the line.
    pub radius: f64,
    /// Width of the soft edge between ink and paper: 1 is plain anti-aliasing, more looks blurred.
    pub edge: f64,
    /// Ink at the middle of the line, in [0, 1].
    pub ink: f64,
}

/// Draws straight pieces (points in pixels) over what is there: the darker of both stays.
pub(super) fn draw(image: &mut Ink, points: &[Point], pen: Pen) {
    let reach = pen.radius + pen.edge;
    for ends in points.windows(2) {
        let (a, b) = (ends[0], ends[1]);
        for row in span(a.1, b.1, reach) {
            for column in span(a.0, b.0, reach) {
                let d = distance((column as f64 + 0.5, row as f64 + 0.5), a, b);
                let t = (0.5 + (pen.radius - d) / pen.edge).clamp(0.0, 1.0);
                let pixel = &mut image[row * SIDE + column];
                // The smooth step looks like a Gaussian blur of a sharp edge.
                *pixel = pixel.max(pen.ink * t * t * (3.0 - 2.0 * t));
            }
        }
    }
}

/// The pixels of one axis within reach of a piece.
fn span(a: f64, b: f64, reach: f64) -> std::ops::Range<usize> {
    let lo = (a.min(b) - reach).floor().clamp(0.0, SIDE as f64);
    let hi = (a.max(b) + reach).ceil().clamp(0.0, SIDE as f64);
    lo as usize..hi as usize
}

fn distance(p: Point, a: Point, b: Point) -> f64 {
    let (dx, dy) = (b.0 - a.0, b.1 - a.1);
    let length2 = dx * dx + dy * dy;
    let along = if length2 > 0.0 { (((p.0 - a.0) * dx + (p.1 - a.1) * dy) / length2).clamp(0.0, 1.0) } else { 0.0 };
    (p.0 - a.0 - along * dx).hypot(p.1 - a.1 - along * dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_width_and_ink() {
        let mut image = [0.0; SIDE * SIDE];
        draw(&mut image, &[(4.0, 14.0), (24.0, 14.0)], Pen { radius: 1.5, edge: 1.0, ink: 0.8 });
        let column: f64 = (0..SIDE).map(|row| image[row * SIDE + 14]).sum();
        assert!((column - 2.0 * 1.5 * 0.8).abs() < 1e-9, "{column}");
        assert_eq!(image[14 * SIDE + 14], 0.8);
        assert_eq!(image[14 * SIDE], 0.0);
    }

    #[test]
    fn drawing_outside_is_cut_off() {
        let mut image = [0.0; SIDE * SIDE];
        draw(&mut image, &[(-50.0, -50.0), (-40.0, -45.0)], Pen { radius: 2.0, edge: 1.0, ink: 1.0 });
        assert!(image.iter().all(|&p| p == 0.0));
        draw(&mut image, &[(-50.0, 3.0), (80.0, 3.0)], Pen { radius: 2.0, edge: 1.0, ink: 1.0 });
        assert!(image[2 * SIDE] == 1.0 && image[3 * SIDE + 27] == 1.0);
    }

    #[test]
    fn a_point_is_a_dot() {
        let mut image = [0.0; SIDE * SIDE];
        draw(&mut image, &[(10.0, 10.0), (10.0, 10.0)], Pen { radius: 1.0, edge: 1.0, ink: 1.0 });
        assert!(image.iter().all(|p| p.is_finite()) && image[10 * SIDE + 10] > 0.5);
    }
}
