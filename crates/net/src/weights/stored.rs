//! A layer's parameters as a file of weights has them.

use lgm_core::{Result, Shape};
use lgm_hdf5::H5Dataset;
use lgm_proto::BlobProto;

use crate::exec::Numbers;

/// A parameter as a file has it.
pub(super) enum Stored<'a> {
    Blob(&'a BlobProto),
    Dataset(H5Dataset),
    /// The number 1, whatever the file has.
    One,
}

impl Stored<'_> {
    /// The shape that the file gives it.
    ///
    /// # Errors
    /// When that is no shape.
    pub fn shape(&self) -> Result<Shape> {
        Ok(match self {
            Stored::Blob(blob) => Shape::from(blob.extents()?.as_slice()),
            Stored::Dataset(dataset) => dataset.shape().clone(),
            Stored::One => [1].into(),
        })
    }

    /// Whether it can be copied into a parameter of this shape.
    fn fits(&self, shape: &Shape) -> bool {
        match self {
            Stored::Blob(blob) => blob.fits(shape),
            Stored::Dataset(dataset) => dataset.shape() == shape,
            Stored::One => shape.count() == 1,
        }
    }

    /// Fails unless a blob has as many values as its shape says.
    ///
    /// # Errors
    /// That.
    pub fn check_values(&self) -> Result<()> {
        match self {
            Stored::Blob(blob) => Ok(blob.check_values()?),
            Stored::Dataset(_) | Stored::One => Ok(()),
        }
    }

    /// Copies the values.
    ///
    /// # Errors
    /// When they cannot be read, or are not as many.
    pub fn fill(&self, numbers: Numbers<'_>) -> Result<()> {
        match (self, numbers) {
            (Stored::Blob(blob), Numbers::F32(out)) => blob.copy_to_f32(out)?,
            (Stored::Blob(blob), Numbers::F64(out)) => blob.copy_to_f64(out)?,
            (Stored::Dataset(dataset), Numbers::F32(out)) => dataset.read_into(out)?,
            (Stored::Dataset(dataset), Numbers::F64(out)) => dataset.read_into(out)?,
            (Stored::One, Numbers::F32(out)) => out.fill(1.0),
            (Stored::One, Numbers::F64(out)) => out.fill(1.0),
        }
        Ok(())
    }
}

/// A layer of a file: its parameters in the order of the net's, `None` for one that the file lacks.
pub(super) struct StoredLayer<'a> {
    pub blobs: Vec<Option<Stored<'a>>>,
    /// How many the file has.
    pub count: usize,
    /// Whether extents of 1 count for nothing in their shapes.
    flat: bool,
}

impl<'a> StoredLayer<'a> {
    /// Parameters that a BatchNorm with a scale of its own has.
    pub const SCALED_BATCH_NORM: usize = 5;

    /// `count` parameters of a file, all or the first ones, for a layer of a type.
    ///
    /// Before 2017 NVIDIA's fork of Caffe kept those of its BatchNorm as γ, β, mean, variance (all [1, C, 1, 1] or [C]) and a
    /// number without meaning; they are put into today's order: mean, variance, 1, γ, β. Of one channel both look alike, and are
    /// taken for today's.
    pub fn new(kind: &str, count: usize, mut blobs: Vec<Option<Stored<'a>>>) -> StoredLayer<'a> {
        let elements = |i: usize| blobs.get(i)?.as_ref()?.shape().ok().map(|shape| shape.count());
        let older = kind == "BatchNorm"
            && count == Self::SCALED_BATCH_NORM
            && elements(4) == Some(1)
            && elements(2).is_some_and(|n| n > 1);
        if older {
            blobs.rotate_left(2);
            blobs[2] = Some(Stored::One);
        }
        StoredLayer { blobs, count, flat: older }
    }

    /// Whether one of its parameters can be copied into one of this shape.
    pub fn fits(&self, stored: &Stored<'_>, shape: &Shape) -> bool {
        let long = |shape: &Shape| -> Vec<usize> { shape.iter().copied().filter(|&extent| extent != 1).collect() };
        stored.fits(shape) || self.flat && stored.shape().is_ok_and(|found| long(&found) == long(shape))
    }
}
