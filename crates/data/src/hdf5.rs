//! HDF5 files: reading rows of any numeric dataset, listing datasets, and writing.
//!
//! The C library is not thread-safe; `hdf5-metno` takes one lock around every call, so any number of threads may use
//! these helpers and take turns.

use std::ops::Range;
use std::path::{Path, PathBuf};

use hdf5_metno::types::{IntSize, TypeDescriptor};
use hdf5_metno::{Hyperslab, SliceOrIndex};
use lgm_core::{Error, Result, Shape, fs::write_atomic};
use ndarray17::{ArrayView, IxDyn};

/// Rows of a dataset in memory: 8-bit data stays 8-bit, everything else becomes `f32`.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Unsigned 8-bit elements.
    U8(Vec<u8>),
    /// Single-precision elements.
    F32(Vec<f32>),
}

impl Values {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Values::U8(v) => v.len(),
            Values::F32(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as `f32`.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Values::U8(v) => v.into_iter().map(f32::from).collect(),
            Values::F32(v) => v,
        }
    }

    /// Writes elements `range` to `out`, which has as many.
    pub fn copy_to(&self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Values::U8(v) => out.iter_mut().zip(&v[range]).for_each(|(o, &x)| *o = f32::from(x)),
            Values::F32(v) => out.copy_from_slice(&v[range]),
        }
    }

    /// Makes room for so many more elements and no more.
    pub(crate) fn reserve_exact(&mut self, more: usize) {
        match self {
            Values::U8(v) => v.reserve_exact(more),
            Values::F32(v) => v.reserve_exact(more),
        }
    }

    /// Appends other rows of the same dataset.
    pub(crate) fn append(&mut self, more: Values) -> Result<()> {
        match (self, more) {
            (Values::U8(a), Values::U8(mut b)) => a.append(&mut b),
            (Values::F32(a), Values::F32(mut b)) => a.append(&mut b),
            _ => return Err(Error::internal("rows of one dataset came with two element types")),
        }
        Ok(())
    }
}

/// An HDF5 file opened for reading.
pub struct H5File {
    path: PathBuf,
    file: hdf5_metno::File,
}

impl H5File {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// When it is missing, unreadable or not HDF5.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Asked of the system first: its reasons are clearer than the library's.
        std::fs::File::open(path).map_err(Error::io(path, "open"))?;
        let file = hdf5_metno::File::open(path)
            .map_err(|e| Error::data(path, format!("cannot be read as an HDF5 file: {}", reason(&e))))?;
        Ok(H5File { path: path.into(), file })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all datasets, groups included (`group/name`), in alphabetical order within a group.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn datasets(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.list(&self.file, &mut names).map_err(|e| Error::data(&self.path, reason(&e)))?;
        Ok(names)
    }

    fn list(&self, group: &hdf5_metno::Group, names: &mut Vec<String>) -> hdf5_metno::Result<()> {
        for dataset in group.datasets()? {
            names.push(dataset.name().trim_start_matches('/').to_string());
        }
        group.groups()?.iter().try_for_each(|g| self.list(g, names))
    }

    /// Opens a dataset of numbers.
    ///
    /// # Errors
    /// When it is missing (the message lists what is there) or does not hold numbers.
    pub fn dataset(&self, name: &str) -> Result<H5Dataset> {
        let Ok(dataset) = self.file.dataset(name) else {
            let found = self.datasets()?;
            let found = if found.is_empty() { "none".into() } else { found.join(", ") };
            return Err(Error::data(&self.path, format!("no dataset named '{name}' (datasets found: {found})")));
        };
        let fail = |what: String| Error::data(&self.path, format!("dataset '{name}': {what}"));
        let dtype = dataset.dtype().map_err(|e| fail(reason(&e)))?;
        let byte = match dtype.to_descriptor() {
            Ok(TypeDescriptor::Unsigned(IntSize::U1)) => true,
            Ok(TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) | TypeDescriptor::Float(_)) => false,
            // The library converts number formats that have no Rust name, half precision among them.
            Err(_) if dtype.conv_to::<f32>().is_some() => false,
            Ok(other) => return Err(fail(format!("expected integers or floating-point numbers, found {other}"))),
            Err(e) => return Err(fail(format!("expected integers or floating-point numbers, found {}", reason(&e)))),
        };
        let chunk_rows = dataset.chunk().and_then(|c| c.first().copied());
        let shape = Shape::new(dataset.shape());
        Ok(H5Dataset { path: self.path.clone(), name: name.into(), dataset, shape, byte, chunk_rows })
    }
}

/// A dataset of numbers in an open file. Its rows are what its first axis counts.
pub struct H5Dataset {
    path: PathBuf,
    name: String,
    dataset: hdf5_metno::Dataset,
    shape: Shape,
    byte: bool,
    chunk_rows: Option<usize>,
}

impl H5Dataset {
    /// The dataset's extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Number of rows; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one row.
    pub fn row_len(&self) -> usize {
        self.shape.count_from(1)
    }

    /// Bytes that one row takes as [`Values`].
    pub fn row_bytes(&self) -> usize {
        self.row_len() * if self.byte { 1 } else { 4 }
    }

    /// Rows of one storage chunk, or `None` for a contiguous dataset. Reading part of a compressed chunk inflates all
    /// of it, so reads should span whole chunks.
    pub fn chunk_rows(&self) -> Option<usize> {
        self.chunk_rows
    }

