//! A dataset of numbers, and its rows in memory.

use std::ops::Range;
use std::path::PathBuf;

use hdf5_metno::plist::dataset_create::Layout;
use hdf5_metno::{Datatype, Hyperslab, SliceOrIndex};
use hdf5_metno_sys::h5d::H5Dread;
use hdf5_metno_sys::h5p::H5P_DEFAULT;
use hdf5_metno_sys::h5t::{H5T_class_t, H5Tget_class};
use lgm_core::{Error, Result, Shape, memory, memory::in_units};

use crate::handle::H5File;
use crate::reason;

/// Bytes that a dataset may claim whatever its file's size.
const ANY: u64 = 256 << 20;
/// Bytes of a dataset that one byte of a file may stand for, far more than any compression makes of what somebody wrote.
const MOST_DEFLATED: u64 = 1 << 16;

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
}

/// Numbers that a dataset can be read as, and whose every bit pattern is one.
pub trait H5Number: hdf5_metno::H5Type + Copy + Default {}
impl H5Number for u8 {}
impl H5Number for i32 {}
impl H5Number for f32 {}
impl H5Number for f64 {}

/// A dataset of numbers in an open file. Its rows are what its first axis counts.
pub struct H5Dataset {
    path: PathBuf,
    name: String,
    dataset: hdf5_metno::Dataset,
    shape: Shape,
    byte: bool,
    element: usize,
    chunk: Option<Vec<usize>>,
}

