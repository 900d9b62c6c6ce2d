//! Bilinear resizing as OpenCV does it for 8-bit images (INTER_LINEAR): pixel centres at halves, weights of 11 bits,
//! borders repeated. Nothing is averaged when an image shrinks: four pixels make one, however small it gets. The result
//! is OpenCV's bit for bit.

use lgm_core::memory;
use lgm_cpu::vectorized;

use super::{BadImage, Raster};
use crate::pixels::Extent;

/// Bits of a weight.
const BITS: u32 = 11;

/// Index of the left neighbour, of the right one, weight of the left, of the right.
type Sample = (usize, usize, i32, i32);

/// Where the samples of one axis lie: the two neighbours of each, and their weights.
struct Axis {
    samples: Vec<Sample>,
}

impl Axis {
    /// The samples of an axis of `from` pixels brought to `to`. What lies before the first pixel, or after the last, is that
    /// pixel; OpenCV then gives it all the weight in a row (`whole`), and in a column lets it stand for both neighbours.
    fn new(from: usize, to: usize, whole: bool) -> Result<Self, BadImage> {
        let mut samples = memory::room(to, "the weights of a resized image").map_err(BadImage::Memory)?;
        let scale = from as f64 / to as f64;
        let last = from.saturating_sub(1) as i64;
        samples.extend((0..to).map(|i| {
            let at = ((i as f64 + 0.5) * scale - 0.5) as f32;
            let left = at.floor();
            let (part, left) = (at - left, left as i64);
            let part = if whole && !(0..last).contains(&left) { 0.0 } else { part };
            let weight = |part: f32| (part * (1 << BITS) as f32).round_ties_even() as i32;
            let inside = |i: i64| i.clamp(0, last) as usize;
            (inside(left), inside(left.saturating_add(1)), weight(1.0 - part), weight(part))
        }));
        Ok(Axis { samples })
    }
}

impl Raster {
    /// The image at another size; none of the extents is zero.
    pub fn resized(&self, height: usize, width: usize) -> Result<Raster, BadImage> {
        self.part_resized((0, 0), (self.extent.height, self.extent.width), height, width)
    }

    /// A window of the image, its corner and size (top or height first) inside, at another size.
    pub fn part_resized(
        &self,
        (top, left): (usize, usize),
        (rows, columns): (usize, usize),
        height: usize,
        width: usize,
    ) -> Result<Raster, BadImage> {
        let Extent { channels, width: stride, .. } = self.extent;
        let mut out = Raster::zeros(Extent { channels, height, width })?;
        let (down, across) = (Axis::new(rows, height, false)?, Axis::new(columns, width, true)?);
        let row_len = lgm_core::count(&[width, channels]);
        let row = |y: usize| {
            let start = top.saturating_add(y).saturating_mul(stride).saturating_add(left).saturating_mul(channels);
            &self.data[start..start.saturating_add(columns.saturating_mul(channels))]
        };
        // The two rows in use, resized across; which rows they are.
        let buffer = || memory::zeros::<i32>(row_len, "a row of a resized image").map_err(BadImage::Memory);
        let (mut upper, mut lower) = ((usize::MAX, buffer()?), (usize::MAX, buffer()?));
        for (out, &(above, below, a, b)) in out.data.chunks_exact_mut(row_len.max(1)).zip(&down.samples) {
            if upper.0 != above {
                if lower.0 == above {
                    std::mem::swap(&mut upper, &mut lower);
                } else {
                    across_row(row(above), channels, &across, &mut upper.1);
                    upper.0 = above;
                }
            }
            if lower.0 != below {
                across_row(row(below), channels, &across, &mut lower.1);
                lower.0 = below;
            }
            blend(&upper.1, &lower.1, a, b, out);
        }
        Ok(out)
    }
}

