//! HDF5Output: keeps a batch of two blobs in an HDF5 file.
//!
//! The first bottom is saved as dataset `data`, the second as `label`, in single precision, with Caffe's four axes (a
//! blob of fewer is padded with ones at the end; one of more keeps its own). Both have as many rows.
//!
//! A second batch is refused, as in Caffe, whose datasets exist then: the file holds one batch, and none is lost silently.
//! Difference: Caffe writes in place; here the file appears whole, or not at all.

use std::path::PathBuf;

use lgm_core::{BlobSpec, BuildCx, Error, Host, Node, Result, Shape, Sink, View, ensure, with_float};
use lgm_proto::LayerParameter;

use lgm_hdf5::write_f32;

/// The HDF5Output sink. See the module's documentation.
pub struct Hdf5Output {
    path: PathBuf,
    stored: bool,
}

impl Hdf5Output {
    /// Builds the sink of a layer.
    ///
    /// # Errors
    /// When the layer names no file.
    pub fn new(layer: &LayerParameter, _cx: &BuildCx) -> Result<Self> {
        let path = layer.hdf5_output_param.as_ref().map(|p| p.file_name()).unwrap_or_default();
        ensure!(!path.is_empty(), "hdf5_output_param needs a file_name");
        Ok(Hdf5Output { path: path.into(), stored: false })
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
        if self.stored {
            let what = "holds the first batch already, and HDF5Output keeps one; run one pass (-iterations 1) over a \
                        batch_size that takes all items, or leave the layer out (include { stage: … })";
            return Err(Error::data(&self.path, what));
        }
        let (data_values, label_values) = (values(data)?, values(label)?);
        let (data_shape, label_shape) = (four_axes(data.shape()), four_axes(label.shape()));
        let datasets: [(&str, &Shape, &[f32]); 2] =
            [("data", &data_shape, &data_values), ("label", &label_shape, &label_values)];
        write_f32(&self.path, &datasets)?;
        self.stored = true;
        tracing::debug!("saved {} rows to {}", rows(data.shape()), self.path.display());
        Ok(())
    }
}

fn values(view: &View<'_, Host>) -> Result<Vec<f32>> {
    with_float!(view.dtype(), T => Ok(view.slice::<T>()?.iter().map(|&x| lgm_core::Float::f64(x) as f32).collect()))
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
    fn one_batch_is_kept_and_a_second_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.h5");
        std::fs::write(&path, "an older file").unwrap();
        let mut sink = sink(path.to_str().unwrap()).unwrap();
        let (x, y) = (BlobSpec::new([2, 3], DType::F64), BlobSpec::new([2], DType::F32));
        sink.open(&[x.clone(), y.clone()]).unwrap();
        let (data, label) = ([10.0f64, 11.0, 12.0, 13.0, 14.0, 15.0], [1.0f32, 2.0]);
        let views = [View::of_slice(&data, &x).unwrap(), View::of_slice(&label, &y).unwrap()];
        sink.store(&views).unwrap();
        let error = sink.store(&views).unwrap_err().to_string();
        assert!(error.contains("out.h5: holds the first batch already"), "{error}");
        let file = H5File::open(&path).unwrap();
        assert_eq!(file.datasets().unwrap(), ["data", "label"]);
        let data = file.dataset("data").unwrap();
        assert_eq!(data.shape(), &Shape::from([2, 3, 1, 1]));
        assert_eq!(data.read().unwrap().into_f32(), [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        let label = file.dataset("label").unwrap();
        assert_eq!((label.shape(), label.read().unwrap().into_f32()), (&Shape::from([2, 1, 1, 1]), vec![1.0, 2.0]));
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
