//! Anchors: the boxes that a region proposal network predicts from, and predictions as offsets from them.

use lgm_core::{Error, Float, Result, ensure};

use super::boxes::Corners;

/// What Faster R-CNN was published with: ratios of height to width, and scales.
const RATIOS: [f32; 3] = [0.5, 1.0, 2.0];
const SCALES: [f32; 3] = [8.0, 16.0, 32.0];

/// The anchors of a map, whose positions are `feat_stride` pixels of the image apart: about as large as a square of `base_size` times
/// a scale, in each ratio of height to width.
#[derive(Clone, Debug)]
pub(super) struct Anchors {
    /// Around the first position, by ratio and then by scale.
    first: Vec<Corners<f64>>,
    stride: f64,
}

impl Anchors {
    /// The anchors that a message asks for; those of the paper where it names no ratio or no scale. `message` is its name.
    ///
    /// # Errors
    /// When a number is not positive.
    pub fn new(message: &str, stride: i32, base_size: u32, ratio: &[f32], scale: &[f32]) -> Result<Anchors> {
        ensure!(stride > 0, "{message} needs a feat_stride of at least 1, found {stride}");
        ensure!(base_size > 0, "base_size must be at least 1");
        let given = |name, values: &[f32], paper: [f32; 3]| {
            let wrong = values.iter().find(|v| !(v.is_finite() && **v > 0.0));
            match wrong {
                Some(wrong) => Err(Error::config(format!("every {name} must be a positive number, found {wrong}"))),
                None if values.is_empty() => Ok(paper.to_vec()),
                None => Ok(values.to_vec()),
            }
        };
        let (ratio, scale) = (given("ratio", ratio, RATIOS)?, given("scale", scale, SCALES)?);
        let base = f64::from(base_size);
        let center = 0.5 * (base - 1.0);
        let of = |ratio: f32, scale: f32| {
            let width = (base * base / f64::from(ratio)).sqrt().round();
            let height = (width * f64::from(ratio)).round();
            let [w, h] = [width, height].map(|side| 0.5 * (side * f64::from(scale) - 1.0));
            [center - w, center - h, center + w, center + h]
        };
        let first = ratio.iter().flat_map(|&ratio| scale.iter().map(move |&scale| of(ratio, scale))).collect();
        Ok(Anchors { first, stride: stride.into() })
    }

    /// Anchors of a position.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Those around the first position, and how far apart positions are, as kernels take them.
    pub fn of_first(&self) -> (Vec<f32>, u32) {
        (self.first.iter().flatten().map(|&v| v as f32).collect(), self.stride as u32)
    }

    /// Those around a position of a map that is `width` wide, by its number.
    pub fn around<T: Float>(&self, position: usize, width: usize) -> impl Iterator<Item = Corners<T>> + '_ {
        let [y, x] = [position / width, position % width].map(|n| n as f64 * self.stride);
        self.first.iter().map(move |[x1, y1, x2, y2]| [x1 + x, y1 + y, x2 + x, y2 + y].map(T::of))
    }
}

/// The predictions that move `from` to `to`: its centre in units of the sides of `from`, and the logarithms of the sides' quotients. The
/// last pixels belong to the boxes.
pub(super) fn offsets<T: Float>(from: Corners<T>, to: Corners<T>) -> [T; 4] {
    let along = |i: usize| {
        let (side, other) = (from[i + 2] - from[i] + T::one(), to[i + 2] - to[i] + T::one());
        let center = |first: T, side: T| first + T::of(0.5) * side;
        ((center(to[i], other) - center(from[i], side)) / side, (other / side).ln())
    };
    let ((x, w), (y, h)) = (along(0), along(1));
    [x, y, w, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_anchors_are_those_of_the_paper() {
        let found = Anchors::new("", 16, 16, &[], &[]).unwrap();
        assert_eq!(found.len(), 9);
        assert_eq!(found.first[0], [-84.0, -40.0, 99.0, 55.0]);
        assert_eq!(found.first[4], [-120.0, -120.0, 135.0, 135.0]);
        assert_eq!(found.first[8], [-168.0, -344.0, 183.0, 359.0]);
        let of_one: Vec<Corners<f64>> = found.around(5, 4).collect();
        assert_eq!(of_one[4], [-104.0, -104.0, 151.0, 151.0], "the second position of the second row");
    }

    #[test]
    fn offsets_are_in_units_of_the_anchor() {
        let anchor: Corners<f64> = [10.0, 20.0, 19.0, 59.0];
        assert_eq!(offsets(anchor, anchor), [0.0; 4]);
        assert_eq!(offsets(anchor, [15.0, 20.0, 24.0, 59.0]), [0.5, 0.0, 0.0, 0.0]);
        assert_eq!(offsets(anchor, [5.0, 30.0, 24.0, 49.0]), [0.0, 0.0, 2f64.ln(), 0.5f64.ln()]);
    }
}
