//! Shapes that a prototxt gives.

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
