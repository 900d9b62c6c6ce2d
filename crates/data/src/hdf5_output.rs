//! HDF5Output: keeps batches of two blobs in an HDF5 file.
//!
//! The first bottom is saved as dataset `data`, the second as `label`, in single precision, with Caffe's four axes (a
//! blob of fewer is padded with ones at the end; one of more keeps its own). Both have as many rows. Further batches
//! follow the first along the first axis.
//!
//! Batches are kept in memory. The file is written, whole each time, with the first batch, whenever the rows have doubled
//! since, and with the last of them when the net ends; should that fail, the log says how many rows the file has. A run
//! that is killed leaves the file as it was written last, all rows up to some batch.
//!
//! Differences: Caffe ends with an error at the second batch; it writes in place, here the file appears whole, or not at
//! all.

use std::path::PathBuf;

use lgm_core::{BlobSpec, BuildCx, Error, Host, Node, Result, Shape, Sink, View, ensure, memory, with_float};
use lgm_proto::{LayerParameter, strings};

use lgm_hdf5::write_f32;

/// The datasets' names.
const NAMES: [&str; 2] = ["data", "label"];

/// The HDF5Output sink. See the module's documentation.
pub struct Hdf5Output {
    path: PathBuf,
    /// The rows of both datasets.
    kept: [Rows; 2],
    rows: usize,
    /// How many of them the file has.
    written: usize,
}

/// The rows of a dataset.
#[derive(Default)]
struct Rows {
    /// Extents of one row.
    shape: Shape,
    values: Vec<f32>,
}

impl Hdf5Output {
    /// Builds the sink of a layer.
    ///
    /// # Errors
    /// When the layer names no file.
    pub fn new(layer: &LayerParameter, _cx: &BuildCx) -> Result<Self> {
        let path = layer.hdf5_output_param.as_ref().map(|p| p.file_name()).unwrap_or_default();
        ensure!(!path.is_empty(), "hdf5_output_param needs a file_name");
        Ok(Hdf5Output { path: strings::to_path(path), kept: Default::default(), rows: 0, written: 0 })
    }

    /// Writes the file anew, with all rows.
    fn write(&mut self) -> Result<()> {
        let shapes = self.kept.each_ref().map(|kept| kept.shape.splice(0..0, [self.rows]));
        let [data, label] = &self.kept;
        let datasets: [(&str, &Shape, &[f32]); 2] =
            [(NAMES[0], &shapes[0], &data.values), (NAMES[1], &shapes[1], &label.values)];
        write_f32(&self.path, &datasets)?;
        self.written = self.rows;
        tracing::debug!("saved {} rows to {}", self.rows, self.path.display());
        Ok(())
    }
}

/// A shape padded to Caffe's four axes.
fn four_axes(shape: &Shape) -> Shape {
    let missing = 4usize.saturating_sub(shape.len());
    shape.splice(shape.len()..shape.len(), std::iter::repeat_n(1, missing))
}

fn rows(shape: &Shape) -> usize {
    four_axes(shape)[0]
}

impl Sink for Hdf5Output {
    fn open(&mut self, bottoms: &[BlobSpec]) -> Result<()> {
        let [data, label] = bottoms else {
            return Err(Error::config(format!(
                "HDF5Output takes two bottoms, data and label, found {}",
                bottoms.len()
            )));
        };
        ensure!(
            rows(&data.shape) == rows(&label.shape),
            "HDF5Output needs bottoms with the same batch size, found shapes {} and {}",
            data.shape,
            label.shape
        );
        Ok(())
    }

