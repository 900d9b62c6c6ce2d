//! Data sets that converters read, and what data layers read besides records.

use std::path::Path;

use lgm_core::{BlobSpec, BuildCx, DType, Phase, Result, Source, Step, ViewMut, memory};
use lgm_data::convert::{
    CifarOptions, Encoding, Format, ImageSetOptions, convert_cifar, convert_imageset, convert_mnist,
};
use lgm_data::db::Backend;
use lgm_data::{Data, Hdf5Data, ImageData, WindowData};
use lgm_proto::{LayerParameter, NetParameter, Parsed};

use crate::cli::flagfile;
use crate::cli::training_log::TrainingLog;
use crate::scratch::Scratch;

thread_local!(static FOLDER: Scratch = Scratch::new());

/// Two images of 2 x 3 pixels, and their labels.
const IMAGES: &[u8] = include_bytes!("../corpus/idx_images/sound");
const LABELS: &[u8] = include_bytes!("../corpus/idx_labels/sound");

fn mnist(images: &[u8], labels: &[u8]) {
    FOLDER.with(|folder| {
        let (images, labels) = (folder.write("images", images), folder.write("labels", labels));
        let _ = convert_mnist(images, labels, folder.at("mnist.h5"), Format::Hdf5, &mut |_, _| ());
    });
}

/// MNIST's images, gzipped or not.
pub fn idx_images(bytes: &[u8]) {
    mnist(bytes, LABELS);
}

/// MNIST's labels, gzipped or not.
pub fn idx_labels(bytes: &[u8]) {
    mnist(IMAGES, bytes);
}

/// CIFAR-100 as pickled by Python.
pub fn pickle(bytes: &[u8]) {
    FOLDER.with(|folder| {
        folder.write("pickle/train", bytes);
        folder.write("pickle/test", bytes);
        let options = CifarOptions { pad: 0, coarse: false };
        let _ = convert_cifar(folder.at("pickle"), folder.at("pickled"), options, &mut |_, _| ());
    });
}

/// A picture among those of a class.
pub fn image(bytes: &[u8]) {
    FOLDER.with(|folder| {
        folder.write("pictures/train/a/1.png", bytes);
        folder.write("pictures/test/a/1.png", bytes);
        let options = CifarOptions { pad: 0, coarse: false };
        let _ = convert_cifar(folder.at("pictures"), folder.at("drawn"), options, &mut |_, _| ());
    });
}

pub(crate) fn layer(text: &str) -> LayerParameter {
    let net: Parsed<NetParameter> = lgm_proto::parse(text.as_bytes(), Path::new("net.prototxt")).expect("a sound net");
    net.message.layer.into_iter().next().expect("a layer")
}

pub(crate) const CX: BuildCx = BuildCx { phase: Phase::Train, dtype: DType::F32, seed: 1 };

/// Opens a source and takes two batches of it.
pub(crate) fn batches(mut source: impl Source, tops: usize) -> Result<()> {
    let specs: Vec<BlobSpec> = source.open(tops)?.into_iter().map(|shape| BlobSpec::new(shape, DType::F32)).collect();
    let values = specs.iter().map(|spec| memory::zeros::<f32>(spec.shape.count(), "a top"));
    let mut values = values.collect::<Result<Vec<_>>>()?;
    for batch in 0..2 {
        let tops = values.iter_mut().zip(&specs).map(|(values, spec)| ViewMut::of_slice(values, spec));
        source.load(&Step { seed: 1, iter: batch, batch }, &mut tops.collect::<Result<Vec<_>>>()?)?;
    }
    Ok(())
}

/// The mean image of a Data layer.
pub fn mean(bytes: &[u8]) {
    FOLDER.with(|folder| {
        let (images, labels, db) = (folder.write("images", IMAGES), folder.write("labels", LABELS), folder.at("db"));
        if !db.exists() {
            convert_mnist(images, labels, &db, Format::Lmdb, &mut |_, _| ()).expect("a sound data set");
        }
        folder.write("mean.binaryproto", bytes);
        let (mean, db) = (folder.text("mean.binaryproto"), folder.text("db"));
        let text = format!(
            "layer {{ name: 'd' type: 'Data' top: 'x' transform_param {{ mean_file: '{mean}' }} \
             data_param {{ source: '{db}' batch_size: 2 backend: LMDB }} }}"
        );
        let _ = Data::new(&layer(&text), &CX).and_then(|data| batches(data, 1));
    });
}

/// The list of files of an HDF5Data layer; the files it names are not there.
pub fn list(bytes: &[u8]) {
    // What lies on this machine is none of the fuzzer's business.
    if bytes.contains(&b'/') {
        return;
    }
    FOLDER.with(|folder| {
        folder.write("list.txt", bytes);
        let list = folder.text("list.txt");
        let text = format!(
            "layer {{ name: 'd' type: 'HDF5Data' top: 'x' hdf5_data_param {{ source: '{list}' batch_size: 2 }} }}"
        );
        let _ = Hdf5Data::new(&layer(&text), &CX).and_then(|mut data| data.open(1));
    });
}

/// The list of an ImageData layer and of `convert_imageset`; the files it names are not there.
pub fn image_list(bytes: &[u8]) {
    if bytes.contains(&b'/') {
        return;
    }
    FOLDER.with(|folder| {
        folder.write("images.txt", bytes);
        let list = folder.text("images.txt");
        let text = format!(
            "layer {{ name: 'd' type: 'ImageData' top: 'x' image_data_param {{ source: '{list}' batch_size: 2 }} }}"
        );
        let _ = ImageData::new(&layer(&text), &CX).and_then(|mut data| data.open(1));
        let options = ImageSetOptions {
            gray: false,
            shuffle: None,
            backend: Backend::Lmdb,
            size: None,
            check_size: false,
            encoding: Encoding::None,
        };
        let _ = convert_imageset("absent/", list, folder.at("converted"), &options, &mut |_, _| ());
    });
}

/// The list of a WindowData layer, which opens none of the files it names.
pub fn window_list(bytes: &[u8]) {
    FOLDER.with(|folder| {
        folder.write("windows.txt", bytes);
        let list = folder.text("windows.txt");
        let text = format!(
            "layer {{ name: 'd' type: 'WindowData' top: 'x' transform_param {{ crop_size: 4 }} \
             window_data_param {{ source: '{list}' batch_size: 2 }} }}"
        );
        let _ = WindowData::new(&layer(&text), &CX).and_then(|mut data| data.open(1));
    });
}

/// The log of a training.
pub fn training_log(bytes: &[u8]) {
    FOLDER.with(|folder| {
        let Ok(log) = TrainingLog::read(folder.write("train.log", bytes)) else { return };
        for table in [&log.train, &log.test, &log.loss] {
            // A column has a value a row at most, and every row has a place for each column.
            for name in &table.names {
                assert!(table.column(name).is_some_and(|column| column.count() <= table.rows.len()));
            }
            assert!(table.rows.iter().all(|row| row.values.len() <= table.names.len()));
        }
    });
}

/// A file of flags.
pub fn flagfile(bytes: &[u8]) {
    FOLDER.with(|folder| {
        let Ok(flags) = flagfile::read(&folder.write("flags", bytes)) else { return };
        assert!(flags.iter().all(|line| line.text.starts_with(b"-") && !line.text.contains(&b'\n')));
    });
}