/// One row, resized across, its values times 2¹¹.
fn across_row(row: &[u8], channels: usize, across: &Axis, out: &mut [i32]) {
    match channels {
        1 => across_pixels::<1>(row, &across.samples, out.as_chunks_mut().0),
        3 => across_pixels::<3>(row, &across.samples, out.as_chunks_mut().0),
        4 => across_pixels::<4>(row, &across.samples, out.as_chunks_mut().0),
        _ => {
            for (out, &(left, right, a, b)) in out.chunks_exact_mut(channels.max(1)).zip(&across.samples) {
                let [left, right] = [left, right].map(|i| &row[i.saturating_mul(channels)..]);
                let values = left.iter().zip(right).map(|(&l, &r)| weighed(l, r, a, b));
                out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
            }
        }
    }
}

vectorized! {
    /// One row of pixels of `N` values, at most four.
    fn across_pixels[const N: usize](row: &[u8], samples: &[Sample], out: &mut [[i32; N]]) {
        let (pixels, _) = row.as_chunks::<N>();
        for (out, &(left, right, a, b)) in out.iter_mut().zip(samples) {
            let both = row.get(left.wrapping_mul(N)..).and_then(|from| from.first_chunk::<8>());
            *out = match both {
                // Read at once, and four values computed whatever N is, which makes vectors.
                Some(both) if right.wrapping_sub(left) == 1 => {
                    let four: [i32; 4] = std::array::from_fn(|c| weighed(both[c], both[c.wrapping_add(N) & 7], a, b));
                    std::array::from_fn(|c| four[c & 3])
                }
                _ => std::array::from_fn(|c| weighed(pixels[left][c], pixels[right][c], a, b)),
            };
        }
    }
}

#[inline(always)]
fn weighed(left: u8, right: u8, a: i32, b: i32) -> i32 {
    // At most 255 · 2¹¹ together.
    i32::from(left).wrapping_mul(a).wrapping_add(i32::from(right).wrapping_mul(b))
}

vectorized! {
    /// The weighted sum of two rows in 8 bits, rounded where OpenCV rounds.
    fn blend[](upper: &[i32], lower: &[i32], a: i32, b: i32, out: &mut [u8]) {
        for ((out, &u), &l) in out.iter_mut().zip(upper).zip(lower) {
            let sum = ((u >> 4).wrapping_mul(a) >> 16).wrapping_add((l >> 4).wrapping_mul(b) >> 16);
            *out = (sum.wrapping_add(2) >> 2).clamp(0, 255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::Recorded;

    use super::*;

    fn raster(recorded: &Recorded, name: &str) -> Raster {
        let (shape, values) = recorded.array(name).unwrap();
        let extent = Extent { height: shape[0], width: shape[1], channels: shape[2] };
        Raster { extent, data: values.iter().map(|&v| v as u8).collect() }
    }

    #[test]
    fn sizes_are_opencvs() {
        let recorded = Recorded::golden("images/opencv");
        let names: Vec<&str> = recorded.names().filter(|name| name.contains("resized_")).collect();
        assert_eq!(names.len(), 14);
        for name in names {
            let picture = raster(&recorded, if name.starts_with("gray") { "gray_picture" } else { "picture" });
            let want = raster(&recorded, name);
            let got = picture.resized(want.extent.height, want.extent.width).unwrap();
            assert!(got == want, "{name}");
        }
    }

    #[test]
    fn a_window_is_resized_as_the_image_it_shows() {
        let picture = raster(&Recorded::golden("images/opencv"), "picture");
        let (top, left, rows, columns) = (3, 5, 11, 17);
        let mut shown = Raster::zeros(Extent { channels: 3, height: rows, width: columns }).unwrap();
        for (y, row) in shown.data.chunks_exact_mut(columns * 3).enumerate() {
            let start = ((top + y) * picture.extent.width + left) * 3;
            row.copy_from_slice(&picture.data[start..start + columns * 3]);
        }
        assert_eq!(picture.part_resized((top, left), (rows, columns), 8, 30).unwrap(), shown.resized(8, 30).unwrap());
        let two = Raster { extent: Extent { channels: 2, height: 1, width: 2 }, data: vec![0, 100, 50, 200] };
        assert_eq!(two.resized(1, 1).unwrap().data, [25, 150]);
    }
}
