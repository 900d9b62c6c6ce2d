//! Files written: an image in memory, which the library cannot fail to close, then bytes that the caller puts on disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use hdf5_metno::types::{FixedAscii, FixedUnicode};
use hdf5_metno::{Hyperslab, SliceOrIndex};
use hdf5_metno_sys::h5f::H5Fget_file_image;
use lgm_core::{Error, Result, Shape, fs::write_bytes, memory};
use ndarray17::{ArrayView, IxDyn};

use crate::file::STRING;
use crate::reason;

/// By how much the image grows at a time.
const GROWTH: usize = 1 << 20;

/// Images made so far: the library takes two of one name for one file.
static IMAGES: AtomicUsize = AtomicUsize::new(0);

/// Writes `f32` datasets as one new file: the old file, if any, is replaced whole at the end. Names may hold groups
/// (`data/conv1/0`).
///
/// # Errors
/// When the folder cannot be written or a dataset's values do not fill its shape.
pub fn write_f32(path: impl AsRef<Path>, datasets: &[(&str, &Shape, &[f32])]) -> Result<()> {
    let image = H5Image::new(path.as_ref())?;
    for &(name, shape, values) in datasets {
        image.dataset::<f32>(name, shape, None)?.write(values)?;
    }
    image.write_atomic()
}

/// An HDF5 file that is being made in memory, in the oldest format that suits, which every version of the library reads.
pub struct H5Image {
    path: PathBuf,
    file: hdf5_metno::File,
}

/// A dataset being written row by row.
pub struct H5RowWriter {
    path: PathBuf,
    name: String,
    dataset: hdf5_metno::Dataset,
    shape: Shape,
    next: usize,
}

impl H5Image {
    /// An empty file, which errors will call `path`.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn new(path: &Path) -> Result<Self> {
        let name = format!("image {}", IMAGES.fetch_add(1, Ordering::Relaxed));
        let file = hdf5_metno::File::with_options()
            .with_fapl(|p| p.core_options(GROWTH, false).libver_earliest())
            .create(name)
            .map_err(|e| Error::data(path, format!("cannot be made: {}", reason(&e))))?;
        Ok(H5Image { path: path.into(), file })
    }

    fn fail(&self, name: &str, e: &hdf5_metno::Error) -> Error {
        Error::data(&self.path, format!("'{name}' cannot be written: {}", reason(e)))
    }

    /// Adds a group, unless it is there.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn group(&self, name: &str) -> Result<()> {
        let made = if self.file.group(name).is_ok() { Ok(()) } else { self.file.create_group(name).map(|_| ()) };
        made.map_err(|e| self.fail(name, &e))
    }

    /// Adds a string.
    ///
    /// # Errors
    /// When it is longer than a path may be.
    pub fn text(&self, name: &str, value: &str) -> Result<()> {
        let write = || match FixedAscii::<STRING>::from_ascii(value.as_bytes()) {
            Ok(text) => self.file.new_dataset::<FixedAscii<STRING>>().create(name)?.write_scalar(&text),
            Err(_) => {
                let text = value.parse::<FixedUnicode<STRING>>().map_err(|e| e.to_string())?;
                self.file.new_dataset::<FixedUnicode<STRING>>().create(name)?.write_scalar(&text)
            }
        };
        write().map_err(|e| self.fail(name, &e))
    }

    /// Adds a dataset, whose name may hold groups; with `chunk_rows`, stored deflated in chunks of so many rows.
    ///
    /// # Errors
    /// When there is no memory for it, or the library refuses.
    pub fn dataset<T: hdf5_metno::H5Type>(
        &self,
        name: &str,
        shape: &Shape,
        chunk_rows: Option<usize>,
    ) -> Result<H5RowWriter> {
        let bytes = shape.count().saturating_mul(size_of::<T>());
        memory::check(bytes, format!("{}: dataset '{name}' of shape {shape}", self.path.display()))?;
        let mut builder = self.file.new_dataset::<T>().shape(shape.to_vec());
        if let Some(rows) = chunk_rows.filter(|_| shape.count() > 0) {
            let rows = rows.clamp(1, shape[0]);
            builder = builder.chunk(shape.splice(0..1, [rows]).to_vec()).deflate(DEFLATE_LEVEL);
        }
        let dataset = builder.create(name).map_err(|e| self.fail(name, &e))?;
        Ok(H5RowWriter { path: self.path.clone(), name: name.into(), dataset, shape: shape.clone(), next: 0 })
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn bytes(self) -> Result<Vec<u8>> {
        let fail = |e: hdf5_metno::Error| Error::data(&self.path, format!("cannot be written: {}", reason(&e)));
        self.file.flush().map_err(fail)?;
        let image = |buffer: *mut u8, len: usize| {
            // SAFETY: the buffer has `len` bytes, or none is given and the library returns their number.
            let get = || hdf5_metno::h5check(unsafe { H5Fget_file_image(self.file.id(), buffer.cast(), len) });
            hdf5_metno::sync::sync(get).map(|n| n as usize).map_err(fail)
        };
        let len = image(std::ptr::null_mut(), 0)?;
        let mut bytes: Vec<u8> = memory::room(len, format!("{}: the file", self.path.display()))?;
        bytes.resize(len, 0);
        let filled = image(bytes.as_mut_ptr(), len)?;
        bytes.truncate(filled);
        self.file.close().map_err(|e| Error::data(&self.path, format!("cannot be written: {}", reason(&e))))?;
        Ok(bytes)
    }

    /// Writes the file to `to`, a temporary name.
    ///
    /// # Errors
    /// As [`H5Image::bytes`], and when the system refuses, with its reason.
    pub fn write_to(self, to: &Path) -> Result<()> {
        let path = self.path.clone();
        std::fs::write(to, self.bytes()?).map_err(Error::io(path, "write"))
    }

    /// Puts the file in its place, whole or not at all.
    ///
    /// # Errors
    /// As [`H5Image::write_to`].
    pub fn write_atomic(self) -> Result<()> {
        write_bytes(self.path.clone(), &self.bytes()?)
    }
}

