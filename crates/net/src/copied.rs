//! A copy of a net's parameters on the host, and Caffe's files made of it: the net may train on while they are written.

use std::ops::Range;
use std::path::Path;

use hdf5_metno as hdf5;
use lgm_core::{DType, Error, Result, Shape};
use lgm_proto::{BlobProto, LayerParameter, NetParameter};

use crate::gpu::floats_of;
use crate::net::Net;
use crate::weights::{hdf5_error, write_dataset};

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
    fn of(&self, learnable: usize) -> Vec<f32> {
        match self {
            Values::Floats(all) => all[learnable].clone(),
            Values::Bytes(all, spans) => floats_of(&all[spans[learnable].clone()]),
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
        let (data, diff) = match &self.device {
            Some(device) => {
                let (data, diff) = device.download_params(diff)?;
                let spans = || (0..self.graph.learnables.len()).map(|l| device.span(l)).collect();
                (Values::Bytes(data, spans()), diff.map(|diff| Values::Bytes(diff, spans())))
            }
            None => {
                let owners = || self.graph.learnables.iter().map(|l| l.owner);
                let narrow = |view: lgm_core::View<'_, lgm_core::Host>| -> Result<Vec<f32>> {
                    match view.dtype() {
                        DType::F32 => Ok(view.slice::<f32>()?.to_vec()),
                        DType::F64 => Ok(view.slice::<f64>()?.iter().map(|&x| x as f32).collect()),
                    }
                };
                let data = owners().map(|p| narrow(self.bound.param(&self.graph, p))).collect::<Result<_>>()?;
                let diffs = || owners().map(|p| self.bound.param_diff(&self.graph, p).map(narrow).transpose());
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
            blobs: layer.params.iter().map(blob).collect(),
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

    /// The first parameter that is not finite, if any is: its layer and its index there.
    pub fn first_not_finite(&self) -> Option<(&str, usize)> {
        let odd = |blob: &&Blob| !lgm_cpu::elementwise::all_finite(&self.data.of(blob.learnable));
        self.layers.iter().find_map(|layer| layer.blobs.iter().find(odd).map(|blob| (layer.param.name(), blob.index)))
    }

    /// The net with its parameters as a message, as Caffe saves it.
    pub fn to_proto(&self) -> NetParameter {
        let layer = self.layers.iter().map(|layer| {
            let blob = |b: &Blob| {
                BlobProto::from_f32(&b.shape, self.data.of(b.learnable), self.diff.as_ref().map(|d| d.of(b.learnable)))
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
        std::fs::write(path, lgm_proto::encode(&self.to_proto())).map_err(Error::io(path, "write"))
    }

    /// Writes an HDF5 file. Not atomic: give a temporary name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_hdf5(&self, path: &Path) -> Result<()> {
        self.fill_hdf5(path).map_err(hdf5_error(path, "write weights"))
    }

    fn fill_hdf5(&self, path: &Path) -> hdf5::Result<()> {
        let file = hdf5::File::create(path)?;
        let data = file.create_group("data")?;
        let diffs = self.diff.as_ref().map(|diff| Ok::<_, hdf5::Error>((file.create_group("diff")?, diff)));
        let diffs = diffs.transpose()?;
        for layer in &self.layers {
            let group = subgroup(&data, &layer.key)?;
            let diff_group = diffs.as_ref().map(|(d, _)| subgroup(d, &layer.key)).transpose()?;
            for b in &layer.blobs {
                let name = b.index.to_string();
                if !b.shared {
                    write_dataset(&group, &name, &b.shape, &self.data.of(b.learnable))?;
                }
                if let (Some(group), Some((_, diff))) = (&diff_group, &diffs) {
                    write_dataset(group, &name, &b.shape, &diff.of(b.learnable))?;
                }
            }
        }
        file.close()
    }
}

/// A group by a name that may be a path, made where it is not there yet.
fn subgroup(of: &hdf5::Group, name: &str) -> hdf5::Result<hdf5::Group> {
    match of.link_exists(name) {
        true => of.group(name),
        false => of.create_group(name),
    }
}