    /// Reads all elements.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn read(&self) -> Result<Values> {
        if self.byte { self.dataset.read_raw().map(Values::U8) } else { self.dataset.read_raw().map(Values::F32) }
            .map_err(|e| self.fail(&e))
    }

    /// Reads a range of rows; memory is bounded by what the rows and one storage chunk take.
    ///
    /// # Errors
    /// When the range is out of bounds or the file is damaged.
    pub fn read_rows(&self, rows: Range<usize>) -> Result<Values> {
        if rows == (0..self.rows()) {
            return self.read();
        }
        let mut slab: Vec<SliceOrIndex> = vec![rows.into()];
        slab.extend((1..self.shape.len()).map(|_| SliceOrIndex::from(..)));
        let slab = Hyperslab::from(slab);
        let values = if self.byte {
            self.dataset.read_slice::<u8, _, IxDyn>(slab).map(|a| Values::U8(a.into_raw_vec_and_offset().0))
        } else {
            self.dataset.read_slice::<f32, _, IxDyn>(slab).map(|a| Values::F32(a.into_raw_vec_and_offset().0))
        };
        values.map_err(|e| self.fail(&e))
    }

    fn fail(&self, e: &hdf5_metno::Error) -> Error {
        Error::data(
            &self.path,
            format!("dataset '{}' of shape {} cannot be read: {}", self.name, self.shape, reason(e)),
        )
    }
}

/// The library's error text on one line.
fn reason(e: &hdf5_metno::Error) -> String {
    e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Writes `f32` datasets as one new file: the old file, if any, is replaced whole at the end. Names may hold groups
/// (`data/conv1/0`).
///
/// # Errors
/// When the folder cannot be written or a dataset's values do not fill its shape.
pub fn write_f32(path: impl AsRef<Path>, datasets: &[(&str, &Shape, &[f32])]) -> Result<()> {
    let path = path.as_ref();
    write_atomic(path, |tmp| {
        let writer = H5Writer::create(path, tmp)?;
        for &(name, shape, values) in datasets {
            let dataset = writer.dataset::<f32>(name, shape, None)?;
            dataset.write(values)?;
        }
        writer.close()
    })
}

/// An HDF5 file being written under a temporary name.
pub(crate) struct H5Writer {
    path: PathBuf,
    file: hdf5_metno::File,
}

/// A dataset being written row by row.
pub(crate) struct H5RowWriter {
    path: PathBuf,
    name: String,
    dataset: hdf5_metno::Dataset,
    shape: Shape,
    next: usize,
}

impl H5Writer {
    /// Creates the file `tmp`, which errors will call `path`.
    pub fn create(path: &Path, tmp: &Path) -> Result<Self> {
        // Asked of the system first: its reasons are clearer than the library's.
        std::fs::File::create(tmp).map_err(Error::io(path, "create"))?;
        let file = hdf5_metno::File::create(tmp).map_err(|e| Error::data(path, reason(&e)))?;
        Ok(H5Writer { path: path.into(), file })
    }

    /// Adds a dataset; with `chunk_rows`, stored deflated in chunks of so many rows.
    pub fn dataset<T: hdf5_metno::H5Type>(
        &self,
        name: &str,
        shape: &Shape,
        chunk_rows: Option<usize>,
    ) -> Result<H5RowWriter> {
        let mut builder = self.file.new_dataset::<T>().shape(shape.to_vec());
        if let Some(rows) = chunk_rows.filter(|_| shape.count() > 0) {
            let rows = rows.clamp(1, shape[0]);
            builder = builder.chunk(shape.splice(0..1, [rows]).to_vec()).deflate(DEFLATE_LEVEL);
        }
        let dataset = builder
            .create(name)
            .map_err(|e| Error::data(&self.path, format!("dataset '{name}' cannot be written: {}", reason(&e))))?;
        Ok(H5RowWriter { path: self.path.clone(), name: name.into(), dataset, shape: shape.clone(), next: 0 })
    }

    /// Flushes and closes; a full disk is noticed here at the latest.
    pub fn close(self) -> Result<()> {
        self.file.flush().and_then(|()| self.file.close()).map_err(|e| Error::data(&self.path, reason(&e)))
    }
}

/// Images deflate to about the same size at any level; the lowest is the fastest to write and read.
const DEFLATE_LEVEL: u8 = 1;

impl H5RowWriter {
    /// Writes all elements at once.
    pub fn write<T: hdf5_metno::H5Type>(&self, values: &[T]) -> Result<()> {
        self.check(values.len(), self.shape.count())?;
        self.dataset.write_raw(values).map_err(|e| self.fail(&e))
    }

    /// Writes the next rows: as many as `values` fills.
    pub fn append<T: hdf5_metno::H5Type>(&mut self, values: &[T]) -> Result<()> {
        let rows = values.len() / self.shape.count_from(1).max(1);
        let shape = self.shape.splice(0..1, [rows]);
        self.check(values.len(), shape.count())?;
        let view = ArrayView::from_shape(IxDyn(&shape), values).map_err(|e| Error::internal(e.to_string()))?;
        let mut slab: Vec<SliceOrIndex> = vec![(self.next..self.next + rows).into()];
        slab.extend((1..self.shape.len()).map(|_| SliceOrIndex::from(..)));
        self.dataset.write_slice(view, Hyperslab::from(slab)).map_err(|e| self.fail(&e))?;
        self.next += rows;
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