impl H5Dataset {
    pub(crate) fn new(file: &H5File, name: &str, dataset: hdf5_metno::Dataset) -> Result<Self> {
        let fail = |what: &str| file.fail(format!("dataset '{name}': {what}"));
        let dtype = dataset.dtype().map_err(|e| fail(&reason(&e)))?;
        // SAFETY: the handle lives as long as `dtype`.
        let class = hdf5_metno::sync::sync(|| unsafe { H5Tget_class(dtype.id()) });
        // By class, not by Rust's name for the type: the library converts number formats that have none, half precision
        // among them, and compound types may be nested deeply.
        if !matches!(class, H5T_class_t::H5T_INTEGER | H5T_class_t::H5T_FLOAT) || dtype.conv_to::<f32>().is_none() {
            let class = format!("{class:?}");
            let class = class.trim_start_matches("H5T_").to_lowercase();
            return Err(fail(&format!("expected integers or floating-point numbers, found the type '{class}'")));
        }
        let space = dataset.space().map_err(|e| fail(&reason(&e)))?;
        Ok(H5Dataset {
            path: file.path().into(),
            name: name.into(),
            shape: Shape::new(space.shape()),
            byte: dtype.is::<u8>(),
            element: dtype.size(),
            chunk: dataset.chunk(),
            dataset,
        })
    }

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
        self.row_len().saturating_mul(if self.byte { 1 } else { 4 })
    }

    /// Rows of one storage chunk, or `None` for a contiguous dataset. Reading part of a compressed chunk inflates all
    /// of it, so reads should span whole chunks.
    pub fn chunk_rows(&self) -> Option<usize> {
        self.chunk.as_ref().and_then(|c| c.first().copied())
    }

    /// Fails for a dataset that is large and whose file is so small that hardly any of it was ever written: reading what
    /// nobody wrote has no end.
    ///
    /// # Errors
    /// That.
    pub fn check_stored(&self) -> Result<()> {
        let bytes = self.shape.count().saturating_mul(self.element) as u64;
        let file = std::fs::metadata(&self.path).map_err(Error::io(&self.path, "read"))?.len();
        // Virtual datasets and external ones are stored elsewhere.
        let here = matches!(self.dataset.layout(), Layout::Contiguous | Layout::Chunked | Layout::Compact)
            && self.dataset.dcpl().is_ok_and(|dcpl| dcpl.external().is_empty());
        if !here || bytes <= ANY || bytes / MOST_DEFLATED <= file {
            return Ok(());
        }
        let what = format!("{} of numbers cannot be stored in a file of {}", in_units(bytes), in_units(file));
        Err(self.fail(&what))
    }

    /// Reads all elements into `out`, which has as many.
    ///
    /// # Errors
    /// When it has not, there is no memory for a storage chunk, or the file is damaged.
    pub fn read_into<T: H5Number>(&self, out: &mut [T]) -> Result<()> {
        if out.len() != self.shape.count() {
            return Err(self.fail(&format!("expected {} numbers", out.len())));
        }
        self.check_chunk()?;
        if out.is_empty() {
            return Ok(());
        }
        self.dataset.as_reader().read_into_raw(out).map(|_| ()).map_err(|e| self.fail(&reason(&e)))
    }

    /// Reads all elements.
    ///
    /// # Errors
    /// As [`H5Dataset::read_rows`].
    pub fn read(&self) -> Result<Values> {
        self.read_rows(0..self.rows())
    }

    /// Reads a range of rows.
    ///
    /// # Errors
    /// As [`H5Dataset::read_ranges`].
    pub fn read_rows(&self, rows: Range<usize>) -> Result<Values> {
        self.read_ranges(std::slice::from_ref(&rows))
    }

    /// Reads ranges of rows, one behind the other; memory is bounded by what the rows and one storage chunk take.
    ///
    /// # Errors
    /// When a range is out of bounds, the memory does not suffice or the file is damaged.
    pub fn read_ranges(&self, rows: &[Range<usize>]) -> Result<Values> {
        let count = rows.iter().fold(0_usize, |sum, r| sum.saturating_add(r.len())).saturating_mul(self.row_len());
        self.check_chunk()?;
        if self.byte { self.read_as(rows, count).map(Values::U8) } else { self.read_as(rows, count).map(Values::F32) }
    }

    fn read_as<T: H5Number>(&self, rows: &[Range<usize>], count: usize) -> Result<Vec<T>> {
        let what =
            || format!("{}: what is read of dataset '{}' of shape {}", self.path.display(), self.name, self.shape);
        let mut values: Vec<T> = memory::room(count, what())?;
        values.resize(count, T::default());
        let mut rest = &mut values[..];
        for range in rows {
            let (part, after) = rest.split_at_mut(range.len().saturating_mul(self.row_len()).min(rest.len()));
            self.read_range(range, part).map_err(|e| self.fail(&reason(&e)))?;
            rest = after;
        }
        Ok(values)
    }

    fn read_range<T: H5Number>(&self, rows: &Range<usize>, out: &mut [T]) -> hdf5_metno::Result<()> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(format!("rows {} to {} are asked for", rows.start, rows.end).into());
        }
        if out.is_empty() {
            return Ok(());
        }
        if *rows == (0..self.rows()) {
            return self.dataset.as_reader().read_into_raw(out).map(|_| ());
        }
        let mut slab: Vec<SliceOrIndex> = vec![rows.clone().into()];
        slab.extend((1..self.shape.len()).map(|_| SliceOrIndex::from(..)));
        let there = self.dataset.space()?.select(Hyperslab::from(slab))?;
        let here = hdf5_metno::Dataspace::try_new([out.len()])?;
        let kind = Datatype::from_type::<T>()?;
        if there.selection_size() != out.len() {
            return Err("the selection has another size".into());
        }
        // SAFETY: the selection has as many elements as `out`, of its type; the handles live until the call returns.
        let mut read = || unsafe {
            H5Dread(self.dataset.id(), kind.id(), here.id(), there.id(), H5P_DEFAULT, out.as_mut_ptr().cast())
        };
        hdf5_metno::sync::sync(|| hdf5_metno::h5check(read())).map(|_| ())
    }

    /// A compressed chunk is inflated whole, whatever is asked of it.
    fn check_chunk(&self) -> Result<()> {
        let Some(chunk) = &self.chunk else { return Ok(()) };
        let bytes = lgm_core::count(chunk).saturating_mul(self.element);
        let say = || format!("{}: one storage chunk of dataset '{}'", self.path.display(), self.name);
        memory::check(bytes, say())
    }

    fn fail(&self, why: &str) -> Error {
        let what = format!("dataset '{}' of shape {} cannot be read: {why}", self.name, self.shape);
        Error::data(&self.path, what)
    }
}
