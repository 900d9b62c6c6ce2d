//! `lgm-caffe extract_features`: what a net makes of its data in the TEST phase, as Caffe's command of this name.
//!
//! A database has a record for each item, under its number in ten digits: a Datum with the item's values as `float_data` and
//! its channels, height and width, missing axes being 1. An HDF5 file has a dataset for each blob, by its name, with the
//! items of all batches one after another. Each batch is written as it is computed, under another name; an output has its own
//! when all of it is there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use lgm_core::{Phase, Shape, Step};
use lgm_data::db::{self, Writer};
use lgm_data::hdf5::H5Stream;
use lgm_net::{Keep, Net};
use lgm_proto::Datum;
use lgm_proto::prost::Message;
use tracing::info;

use crate::args::{Backend, DeviceFlags, ExtractFeaturesArgs, Gpus, ModeWord};
use crate::{gpu, models, progress};

/// Items between two lines of the log, and between two groups of records.
const LOGGED: u64 = 1000;

/// Axes of a Datum, the item's number among them.
const AXES: usize = 4;

/// Runs the net and writes the blobs.
///
/// # Errors
/// When the net cannot be built or run, has no such blob, or an output exists or cannot be written.
pub fn run(args: &ExtractFeaturesArgs) -> Result<ExitCode> {
    let (blobs, outputs) = names(args)?;
    let gpu = gpu::choose_device(&device(args)?, None)?;
    let mut net = models::net(&args.model, Phase::Test, &args.state, false, Keep::Named(blobs.clone()), gpu)?;
    models::load_weights(&mut net, std::slice::from_ref(&args.weights))?;
    let mut features = Features::create(args, &blobs, &outputs, &net)?;
    info!("Extracting Features");
    for batch in progress::each("batches", args.batches.into()) {
        net.forward(&Step { seed: 0, iter: 0, batch })?;
        features.add(&net)?;
    }
    features.finish()?;
    info!("Successfully extracted the features!");
    Ok(ExitCode::SUCCESS)
}

/// The blobs and where they go.
fn names(args: &ExtractFeaturesArgs) -> Result<(Vec<String>, Vec<PathBuf>)> {
    let blobs: Vec<String> = args.blobs.split(',').map(|name| name.trim().to_string()).collect();
    let outputs = args.outputs.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let outputs: Vec<PathBuf> = outputs.map(|name| OsStr::from_bytes(name).into()).collect();
    let written = [args.blobs.clone(), args.outputs.to_string_lossy().into_owned()];
    let empty = [blobs.iter().any(String::is_empty), outputs.iter().any(|path| path.as_os_str().is_empty())];
    for (name, is_empty) in written.iter().zip(empty) {
        ensure!(!is_empty, "expected names separated by commas, found an empty one in '{name}'");
    }
    ensure!(
        blobs.len() == outputs.len() || (args.form == Backend::Hdf5 && outputs.len() == 1),
        "each blob needs an output of its own: found {} blobs ({}) and {} outputs",
        blobs.len(),
        blobs.join(","),
        outputs.len()
    );
    for (i, name) in blobs.iter().enumerate() {
        ensure!(!blobs[..i].contains(name), "the blob '{name}' is named twice");
    }
    for (i, path) in outputs.iter().enumerate() {
        ensure!(!outputs[..i].contains(path), "the output '{}' is named twice", path.display());
    }
    Ok((blobs, outputs))
}

/// The device that the flags or Caffe's words ask for.
fn device(args: &ExtractFeaturesArgs) -> Result<DeviceFlags> {
    let mut device = args.device.clone();
    let flag = &mut device.gpus.gpu;
    match (args.mode, args.device_id) {
        (Some(ModeWord::Gpu), id) => {
            let word = Gpus::List(vec![id.unwrap_or(0)]);
            if let Some(other) = flag.as_ref().filter(|other| **other != word) {
                bail!("-gpu {other} and GPU {word} ask for different GPUs");
            }
            *flag = Some(word);
        }
        (Some(ModeWord::Cpu), Some(id)) => bail!("CPU takes no number of a GPU, found {id}"),
        (Some(ModeWord::Cpu), None) => ensure!(flag.is_none(), "CPU and -gpu exclude each other"),
        (None, _) => {}
    }
    Ok(device)
}

/// The outputs.
struct Features {
    blobs: Vec<Blob>,
    /// Of HDF5, each of one blob or one of all.
    files: Vec<H5Stream>,
}

/// A blob on its way to its output.
struct Blob {
    name: String,
    /// Of the first batch.
    shape: Shape,
    items: u64,
    sink: Sink,
}

