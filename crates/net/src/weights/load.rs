//! A net's parameters in Caffe's files: binaryproto `.caffemodel` and HDF5 `.caffemodel.h5`, both ways.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lgm_core::{Error, Result, Shape, State, memory};
use lgm_hdf5::{H5File, is_hdf5};
use tracing::{info, warn};

use crate::exec::Numbers;
use crate::graph::{LayerNode, keys};
use crate::net::Net;
use crate::weights::snapshot::CARRIED;
use crate::weights::stored::{Stored, StoredLayer};

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
    /// passed over with a log line. Of a layer that has more parameters in the file the first are taken, with a warning. Returns
    /// what it took.
    ///
    /// # Errors
    /// When the file is damaged, or a layer has fewer parameters there, or of other shapes; nothing is copied then. Values that
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
        let mut taken = Taken::default();
        let keys = keys(weights.layers.iter().map(|l| (l.name.as_str(), l.kind.as_str())));
        for (source, key) in weights.layers.iter().zip(keys) {
            let Some(layer) = self.target(&key, &source.name, &mut taken.loaded) else { continue };
            let (wanted, count) = (self.graph.shown(layer).len(), source.blobs.len());
            if count < wanted {
                return Err(layer.in_layer(Error::data(path, counts(wanted, count).to_string())));
            }
            let blobs = source.blobs.iter().map(|blob| Some(Stored::Blob(blob))).collect();
            self.take(path, layer, StoredLayer::new(layer.kind(), count, blobs), &mut taken)?;
        }
        self.copy(path, taken)
    }

    fn load_hdf5(&mut self, path: &Path) -> Result<Loaded> {
        let file = H5File::open(path)?;
        let mut taken = Taken::default();
        // A layer's name with slashes is a path of groups.
        for group in file.groups("data")?.into_iter().filter(|group| !group.name.is_empty()) {
            let Some(layer) = self.target(&group.name, &group.name, &mut taken.loaded) else { continue };
            let count = group.datasets.len();
            let read = |index: usize| -> Result<Option<Stored<'_>>> {
                let index = index.to_string();
                if !group.datasets.contains(&index) {
                    return Ok(None);
                }
                let dataset = file.dataset(&format!("data/{}/{index}", group.name));
                Ok(Some(Stored::Dataset(dataset.map_err(|e| layer.in_layer(e))?)))
            };
            // All of a BatchNorm's tell in which order they are.
            let first = self.graph.shown(layer).len().max(count.min(StoredLayer::SCALED_BATCH_NORM));
            let blobs = (0..first).map(read).collect::<Result<_>>()?;
            self.take(path, layer, StoredLayer::new(layer.kind(), count, blobs), &mut taken)?;
        }
        self.copy(path, taken)
    }

    /// Notes what a layer takes of a file.
    fn take<'a>(&self, path: &Path, layer: &LayerNode, stored: StoredLayer<'a>, taken: &mut Taken<'a>) -> Result<()> {
        let name = |e: Error| layer.in_layer(Error::data(path, e.to_string()));
        let params = self.graph.shown(layer);
        for &p in params {
            let param = &self.graph.params[p];
            match stored.blobs.get(param.index).and_then(Option::as_ref) {
                Some(blob) if stored.fits(blob, &param.spec.shape) => blob.check_values().map_err(name)?,
                Some(blob) => {
                    let found = blob.shape().map_err(name)?;
                    return Err(name(disagree(param.index, &param.spec.shape, &found)));
                }
                None if param.owner.is_some() => {}
                None => return Err(name(counts(params.len(), stored.count))),
            }
        }
        if stored.count > params.len() {
            taken.longer.push(format!("'{}' ({} of {})", layer.name(), params.len(), stored.count));
        }
        let found = params.iter().zip(stored.blobs).filter_map(|(&p, blob)| Some((p, blob?)));
        taken.found.extend(found);
        Ok(())
    }

    /// Copies what layers take of a file.
    fn copy(&mut self, path: &Path, taken: Taken<'_>) -> Result<Loaded> {
        let Taken { found, mut loaded, longer } = taken;
        if !longer.is_empty() {
            let layers = longer.join(", ");
            warn!("{}: has more parameters than layers of the net, which take the first: {layers}", path.display());
        }
        for (p, stored) in found {
            let filled = self.exec.fill_param(&self.graph, p, &mut |numbers| stored.fill(numbers));
            filled.map_err(|e| self.graph.layers[self.graph.params[p].layer].in_layer(e))?;
            loaded.params.insert(self.graph.params[p].owner.unwrap_or(p));
        }
        Ok(loaded)
    }
}

/// What a net takes of a file, found before anything is copied.
#[derive(Default)]
struct Taken<'a> {
    found: Vec<(usize, Stored<'a>)>,
    loaded: Loaded,
    /// Layers of which the file has more parameters, as text.
    longer: Vec<String>,
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
