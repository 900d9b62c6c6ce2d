//! Blob shapes, with Caffe's axis rules.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fmt;
use std::ops::{Deref, Range};

use smallvec::SmallVec;

use crate::{DType, Error, Result};

/// The number of elements that extents span, `usize::MAX` standing for that and every greater number: no product of
/// extents wraps, and none that reaches it fits in memory.
pub fn count(extents: &[usize]) -> usize {
    if extents.contains(&0) {
        return 0;
    }
    extents.iter().fold(1, |count: usize, &extent| count.saturating_mul(extent))
}

/// The extents of a blob, outermost axis first. A shape with no axes is a scalar of one element.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Shape(SmallVec<[usize; 6]>);

impl Shape {
    /// A shape of the given extents.
    pub fn new(dims: impl IntoIterator<Item = usize>) -> Self {
        Shape(dims.into_iter().collect())
    }

    /// The shape of a loss: no axes, one element.
    pub fn scalar() -> Self {
        Shape::default()
    }

    /// Number of elements; see [`count`].
    pub fn count(&self) -> usize {
        count(&self.0)
    }

    /// Number of elements spanned by the axes in `range`, clipped to the axes there are.
    pub fn span(&self, range: Range<usize>) -> usize {
        count(&self.0[range.start.min(self.len())..range.end.min(self.len())])
    }

    /// Number of elements from `axis` to the innermost axis.
    pub fn count_from(&self, axis: usize) -> usize {
        self.span(axis..self.len())
    }

    /// The index of an axis that may count from the end (−1 is the innermost).
    ///
    /// # Errors
    /// When the axis lies outside the shape.
    pub fn axis(&self, axis: i32) -> Result<usize> {
        let n = self.len();
        let back = axis.unsigned_abs() as usize;
        let found = if axis < 0 { n.checked_sub(back) } else { Some(back).filter(|axis| *axis < n) };
        found.ok_or_else(|| Error::config(format!("axis {axis} is out of range for the {n}-axis shape {self}")))
    }

    /// The same extents with those in `range` replaced by `with`.
    pub fn splice(&self, range: Range<usize>, with: impl IntoIterator<Item = usize>) -> Shape {
        let mut dims: SmallVec<[usize; 6]> = self.0[..range.start].into();
        dims.extend(with);
        dims.extend_from_slice(&self.0[range.end..]);
        Shape(dims)
    }

    /// Caffe's wording of a shape: the extents, then the count, `64 20 24 24 (737280)`.
    pub fn caffe(&self) -> String {
        let dims: String = self.0.iter().map(|d| format!("{d} ")).collect();
        format!("{dims}({})", self.count())
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape(dims.into())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Shape(dims.into_iter().collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        write!(f, ")")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A blob around one of its axes, or a run of them: row-major elements of `outer` × `channels` × `inner`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Axes3 {
    /// Indices before.
    pub outer: usize,
    /// Indices of the axes themselves.
    pub channels: usize,
    /// Indices after.
    pub inner: usize,
}

impl Axes3 {
    /// A blob of outer × channels × inner elements.
    pub fn new(outer: usize, channels: usize, inner: usize) -> Axes3 {
        Axes3 { outer, channels, inner }
    }

    /// `shape` around the axes in `range`.
    pub fn around(shape: &Shape, range: Range<usize>) -> Axes3 {
        Axes3 {
            outer: shape.span(0..range.start),
            channels: shape.span(range.clone()),
            inner: shape.count_from(range.end),
        }
    }

    /// Number of elements; see [`count`].
    pub fn count(&self) -> usize {
        count(&[self.outer, self.channels, self.inner])
    }
}

/// What is known of a blob before it has memory: its shape and element type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobSpec {
    /// Extents.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl BlobSpec {
    /// A spec of the given shape and type.
    pub fn new(shape: impl Into<Shape>, dtype: DType) -> Self {
        BlobSpec { shape: shape.into(), dtype }
    }

    /// Bytes the elements take, `usize::MAX` at most.
    pub fn bytes(&self) -> usize {
        self.shape.count().saturating_mul(self.dtype.size())
    }

    /// Fails unless the elements could lie in memory one behind the other; `what` they are is for the message.
    ///
    /// # Errors
    /// When they take more bytes than an address can count.
    pub fn check(&self, what: &str) -> Result<()> {
        if self.bytes() <= isize::MAX as usize {
            return Ok(());
        }
        Err(Error::config(format!("{what} of shape {} has more elements than memory can hold", self.shape)))
    }

    /// The same element type with another shape.
    pub fn with_shape(&self, shape: impl Into<Shape>) -> BlobSpec {
        BlobSpec { shape: shape.into(), dtype: self.dtype }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_around_its_axes() {
        let shape = Shape::from([2, 3, 4, 5]);
        assert_eq!(Axes3::around(&shape, 1..2), Axes3::new(2, 3, 20));
        assert_eq!(Axes3::around(&shape, 1..3), Axes3::new(2, 12, 5));
        assert_eq!(Axes3::around(&shape, 0..0), Axes3::new(1, 1, 120));
        assert_eq!(Axes3::around(&shape, 0..4).count(), 120);
    }

    #[test]
    fn axes_count_from_both_ends() {
        let s = Shape::from([2, 3, 4]);
        assert_eq!(s.axis(-1).unwrap(), 2);
        assert_eq!(s.axis(0).unwrap(), 0);
        assert!(s.axis(3).is_err() && s.axis(-4).is_err());
        assert_eq!((s.count(), s.count_from(1), s.span(0..1), Shape::scalar().count()), (24, 12, 2, 1));
        assert_eq!(s.splice(1..3, [12]), Shape::from([2, 12]));
        assert_eq!(s.caffe(), "2 3 4 (24)");
    }

    #[test]
    fn no_number_of_elements_wraps() {
        let spec = |dims: &[usize]| BlobSpec::new(dims, DType::F32);
        for dims in [[1 << 32, 1 << 32, 1], [1 << 40, 1 << 40, 28], [usize::MAX, 3, 7]] {
            assert_eq!(spec(&dims).bytes(), usize::MAX);
            let error = spec(&dims).check("top 0").unwrap_err().to_string();
            assert!(error.contains("top 0") && error.contains("more elements than memory can hold"), "{error}");
        }
        // 2^64 + 28 elements, which a product that wraps takes for 28.
        assert_ne!(Shape::from([38113107590308991, 4, 11, 11]).count(), 28);
        assert_eq!(Shape::from([usize::MAX, usize::MAX, 0]).count(), 0);
        assert!(spec(&[1 << 61]).check("x").is_err() && spec(&[1 << 60]).check("x").is_ok());
    }
}