/// Where items go.
enum Sink {
    Database(Writer),
    /// Of a file, a dataset.
    Rows {
        file: usize,
        dataset: usize,
    },
}

impl Features {
    fn create(args: &ExtractFeaturesArgs, blobs: &[String], outputs: &[PathBuf], net: &Net) -> Result<Features> {
        let shapes = blobs.iter().map(|name| Ok(net.blob(name)?.0)).collect::<Result<Vec<Shape>>>()?;
        let blob =
            |(name, shape): (&String, &Shape), sink| Blob { name: name.clone(), shape: shape.clone(), items: 0, sink };
        let all = || blobs.iter().zip(&shapes);
        let backend = match args.form {
            Backend::Lmdb => db::Backend::Lmdb,
            Backend::Leveldb => db::Backend::Leveldb,
            Backend::Hdf5 => {
                let rows = |(name, shape)| (name, whole(shape, args.batches));
                let datasets: Vec<(&str, Shape)> = all().map(|(name, shape)| rows((name.as_str(), shape))).collect();
                let each = if outputs.len() == blobs.len() { 1 } else { blobs.len() };
                let files = outputs.iter().zip(datasets.chunks(each)).map(|(output, datasets)| {
                    check_new(output)?;
                    Ok(H5Stream::create(output, datasets)?)
                });
                let files = files.collect::<Result<_>>()?;
                let sink = |i: usize| Sink::Rows { file: i / each, dataset: i % each };
                let blobs = all().enumerate().map(|(i, named)| blob(named, sink(i))).collect();
                return Ok(Features { blobs, files });
            }
        };
        let blobs = all().zip(outputs).map(|((name, shape), output)| {
            ensure!(
                shape.len() <= AXES,
                "blob '{name}' has shape {shape}, and a Datum has three axes beside the batch's; write HDF5"
            );
            info!("Opening dataset {}", output.display());
            Ok(blob((name, shape), Sink::Database(Writer::create(output, backend)?)))
        });
        Ok(Features { blobs: blobs.collect::<Result<_>>()?, files: Vec::new() })
    }

    /// Adds a batch.
    fn add(&mut self, net: &Net) -> Result<()> {
        self.blobs.iter_mut().try_for_each(|blob| blob.add(net, &mut self.files))
    }

    fn finish(self) -> Result<()> {
        for Blob { name, items, sink, .. } in self.blobs {
            if !items.is_multiple_of(LOGGED) {
                info!("Extracted features of {items} query images for feature blob {name}");
            }
            if let Sink::Database(writer) = sink {
                writer.finish()?;
            }
        }
        self.files.into_iter().try_for_each(|file| Ok(file.publish()?))
    }
}

impl Blob {
    fn add(&mut self, net: &Net, files: &mut [H5Stream]) -> Result<()> {
        let (shape, values) = net.blob(&self.name)?;
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        let rows = shape.first().copied().unwrap_or(1);
        if let Sink::Rows { file, dataset } = self.sink {
            let (name, first) = (&self.name, &self.shape);
            ensure!(shape == *first, "blob '{name}' changes its shape from {first} to {shape}; write LMDB or LevelDB");
            files.get_mut(file).context("an HDF5 file is missing")?.append(dataset, &values)?;
        }
        for item in values.chunks_exact(values.len().checked_div(rows).unwrap_or(0).max(1)).take(rows) {
            if let Sink::Database(writer) = &mut self.sink {
                writer.put(format!("{:010}", self.items).as_bytes(), datum(&shape, item).encode_to_vec())?;
            }
            self.items += 1;
            if self.items.is_multiple_of(LOGGED) {
                if let Sink::Database(writer) = &mut self.sink {
                    writer.commit()?;
                }
                info!("Extracted features of {} query images for feature blob {}", self.items, self.name);
            }
        }
        Ok(())
    }
}

/// The shape of so many batches, one behind the other.
fn whole(batch: &Shape, batches: u32) -> Shape {
    let rows = lgm_core::count(&[batch.first().copied().unwrap_or(1), batches as usize]);
    if batch.is_empty() { Shape::from([rows]) } else { batch.splice(0..1, [rows]) }
}

/// An item of a blob.
fn datum(shape: &Shape, values: &[f32]) -> Datum {
    let extent = |axis: usize| shape.get(axis).map_or(Some(1), |&extent| i32::try_from(extent).ok());
    Datum { channels: extent(1), height: extent(2), width: extent(3), float_data: values.to_vec(), ..Datum::default() }
}

/// Fails for a file that is there: databases are not overwritten either.
fn check_new(path: &Path) -> Result<()> {
    ensure!(!path.exists(), "{}: already exists; remove it or choose another name", path.display());
    Ok(())
}