/// Images deflate to about the same size at any level; the lowest is the fastest to write and read.
const DEFLATE_LEVEL: u8 = 1;

impl H5RowWriter {
    /// Writes all elements at once.
    ///
    /// # Errors
    /// When their number is not the dataset's, or the library refuses.
    pub fn write<T: hdf5_metno::H5Type>(&self, values: &[T]) -> Result<()> {
        self.check(values.len(), self.shape.count())?;
        self.dataset.write_raw(values).map_err(|e| self.fail(&e))
    }

    /// Writes the next rows: as many as `values` fills.
    ///
    /// # Errors
    /// When it fills no number of rows, or the library refuses.
    pub fn append<T: hdf5_metno::H5Type>(&mut self, values: &[T]) -> Result<()> {
        let rows = values.len().checked_div(self.shape.count_from(1)).unwrap_or(0);
        let shape = self.shape.splice(0..1, [rows]);
        self.check(values.len(), shape.count())?;
        let end = self.next.saturating_add(rows);
        let view = ArrayView::from_shape(IxDyn(&shape), values).map_err(|e| Error::internal(e.to_string()))?;
        let mut slab: Vec<SliceOrIndex> = vec![(self.next..end).into()];
        slab.extend((1..self.shape.len()).map(|_| SliceOrIndex::from(..)));
        self.dataset.write_slice(view, Hyperslab::from(slab)).map_err(|e| self.fail(&e))?;
        self.next = end;
        Ok(())
    }

    fn check(&self, found: usize, expected: usize) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let what = format!("dataset '{}' of shape {} takes {expected} values, got {found}", self.name, self.shape);
        Err(Error::data(&self.path, what))
    }

    fn fail(&self, e: &hdf5_metno::Error) -> Error {
        Error::data(&self.path, format!("dataset '{}' cannot be written: {}", self.name, reason(e)))
    }
}
