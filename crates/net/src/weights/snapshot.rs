//! A copy of a net's parameters on the host, and Caffe's files made of it: the net may train on while they are written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use lgm_core::{DType, Error, Result, Shape, State, memory};
use lgm_hdf5::H5Image;
use lgm_proto::{BlobProto, LayerParameter, NetParameter};

use crate::exec::Params;
use crate::net::Net;
use lgm_cuda::floats_of;

/// Parameters as they were when they were copied, with what a file of weights says of the net besides.
pub struct Weights {
    name: String,
    layers: Vec<Layer>,
    data: Values,
    diff: Option<Values>,
}

struct Layer {
    param: LayerParameter,
    key: String,
    blobs: Vec<Blob>,
    /// Learnable parameters that are carried from pass to pass, which no file of weights holds.
    carried: Vec<usize>,
}

struct Blob {
    learnable: usize,
    index: usize,
    shape: Shape,
    /// Its memory is that of a parameter before it.
    shared: bool,
}

/// Single-precision numbers by learnable parameter.
enum Values {
    /// As the host has them.
    Floats(Vec<Vec<f32>>),
    /// As they came from a device in one copy, each in its range of bytes.
    Bytes(Vec<u8>, Vec<Range<usize>>),
}

impl Values {
    fn bytes(&self) -> usize {
        match self {
            Values::Floats(all) => all.iter().map(|values| 4 * values.len()).sum(),
            Values::Bytes(all, _) => all.len(),
        }
    }

    fn of(&self, learnable: usize) -> Cow<'_, [f32]> {
        match self {
            Values::Floats(all) => Cow::Borrowed(&all[learnable]),
            Values::Bytes(all, spans) => Cow::Owned(floats_of(&all[spans[learnable].clone()])),
        }
    }
}

impl Net {
    /// Copies the parameters to the host, and their gradients too if `diff`. On a device this waits for work queued
    /// before, not for what kernels have to report; see [`Net::check`].
    ///
    /// # Errors
    /// When they cannot be read from a device.
    pub fn weights(&self, diff: bool) -> Result<Weights> {
        let (data, diff) = match self.exec.params(diff)? {
            Params::Copied { data, diff, spans } => {
                (Values::Bytes(data, spans.to_vec()), diff.map(|diff| Values::Bytes(diff, spans.to_vec())))
            }
            Params::Host(bound) => {
                let owners = || self.graph.learnables.iter().map(|l| l.owner);
                let narrow = |view: lgm_core::View<'_, lgm_core::Host>| -> Result<Vec<f32>> {
                    let mut copy = memory::room(view.shape().count(), "a copy of the weights")?;
                    match view.dtype() {
                        DType::F32 => copy.extend_from_slice(view.slice::<f32>()?),
                        DType::F64 => copy.extend(view.slice::<f64>()?.iter().map(|&x| x as f32)),
                    }
                    Ok(copy)
                };
                let data = owners().map(|p| narrow(bound.param(&self.graph, p))).collect::<Result<_>>()?;
                let diffs = || owners().map(|p| bound.param_diff(&self.graph, p).map(narrow).transpose());
                let diffs: Option<Vec<Vec<f32>>> =
                    if diff { diffs().collect::<Result<Vec<_>>>()?.into_iter().collect() } else { None };
                (Values::Floats(data), diffs.map(Values::Floats))
            }
        };
        let blob = |&p: &usize| {
            let param = &self.graph.params[p];
            let (learnable, shape) = (param.learnable, param.spec.shape.clone());
            Blob { learnable, index: param.index, shape, shared: param.owner.is_some() }
        };
        let layers = self.graph.layers.iter().filter(|layer| !layer.internal).map(|layer| Layer {
            param: layer.param.clone(),
            key: layer.key.clone(),
            blobs: self.graph.shown(layer).iter().map(blob).collect(),
            carried: layer.params[self.graph.shown(layer).len()..]
                .iter()
                .map(|&p| self.graph.params[p].learnable)
                .collect(),
        });
        Ok(Weights { name: self.name().into(), layers: layers.collect(), data, diff })
    }

    /// The net with its parameters as a message, as Caffe saves it; with gradients if `diff`.
    ///
    /// # Errors
    /// When parameters cannot be read from a device, or its kernels found something wrong.
    pub fn to_proto(&self, diff: bool) -> Result<NetParameter> {
        self.checked_weights(diff).map(|w| w.to_proto())
    }

    /// Writes the parameters to a binaryproto file, with gradients if `diff`. Not atomic: give a temporary name.
    ///
    /// # Errors
    /// As [`Net::to_proto`], and when the file cannot be written.
    pub fn write_weights(&self, path: &Path, diff: bool) -> Result<()> {
        self.checked_weights(diff)?.write(path)
    }

    /// Writes the parameters to an HDF5 file, with gradients if `diff`. Not atomic: give a temporary name.
    ///
    /// # Errors
    /// As [`Net::to_proto`], and when the file cannot be written.
    pub fn write_weights_hdf5(&self, path: &Path, diff: bool) -> Result<()> {
        self.checked_weights(diff)?.write_hdf5(path)
    }

    fn checked_weights(&self, diff: bool) -> Result<Weights> {
        let weights = self.weights(diff)?;
        self.check()?;
        Ok(weights)
    }
}