    fn store(&mut self, bottoms: &[View<'_, Host>]) -> Result<()> {
        let [data, label] = bottoms else {
            return Err(Error::internal("HDF5Output was opened with two bottoms and run with another number"));
        };
        for ((kept, blob), name) in self.kept.iter_mut().zip([data, label]).zip(NAMES) {
            let row = four_axes(blob.shape()).splice(0..1, []);
            if self.rows > 0 && kept.shape != row {
                let what = format!("{}: a row of '{name}', as in the batches before", self.path.display());
                return Err(Error::Shape { what, expected: kept.shape.clone(), found: row });
            }
            kept.shape = row;
            let more = blob.shape().count();
            if more > kept.values.capacity() - kept.values.len() {
                // At least twofold, so that a value is copied few times.
                let what = format!("{}: the batches to be saved as '{name}'", self.path.display());
                let room = more.max(kept.values.len());
                memory::reserve(&mut kept.values, room, what)?;
            }
            with_float!(blob.dtype(), T => {
                kept.values.extend(blob.slice::<T>()?.iter().map(|&x| lgm_core::Float::f64(x) as f32));
            });
        }
        self.rows += rows(data.shape());
        if self.written == 0 || self.rows >= self.written.saturating_mul(2) { self.write() } else { Ok(()) }
    }
}

impl Drop for Hdf5Output {
    fn drop(&mut self) {
        if self.rows > self.written
            && let Err(e) = self.write()
        {
            tracing::error!("{e}; the file has the first {} of {} rows", self.written, self.rows);
        }
    }
}

/// Builds an HDF5Output layer.
pub(crate) fn build(layer: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    Ok(Node::Sink(Box::new(Hdf5Output::new(layer, cx)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::{DType, Phase};
    use lgm_hdf5::H5File;

    fn sink(path: &str) -> Result<Hdf5Output> {
        let hdf5_output_param = Some(lgm_proto::Hdf5OutputParameter { file_name: Some(path.into()) });
        let cx = BuildCx { phase: Phase::Train, dtype: DType::F32, seed: 1 };
        Hdf5Output::new(&LayerParameter { hdf5_output_param, ..Default::default() }, &cx)
    }

    #[test]
    fn batches_follow_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.h5");
        std::fs::write(&path, "an older file").unwrap();
        let mut sink = sink(path.to_str().unwrap()).unwrap();
        let (x, y) = (BlobSpec::new([2, 3], DType::F64), BlobSpec::new([2], DType::F32));
        sink.open(&[x.clone(), y.clone()]).unwrap();
        let values = |name: &str| {
            let file = H5File::open(&path).unwrap();
            assert_eq!(file.datasets().unwrap(), ["data", "label"]);
            let set = file.dataset(name).unwrap();
            (set.shape().clone(), set.read().unwrap().into_f32())
        };
        // What the file has after each of five batches, and after the end: the first, two, four, and all.
        for (batch, saved) in [1, 2, 2, 4, 4].into_iter().enumerate() {
            let first = batch as f64 * 6.0;
            let data: Vec<f64> = (0..6).map(|i| first + f64::from(i)).collect();
            let label = [2 * batch, 2 * batch + 1].map(|v| v as f32);
            sink.store(&[View::of_slice(&data, &x).unwrap(), View::of_slice(&label, &y).unwrap()]).unwrap();
            let rows = saved * 2;
            assert_eq!(values("data"), (Shape::from([rows, 3, 1, 1]), (0..rows * 3).map(|v| v as f32).collect()));
            assert_eq!(values("label"), (Shape::from([rows, 1, 1, 1]), (0..rows).map(|v| v as f32).collect()));
        }
        let other = BlobSpec::new([2, 4], DType::F32);
        let views = [View::of_slice(&[0.0f32; 8], &other).unwrap(), View::of_slice(&[0.0f32; 2], &y).unwrap()];
        let error = sink.store(&views).unwrap_err().to_string();
        assert!(error.contains("out.h5: a row of 'data', as in the batches before"), "{error}");
        drop(sink);
        assert_eq!(values("data"), (Shape::from([10, 3, 1, 1]), (0..30).map(|v| v as f32).collect()));
        assert_eq!(values("label"), (Shape::from([10, 1, 1, 1]), (0..10).map(|v| v as f32).collect()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert!(sink("").err().unwrap().to_string().contains("needs a file_name"));
        let mut s = sink("/nonexistent/x.h5").unwrap();
        let spec = |n| BlobSpec::new([n, 2], DType::F32);
        assert!(s.open(&[spec(2)]).unwrap_err().to_string().contains("two bottoms"));
        let e = s.open(&[spec(2), spec(3)]).unwrap_err().to_string();
        assert!(e.contains("(2, 2) and (3, 2)"), "{e}");
        let (x, v) = (spec(1), [0.0f32; 2]);
        let views = [View::of_slice(&v, &x).unwrap(), View::of_slice(&v, &x).unwrap()];
        let e = s.store(&views).unwrap_err().to_string();
        assert!(e.contains("/nonexistent/x.h5: cannot create"), "{e}");
    }
}
