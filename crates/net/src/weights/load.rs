//! A net's parameters in Caffe's files: binaryproto `.caffemodel` and HDF5 `.caffemodel.h5`, both ways.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lgm_core::{Error, Result, Shape, State, memory};
use lgm_hdf5::{H5Dataset, H5File, is_hdf5};
use tracing::{info, warn};

use crate::exec::Numbers;
use crate::graph::{LayerNode, keys};
use crate::net::Net;
use crate::weights::snapshot::CARRIED;

/// What of files of weights a net took.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The parameters that were filled, by the layers that own them.
    params: BTreeSet<usize>,
    /// Layers of the files that the net does not have.
    ignored: BTreeSet<String>,
}

impl Loaded {
    /// Adds what the net took of another file.
    pub fn join(&mut self, other: Loaded) {
        self.params.extend(other.params);
        self.ignored.extend(other.ignored);
    }
}

impl Net {
    /// The layers with parameters for which files had none, each with the name nearest to its own among the files' layers that
    /// the net does not have.
    pub fn without_weights<'a>(&'a self, loaded: &'a Loaded) -> Vec<(&'a str, Option<&'a str>)> {
        let lacks = |&p: &usize| !loaded.params.contains(&self.graph.params[p].owner.unwrap_or(p));
        let missing = self.graph.layers.iter().filter(|layer| self.graph.shown(layer).iter().any(lacks));
        let near = |name| lgm_core::nearest(name, loaded.ignored.iter().map(String::as_str));
        missing.map(|layer| (layer.name(), near(layer.name()))).collect()
    }

    /// Copies parameters from a `.caffemodel` or `.caffemodel.h5` by layer name; layers the net does not have are
    /// passed over with a log line. Returns what it took.
    ///
    /// # Errors
    /// When the file is damaged, or a layer's parameters disagree in number or shape; nothing is copied then. Values that
    /// cannot be read after all may leave some parameters copied.
    pub fn load_weights(&mut self, path: impl AsRef<Path>) -> Result<Loaded> {
        let path = path.as_ref();
        if is_hdf5(path)? { self.load_hdf5(path) } else { self.load_binary(path) }
    }

    /// The layer that a file's layer is for: the one of its key, else, as in Caffe, the first of its name.
    fn target(&self, key: &str, name: &str, loaded: &mut Loaded) -> Option<&LayerNode> {
        let find = |is: &dyn Fn(&LayerNode) -> bool| self.graph.layers.iter().find(|l| is(l));
        let target = find(&|l| l.key == key).or_else(|| find(&|l| l.name() == name));
        if target.is_none() {
            info!("Ignoring source layer {name}");
            loaded.ignored.insert(name.to_owned());
        }
        target
    }

    /// Takes up what layers carry from pass to pass, of a state that has it.
    pub(crate) fn restore_carried(&mut self, state: &BTreeMap<String, State>) -> Result<()> {
        for layer in &self.graph.layers {
            let carried = &layer.params[self.graph.shown(layer).len()..];
            let Some(numbers) = state.get(&layer.key).filter(|_| !carried.is_empty()) else { continue };
            if !numbers.keys().any(|name| name.starts_with(CARRIED)) {
                continue;
            }
            for (i, &p) in carried.iter().enumerate() {
                let number = |n: usize| {
                    let name = format!("{CARRIED}{i}.{n}");
                    let found = numbers.get(&name).copied();
                    found.ok_or_else(|| layer.in_layer(Error::config(format!("the state lacks the number '{name}'"))))
                };
                self.exec.fill_param(&self.graph, p, &mut |values| {
                    match values {
                        Numbers::F32(out) => {
                            for (n, out) in out.iter_mut().enumerate() {
                                *out = number(n)? as f32;
                            }
                        }
                        Numbers::F64(out) => {
                            for (n, out) in out.iter_mut().enumerate() {
                                *out = number(n)?;
                            }
                        }
                    }
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    fn load_binary(&mut self, path: &Path) -> Result<Loaded> {
        // The file's bytes, and the numbers in them.
        let bytes = std::fs::metadata(path).map_err(Error::io(path, "read"))?.len();
        memory::check(
            usize::try_from(bytes).unwrap_or(usize::MAX).saturating_mul(2),
            format!("reading {}", path.display()),
        )?;
        let weights = lgm_proto::read_weights(path)?;
        if weights.older {
            let file = path.display();
            warn!(
                "{file}: in an older format, upgraded as it was read; to upgrade the file, run \
                 'lgm-caffe upgrade_net_proto_binary {file} NEW'"
            );
        }
        let (mut found, mut loaded) = (Vec::new(), Loaded::default());
        let keys = keys(weights.layers.iter().map(|l| (l.name.as_str(), l.kind.as_str())));
        for (source, key) in weights.layers.iter().zip(keys) {
            let Some(layer) = self.target(&key, &source.name, &mut loaded) else { continue };
            let name = |e: Error| layer.in_layer(Error::data(path, e.to_string()));
            let params = self.graph.shown(layer);
            if source.blobs.len() != params.len() {
                return Err(name(counts(params.len(), source.blobs.len())));
            }
            for (&p, blob) in params.iter().zip(&source.blobs) {
                let param = &self.graph.params[p];
                if !blob.fits(&param.spec.shape) {
                    let shape = blob.extents().map_err(|e| name(e.into()))?;
                    return Err(name(disagree(param.index, &param.spec.shape, &Shape::from(shape.as_slice()))));
                }
                blob.check_values().map_err(|e| name(e.into()))?;
                found.push((p, blob));
            }
        }
        for (p, blob) in found {
            self.exec.fill_param(&self.graph, p, &mut |values| {
                match values {
                    Numbers::F32(out) => blob.copy_to_f32(out)?,
                    Numbers::F64(out) => blob.copy_to_f64(out)?,
                }
                Ok(())
            })?;
            loaded.params.insert(self.graph.params[p].owner.unwrap_or(p));
        }
        Ok(loaded)
    }

    fn load_hdf5(&mut self, path: &Path) -> Result<Loaded> {
        let file = H5File::open(path)?;
        let (mut found, mut loaded) = (Vec::<(usize, H5Dataset)>::new(), Loaded::default());
        // A layer's name with slashes is a path of groups.
        for group in file.groups("data")?.into_iter().filter(|group| !group.name.is_empty()) {
            let Some(layer) = self.target(&group.name, &group.name, &mut loaded) else { continue };
            let params = self.graph.shown(layer);
            let disagrees =
                || layer.in_layer(Error::data(path, counts(params.len(), group.datasets.len()).to_string()));
            if group.datasets.len() > params.len() {
                return Err(disagrees());
            }
            for &p in params {
                let param = &self.graph.params[p];
                let index = param.index.to_string();
                if !group.datasets.contains(&index) {
                    if param.owner.is_some() {
                        continue;
                    }
                    return Err(disagrees());
                }
                let dataset = file.dataset(&format!("data/{}/{index}", group.name)).map_err(|e| layer.in_layer(e))?;
                if *dataset.shape() != param.spec.shape {
                    let e = disagree(param.index, &param.spec.shape, dataset.shape());
                    return Err(layer.in_layer(Error::data(path, e.to_string())));
                }
                found.push((p, dataset));
            }
        }
        for (p, dataset) in found {
            let filled = self.exec.fill_param(&self.graph, p, &mut |values| match values {
                Numbers::F32(out) => dataset.read_into(out),
                Numbers::F64(out) => dataset.read_into(out),
            });
            filled.map_err(|e| self.graph.layers[self.graph.params[p].layer].in_layer(e))?;
            loaded.params.insert(self.graph.params[p].owner.unwrap_or(p));
        }
        Ok(loaded)
    }
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