/// What the names of carried numbers begin with in a layer's state, before which one and which of its numbers.
pub(crate) const CARRIED: &str = "carried.";

impl Weights {
    /// Puts other values in place of a learnable parameter's.
    ///
    /// # Errors
    /// When their number differs.
    pub fn set(&mut self, learnable: usize, values: &[f32]) -> Result<()> {
        let wrong = || Error::internal(format!("{} values do not fill learnable parameter {learnable}", values.len()));
        match &mut self.data {
            Values::Floats(all) => {
                let to = all.get_mut(learnable).filter(|to| to.len() == values.len()).ok_or_else(wrong)?;
                to.copy_from_slice(values);
            }
            Values::Bytes(all, spans) => {
                let span = spans.get(learnable).filter(|s| s.len() == 4 * values.len()).ok_or_else(wrong)?;
                let to = all[span.clone()].chunks_exact_mut(4);
                to.zip(values).for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
            }
        }
        Ok(())
    }

    /// Adds to a net's state what its layers carry from pass to pass.
    pub fn add_carried(&self, state: &mut BTreeMap<String, State>) {
        for layer in &self.layers {
            for (i, &learnable) in layer.carried.iter().enumerate() {
                let numbers = self.data.of(learnable);
                let named = numbers.iter().enumerate().map(|(n, &v)| (format!("{CARRIED}{i}.{n}"), f64::from(v)));
                state.entry(layer.key.clone()).or_default().extend(named);
            }
        }
    }

    /// The first parameter that is not finite, if any is: its layer and its index there.
    pub fn first_not_finite(&self) -> Option<(&str, usize)> {
        let odd = |blob: &&Blob| !lgm_cpu::elementwise::all_finite(&self.data.of(blob.learnable));
        self.layers.iter().find_map(|layer| layer.blobs.iter().find(odd).map(|blob| (layer.param.name(), blob.index)))
    }

    /// The net with its parameters as a message, as Caffe saves it.
    pub fn to_proto(&self) -> NetParameter {
        let layer = self.layers.iter().map(|layer| {
            let blob = |b: &Blob| {
                let diff = self.diff.as_ref().map(|d| d.of(b.learnable).into_owned());
                BlobProto::from_f32(&b.shape, self.data.of(b.learnable).into_owned(), diff)
            };
            LayerParameter { blobs: layer.blobs.iter().map(blob).collect(), ..layer.param.clone() }
        });
        NetParameter { name: Some(self.name.clone()), layer: layer.collect(), ..Default::default() }
    }

    /// Writes a binaryproto file. Not atomic: give a temporary name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        // The message, and its bytes.
        let bytes = self.data.bytes().saturating_mul(if self.diff.is_some() { 4 } else { 2 });
        memory::check(bytes, "encoding the weights")?;
        std::fs::write(path, lgm_proto::encode(&self.to_proto())).map_err(Error::io(path, "write"))
    }

    /// Writes an HDF5 file. Not atomic: give a temporary name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_hdf5(&self, path: &Path) -> Result<()> {
        self.image(path)?.write_to(path)
    }

    /// The HDF5 file that will be called `path`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn image(&self, path: &Path) -> Result<H5Image> {
        let image = H5Image::new(path)?;
        image.group("data")?;
        for layer in &self.layers {
            image.group(&format!("data/{}", layer.key))?;
            if self.diff.is_some() {
                image.group(&format!("diff/{}", layer.key))?;
            }
            for b in &layer.blobs {
                let name = |of: &str| format!("{of}/{}/{}", layer.key, b.index);
                if !b.shared {
                    image.dataset::<f32>(&name("data"), &b.shape, None)?.write(&self.data.of(b.learnable))?;
                }
                if let Some(diff) = &self.diff {
                    image.dataset::<f32>(&name("diff"), &b.shape, None)?.write(&diff.of(b.learnable))?;
                }
            }
        }
        Ok(image)
    }
}
