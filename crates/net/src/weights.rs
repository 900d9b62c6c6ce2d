//! A net's parameters in Caffe's files: binaryproto `.caffemodel` and HDF5 `.caffemodel.h5`, both ways.

use std::path::Path;

use hdf5_metno as hdf5;
use lgm_core::{Error, Result, Shape};
use tracing::info;

use crate::graph::{LayerNode, keys};
use crate::net::Net;

/// The first bytes of every HDF5 file.
const HDF5_MAGIC: [u8; 8] = *b"\x89HDF\r\n\x1a\n";

/// Whether a file is HDF5, by its first bytes.
///
/// # Errors
/// When it cannot be read.
pub fn is_hdf5(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut head = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    file.take(8).read_to_end(&mut head).map_err(Error::io(path, "read"))?;
    Ok(head == HDF5_MAGIC)
}

/// Turns the HDF5 library's errors, whose texts run over several lines, into ours: `group.dataset("x").map_err(hdf5_error(path, "…"))`.
pub fn hdf5_error(path: &Path, doing: impl Into<String>) -> impl FnOnce(hdf5::Error) -> Error {
    let (path, doing) = (path.to_path_buf(), doing.into());
    move |e| {
        let why = e.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Error::data(path, format!("cannot {doing}: {why}"))
    }
}

/// Writes an f32 dataset of any shape, scalars included.
///
/// # Errors
/// When the library refuses.
pub fn write_dataset(group: &hdf5::Group, name: &str, shape: &Shape, values: &[f32]) -> hdf5::Result<()> {
    let dataset = group.new_dataset::<f32>().shape(shape.to_vec()).create(name)?;
    dataset.write_raw(values)
}

/// Shape and values of a dataset, whatever its float or integer type.
///
/// # Errors
/// When there is no such dataset or it holds no numbers.
pub fn read_dataset(group: &hdf5::Group, name: &str) -> hdf5::Result<(Shape, Vec<f64>)> {
    let dataset = group.dataset(name)?;
    Ok((Shape::from(dataset.shape().as_slice()), dataset.read_raw::<f64>()?))
}

impl Net {
    /// Copies parameters from a `.caffemodel` or `.caffemodel.h5` by layer name; layers the net does not have are
    /// passed over with a log line.
    ///
    /// # Errors
    /// When the file is damaged, or a layer's parameters disagree in number or shape; nothing is copied then.
    pub fn load_weights(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let found = if is_hdf5(path)? { self.read_hdf5(path)? } else { self.read_binary(path)? };
        for (p, values) in found {
            self.write_param(p, &values)?;
        }
        Ok(())
    }

    /// The layer that a file's layer is for: the one of its key, else, as in Caffe, the first of its name.
    fn target(&self, key: &str, name: &str) -> Option<&LayerNode> {
        let find = |is: &dyn Fn(&LayerNode) -> bool| self.graph.layers.iter().find(|l| is(l));
        let target = find(&|l| l.key == key).or_else(|| find(&|l| l.name() == name));
        if target.is_none() {
            info!("Ignoring source layer {name}");
        }
        target
    }

    fn read_binary(&self, path: &Path) -> Result<Vec<(usize, Vec<f64>)>> {
        let weights = lgm_proto::read_weights(path)?;
        let mut found = Vec::new();
        let keys = keys(weights.layers.iter().map(|l| (l.name.as_str(), l.kind.as_str())));
        for (source, key) in weights.layers.iter().zip(keys) {
            let Some(layer) = self.target(&key, &source.name) else { continue };
            let blame = |e: Error| layer.blame(Error::data(path, e.to_string()));
            if source.blobs.len() != layer.params.len() {
                return Err(blame(counts(layer.params.len(), source.blobs.len())));
            }
            for (&p, blob) in layer.params.iter().zip(&source.blobs) {
                let param = &self.graph.params[p];
                if !blob.fits(&param.spec.shape) {
                    let shape = blob.extents().map_err(|e| blame(e.into()))?;
                    return Err(blame(disagree(param.index, &param.spec.shape, &Shape::from(shape.as_slice()))));
                }
                found.push((p, blob.values_f64().map_err(|e| blame(e.into()))?.into_owned()));
            }
        }
        Ok(found)
    }

    fn read_hdf5(&self, path: &Path) -> Result<Vec<(usize, Vec<f64>)>> {
        let file = hdf5::File::open(path).map_err(hdf5_error(path, "open it as HDF5"))?;
        let data = file.group("data").map_err(hdf5_error(path, "find the group 'data' that holds weights"))?;
        let mut found = Vec::new();
        for (name, group, members) in layer_groups(&data).map_err(hdf5_error(path, "list the group 'data'"))? {
            let Some(layer) = self.target(&name, &name) else { continue };
            let blame = |e: Error| layer.blame(e);
            if members.len() > layer.params.len() {
                return Err(blame(Error::data(path, counts(layer.params.len(), members.len()).to_string())));
            }
            for &p in &layer.params {
                let param = &self.graph.params[p];
                let index = param.index.to_string();
                if !members.contains(&index) {
                    if param.owner.is_some() {
                        continue;
                    }
                    return Err(blame(Error::data(path, counts(layer.params.len(), members.len()).to_string())));
                }
                let (shape, values) =
                    read_dataset(&group, &index).map_err(hdf5_error(path, format!("read 'data/{name}/{index}'")))?;
                if shape != param.spec.shape {
                    let e = disagree(param.index, &param.spec.shape, &shape);
                    return Err(blame(Error::data(path, e.to_string())));
                }
                found.push((p, values));
            }
        }
        Ok(found)
    }
}

/// The groups of a file that stand for layers, with the layers' names and the names of their datasets. A name with
/// slashes is a path of groups, of which only the innermost is a layer's, unless others hold datasets too.
fn layer_groups(data: &hdf5::Group) -> hdf5::Result<Vec<(String, hdf5::Group, Vec<String>)>> {
    let mut found = Vec::new();
    let mut left: Vec<(String, hdf5::Group)> = vec![(String::new(), data.clone())];
    while let Some((name, group)) = left.pop() {
        let (mut datasets, mut inner) = (Vec::new(), Vec::new());
        for member in group.member_names()? {
            match group.group(&member) {
                Ok(below) => inner.push((if name.is_empty() { member } else { format!("{name}/{member}") }, below)),
                Err(_) => datasets.push(member),
            }
        }
        if !name.is_empty() && (inner.is_empty() || !datasets.is_empty()) {
            found.push((name, group, datasets));
        }
        left.extend(inner.into_iter().rev());
    }
    Ok(found)
}

fn counts(wanted: usize, found: usize) -> Error {
    Error::config(format!(
        "the layer has {wanted} parameters, the file {found}; to learn this layer from scratch, rename it"
    ))
}

fn disagree(index: usize, wanted: &Shape, found: &Shape) -> Error {
    Error::config(format!(
        "cannot copy parameter {index}: the net's shape is {wanted}, the file's {found}; to learn this layer from scratch, \
         rename it"
    ))
}
