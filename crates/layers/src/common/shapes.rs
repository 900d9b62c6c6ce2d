//! Shapes and padding that a prototxt gives.

use lgm_core::{Error, Result, Shape, ensure};
use lgm_proto::BlobShape;

/// The shapes of `tops` tops from as many messages, or from one.
pub(crate) fn top_shapes(shapes: &[BlobShape], tops: usize) -> Result<Vec<Shape>> {
    ensure!(
        shapes.len() == 1 || shapes.len() == tops,
        "shape must be given once, or once for each of the {tops} tops; found {} times",
        shapes.len()
    );
    let shape = |s: &BlobShape| {
        let dims = s.dim.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
        let dims = dims.map_err(|_| Error::config(format!("shape {:?} has a negative extent", s.dim)))?;
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        ensure!(
            count.is_some_and(|n| n <= isize::MAX as usize / 8),
            "shape {dims:?} has more elements than memory can hold"
        );
        Ok(Shape::new(dims))
    };
    (0..tops).map(|t| shape(&shapes[if shapes.len() == 1 { 0 } else { t }])).collect()
}

/// Padding before and behind, of rows and of columns, as `pad_t`, `pad_b`, `pad_l` and `pad_r` give it; `None` where all are 0.
///
/// # Errors
/// When one is negative.
pub(crate) fn sides<N: Into<i64>>(given: [Option<N>; 4]) -> Result<Option<[[usize; 2]; 2]>> {
    let [top, bottom, left, right] = given.map(|pad| pad.map_or(0, Into::into));
    let pad = |value: i64| {
        usize::try_from(value).map_err(|_| Error::config(format!("padding must not be negative, found {value}")))
    };
    let sides = [[pad(top)?, pad(bottom)?], [pad(left)?, pad(right)?]];
    Ok((sides != [[0; 2]; 2]).then_some(sides))
}
