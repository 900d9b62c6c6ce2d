//! The two generations and the two precisions of a stored array.

use std::borrow::Cow;

use crate::{BlobProto, BlobShape, Error, Result};

impl BlobProto {
    /// An array of `f32` values with its shape, outermost extent first.
    pub fn from_f32(shape: &[usize], data: Vec<f32>, diff: Option<Vec<f32>>) -> Self {
        BlobProto { shape: Some(shape_of(shape)), data, diff: diff.unwrap_or_default(), ..Default::default() }
    }

    /// An array of `f64` values with its shape, outermost extent first.
    pub fn from_f64(shape: &[usize], data: Vec<f64>, diff: Option<Vec<f64>>) -> Self {
        let double_diff = diff.unwrap_or_default();
        BlobProto { shape: Some(shape_of(shape)), double_data: data, double_diff, ..Default::default() }
    }

    /// Whether the shape is in the four fields that files had before `shape`.
    pub fn is_legacy(&self) -> bool {
        [self.num, self.channels, self.height, self.width].iter().any(Option::is_some)
    }

    /// The shape, outermost extent first; always four extents in legacy files. Empty for a scalar.
    ///
    /// # Errors
    /// [`Error::Blob`] for a negative extent, or more elements than this machine can count.
    pub fn extents(&self) -> Result<Vec<usize>> {
        let extents: Vec<i64> = if self.is_legacy() {
            [self.num(), self.channels(), self.height(), self.width()].map(i64::from).to_vec()
        } else {
            self.shape.as_ref().map(|shape| shape.dim.clone()).unwrap_or_default()
        };
        let usable: Option<Vec<usize>> = extents.iter().map(|&extent| usize::try_from(extent).ok()).collect();
        usable
            .filter(|extents| extents.iter().try_fold(1_usize, |count, &extent| count.checked_mul(extent)).is_some())
            .ok_or_else(|| Error::Blob { what: format!("expected a shape of extents from 0, found {extents:?}") })
    }

    /// Whether the array can be loaded into a blob of this shape. A legacy array's four extents are compared with the
    /// shape's from the innermost outward, and the missing ones count as 1.
    pub fn fits(&self, shape: &[usize]) -> bool {
        let Ok(extents) = self.extents() else { return false };
        if !self.is_legacy() {
            return extents == shape;
        }
        let missing = extents.len().checked_sub(shape.len());
        missing.is_some_and(|missing| extents[..missing].iter().all(|&one| one == 1) && extents[missing..] == *shape)
    }

    /// The values in `f32`, from whichever precision is stored.
    ///
    /// # Errors
    /// [`Error::Blob`] if their number is not the shape's.
    pub fn values_f32(&self) -> Result<Cow<'_, [f32]>> {
        self.checked(narrowed(&self.data, &self.double_data), "values")
    }

    /// The values in `f64`, from whichever precision is stored.
    ///
    /// # Errors
    /// [`Error::Blob`] if their number is not the shape's.
    pub fn values_f64(&self) -> Result<Cow<'_, [f64]>> {
        self.checked(widened(&self.data, &self.double_data), "values")
    }

    /// The gradients in `f32`; `None` if none are stored.
    ///
    /// # Errors
    /// [`Error::Blob`] if their number is not the shape's.
    pub fn gradients_f32(&self) -> Result<Option<Cow<'_, [f32]>>> {
        let gradients = narrowed(&self.diff, &self.double_diff);
        if gradients.is_empty() { Ok(None) } else { self.checked(gradients, "gradients").map(Some) }
    }

    /// The gradients in `f64`; `None` if none are stored.
    ///
    /// # Errors
    /// [`Error::Blob`] if their number is not the shape's.
    pub fn gradients_f64(&self) -> Result<Option<Cow<'_, [f64]>>> {
        let gradients = widened(&self.diff, &self.double_diff);
        if gradients.is_empty() { Ok(None) } else { self.checked(gradients, "gradients").map(Some) }
    }

    /// Fails unless there are as many values as the shape says.
    ///
    /// # Errors
    /// [`Error::Blob`].
    pub fn check_values(&self) -> Result<()> {
        let found = if self.double_data.is_empty() { self.data.len() } else { self.double_data.len() };
        self.check_count(found, "values")
    }

    /// Writes the values to `out`, from whichever precision is stored.
    ///
    /// # Errors
    /// [`Error::Blob`] if their number is not the shape's or that of `out`.
    pub fn copy_to_f32(&self, out: &mut [f32]) -> Result<()> {
        self.copy(out, |value| value, |value| value as f32)
    }

    /// Writes the values to `out`, from whichever precision is stored.
    ///
    /// # Errors
    /// [`Error::Blob`] if their number is not the shape's or that of `out`.
    pub fn copy_to_f64(&self, out: &mut [f64]) -> Result<()> {
        self.copy(out, f64::from, |value| value)
    }

    /// Double precision wins where both are stored, as in Caffe.
    fn copy<T>(&self, out: &mut [T], single: impl Fn(f32) -> T, double: impl Fn(f64) -> T) -> Result<()> {
        self.check_values()?;
        let found = if self.double_data.is_empty() { self.data.len() } else { self.double_data.len() };
        if found != out.len() {
            return Err(Error::Blob { what: format!("expected {} values, found {found}", out.len()) });
        }
        match self.double_data.is_empty() {
            true => out.iter_mut().zip(&self.data).for_each(|(out, &value)| *out = single(value)),
            false => out.iter_mut().zip(&self.double_data).for_each(|(out, &value)| *out = double(value)),
        }
        Ok(())
    }

    fn checked<'a, T: Clone>(&self, values: Cow<'a, [T]>, what: &str) -> Result<Cow<'a, [T]>> {
        self.check_count(values.len(), what)?;
        Ok(values)
    }

    fn check_count(&self, found: usize, what: &str) -> Result<()> {
        let extents = self.extents()?;
        // The extents' product has been checked with them.
        let count: usize = extents.iter().fold(1, |count, &extent| count.saturating_mul(extent));
        if found == count {
            return Ok(());
        }
        Err(Error::Blob { what: format!("expected {count} {what} for shape {extents:?}, found {found}") })
    }
}

fn shape_of(shape: &[usize]) -> BlobShape {
    BlobShape { dim: shape.iter().map(|&extent| extent as i64).collect() }
}

/// Double precision wins where both are stored, as in Caffe.
fn narrowed<'a>(single: &'a [f32], double: &[f64]) -> Cow<'a, [f32]> {
    if double.is_empty() { Cow::Borrowed(single) } else { double.iter().map(|&value| value as f32).collect() }
}

fn widened<'a>(single: &[f32], double: &'a [f64]) -> Cow<'a, [f64]> {
    if double.is_empty() { single.iter().map(|&value| f64::from(value)).collect() } else { Cow::Borrowed(double) }
}
