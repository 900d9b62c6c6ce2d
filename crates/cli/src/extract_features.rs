//! `lgm-caffe extract_features`: what a net makes of its data in the TEST phase, as Caffe's command of this name.
//!
//! A database has a record for each item, under its number in ten digits: a Datum with the item's values as `float_data` and
//! its channels, height and width, missing axes being 1. An HDF5 file has a dataset for each blob, by its name, with the
//! items of all batches one after another; it is made in memory. What is written has its name when all of it is there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use lgm_core::{Phase, Shape, Step};
use lgm_data::db::{self, Writer};
use lgm_data::hdf5::{H5Image, H5RowWriter};
use lgm_net::{Keep, Net};
use lgm_proto::Datum;
use lgm_proto::prost::Message;
use tracing::info;

use crate::args::{Backend, DeviceFlags, ExtractFeaturesArgs, Gpus, ModeWord};
use crate::progress::Progress;
use crate::{gpu, models};

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
    let bar = Progress::items("batches", args.batches.into());
    for batch in 0..u64::from(args.batches) {
        net.forward(&Step { seed: 0, iter: 0, batch })?;
        features.add(&net)?;
        bar.at(batch + 1);
    }
    drop(bar);
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
    /// Files that are complete when all blobs are.
    files: Vec<H5Image>,
}

/// A blob on its way to its output.
struct Blob {
    name: String,
    items: u64,
    sink: Sink,
}

/// Where items go.
enum Sink {
    Database(Writer),
    /// A dataset, and the shape of every batch.
    Rows(H5RowWriter, Shape),
}

impl Features {
    fn create(args: &ExtractFeaturesArgs, blobs: &[String], outputs: &[PathBuf], net: &Net) -> Result<Features> {
        let mut features = Features { blobs: Vec::new(), files: Vec::new() };
        for (i, name) in blobs.iter().enumerate() {
            let (shape, _) = net.blob(name)?;
            let output = outputs.get(i).or(outputs.first()).context("an output is missing")?;
            let database = |backend| -> Result<Sink> {
                ensure!(
                    shape.len() <= AXES,
                    "blob '{name}' has shape {shape}, and a Datum has three axes beside the batch's; write HDF5"
                );
                info!("Opening dataset {}", output.display());
                Ok(Sink::Database(Writer::create(output, backend)?))
            };
            let sink = match args.form {
                Backend::Lmdb => database(db::Backend::Lmdb)?,
                Backend::Leveldb => database(db::Backend::Leveldb)?,
                Backend::Hdf5 => features.rows(output, i < outputs.len(), name, &shape, args.batches)?,
            };
            features.blobs.push(Blob { name: name.clone(), items: 0, sink });
        }
        Ok(features)
    }

    /// A dataset in the file of the last blob, or in a new one.
    fn rows(&mut self, output: &PathBuf, is_new: bool, name: &str, shape: &Shape, batches: u32) -> Result<Sink> {
        if is_new {
            check_new(output)?;
            self.files.push(H5Image::new(output)?);
        }
        let file = self.files.last().context("an HDF5 file is missing")?;
        let rows = shape.first().copied().unwrap_or(1).saturating_mul(batches as usize);
        let whole = if shape.is_empty() { Shape::from([rows]) } else { shape.splice(0..1, [rows]) };
        Ok(Sink::Rows(file.dataset::<f32>(name, &whole, None)?, shape.clone()))
    }

    /// Adds a batch.
    fn add(&mut self, net: &Net) -> Result<()> {
        self.blobs.iter_mut().try_for_each(|blob| blob.add(net))
    }

    fn finish(self) -> Result<()> {
        for Blob { name, items, sink } in self.blobs {
            if !items.is_multiple_of(LOGGED) {
                info!("Extracted features of {items} query images for feature blob {name}");
            }
            match sink {
                Sink::Database(writer) => writer.finish()?,
                Sink::Rows(..) => {}
            }
        }
        self.files.into_iter().try_for_each(|file| Ok(file.write_atomic()?))
    }
}

impl Blob {
    fn add(&mut self, net: &Net) -> Result<()> {
        let (shape, values) = net.blob(&self.name)?;
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        let rows = shape.first().copied().unwrap_or(1);
        match &mut self.sink {
            Sink::Rows(dataset, every) => {
                let name = &self.name;
                ensure!(
                    shape == *every,
                    "blob '{name}' changes its shape from {every} to {shape}; write LMDB or LevelDB"
                );
                dataset.append(&values)?;
            }
            Sink::Database(_) => {}
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
