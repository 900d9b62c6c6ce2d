//! Where a window lies in its image, and where it comes to lie in the result, as Caffe computes it in single precision.

use crate::window_file::Region;

/// What windows are brought to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    /// Height and width of the result.
    pub crop: usize,
    /// Pixels of the result that show surroundings, on every side.
    pub pad: usize,
    /// Whether windows are widened to squares.
    pub square: bool,
}

/// The part of an image that a window shows, and its place in the result; heights first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Warp {
    /// Top and left pixel of the part.
    pub corner: (usize, usize),
    /// Extents of the part.
    pub part: (usize, usize),
    /// Extents of the part in the result.
    pub height: usize,
    pub width: usize,
    /// Its first row and column there.
    pub top: usize,
    pub left: usize,
}

/// One axis of a window: its first and last pixel.
#[derive(Clone, Copy)]
struct Span {
    first: i64,
    last: i64,
}

/// One axis of the part of a window inside the image.
struct Inside {
    first: usize,
    len: usize,
    /// Its length in the result.
    warped: usize,
    /// Pixels of the result before and after it.
    before: usize,
    after: usize,
}

impl Span {
    fn half(self) -> f32 {
        (self.last - self.first + 1) as f32 / 2.0
    }

    /// The span around the same middle with `half` times `scale` on both sides.
    fn around(self, half: f32, scale: f32) -> Span {
        let middle = self.first as f32 + self.half();
        Span { first: (middle - half * scale).round() as i64, last: (middle + half * scale).round() as i64 }
    }

    /// The part inside an axis of `extent` pixels when the span is brought to `crop`.
    fn inside(self, extent: usize, crop: usize) -> Option<Inside> {
        let extent = extent as i64;
        let before = (-self.first).max(0);
        let after = (self.last - extent + 1).max(0);
        let (first, last) = (self.first + before, self.last - after);
        if last < first {
            return None;
        }
        let scale = crop as f32 / (self.last - self.first + 1) as f32;
        let warped = |pixels: i64| (pixels as f32 * scale).round() as usize;
        let len = last - first + 1;
        Some(Inside {
            first: first as usize,
            len: len as usize,
            warped: warped(len),
            before: warped(before),
            after: warped(after),
        })
    }
}

impl Warp {
    /// The warp of a window on an image of the given extents; none where they have no pixel in common, or where the window,
    /// without surroundings, is not inside.
    pub fn new(region: Region, side: Side, (height, width): (usize, usize), mirror: bool) -> Option<Warp> {
        let mut x = Span { first: region.x1.into(), last: region.x2.into() };
        let mut y = Span { first: region.y1.into(), last: region.y2.into() };
        let alone = side.pad == 0 && !side.square;
        if alone && (x.first < 0 || y.first < 0 || x.last >= width as i64 || y.last >= height as i64) {
            return None;
        }
        if !alone {
            let scale = side.crop as f32 / (side.crop - 2 * side.pad) as f32;
            let (mut high, mut wide) = (y.half(), x.half());
            if side.square {
                (high, wide) = (high.max(wide), high.max(wide));
            }
            (x, y) = (x.around(wide, scale), y.around(high, scale));
        }
        let (across, down) = (x.inside(width, side.crop)?, y.inside(height, side.crop)?);
        let (top, left) = (down.before, if mirror { across.after } else { across.before });
        let fit = |len: usize, before: usize| if alone { side.crop } else { len.min(side.crop.saturating_sub(before)) };
        Some(Warp {
            corner: (down.first, across.first),
            part: (down.len, across.len),
            height: fit(down.warped, top),
            width: fit(across.warped, left),
            top,
            left,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Side = Side { crop: 10, pad: 0, square: false };

    fn region(x1: i32, y1: i32, x2: i32, y2: i32) -> Region {
        Region { image: 0, line: 1, label: 1, x1, y1, x2, y2 }
    }

    #[test]
    fn a_window_alone_fills_the_result() {
        let warp = Warp::new(region(2, 3, 5, 7), ALONE, (20, 30), true).unwrap();
        assert_eq!(warp, Warp { corner: (3, 2), part: (5, 4), height: 10, width: 10, top: 0, left: 0 });
        assert_eq!(Warp::new(region(-1, 3, 5, 7), ALONE, (20, 30), false), None);
        assert_eq!(Warp::new(region(2, 3, 5, 20), ALONE, (20, 30), false), None);
    }

    #[test]
    fn surroundings_outside_the_image_are_padding() {
        // A window of 6 at the left border, with 2 pixels of 10 around it: from -2 on, twelve pixels with the last.
        let side = Side { pad: 2, ..ALONE };
        let at_border = region(0, 5, 5, 10);
        let warp = Warp::new(at_border, side, (20, 30), false).unwrap();
        assert_eq!(warp, Warp { corner: (3, 0), part: (11, 9), height: 10, width: 8, top: 0, left: 2 });
        let mirrored = Warp::new(at_border, side, (20, 30), true).unwrap();
        assert_eq!((mirrored.left, mirrored.width), (0, 8));
        assert_eq!(Warp::new(region(40, 0, 45, 5), side, (20, 30), false), None);
    }

    #[test]
    fn squares_are_as_wide_as_the_longer_side() {
        let warp = Warp::new(region(10, 8, 17, 9), Side { square: true, ..ALONE }, (20, 30), false).unwrap();
        assert_eq!((warp.corner, warp.part), ((5, 10), (9, 9)));
    }
}
