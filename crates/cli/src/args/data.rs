//! Flags of the commands that make data sets and databases.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lgm_data::{convert, db};

use super::{DeviceFlags, StateFlags, at_least_one, name};

/// Flags of `compute_image_mean`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  lgm-caffe compute_image_mean -backend lmdb train_lmdb mean.binaryproto")]
pub struct ComputeImageMeanArgs {
    /// The folder of an LMDB or LevelDB database of images of one size
    #[arg(value_name = "INPUT_DB")]
    pub input: PathBuf,
    /// The file to write the mean to, for mean_file of transform_param; unless given, only the channels' means are logged
    #[arg(value_name = "OUTPUT_FILE")]
    pub output: Option<PathBuf>,
    /// Accepted for Caffe's sake: what the folder holds decides
    #[arg(long = "backend", value_name = "FORM", value_enum)]
    pub backend: Option<DatabaseForm>,
}

/// Flags of `extract_features`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example, of ten batches:
  lgm-caffe extract_features net.caffemodel net.prototxt fc7,prob fc7_lmdb,prob_lmdb 10 lmdb GPU 0")]
pub struct ExtractFeaturesArgs {
    /// Trained weights
    pub weights: PathBuf,
    /// The net's prototxt, with its data in the TEST phase
    pub model: PathBuf,
    /// The blobs to write, separated by commas
    #[arg(value_name = "BLOBS", value_parser = name())]
    pub blobs: String,
    /// A new database for each blob, separated by commas; or one HDF5 file for all
    #[arg(value_name = "OUTPUTS")]
    pub outputs: OsString,
    /// Batches to run
    #[arg(value_name = "BATCHES", value_parser = at_least_one())]
    pub batches: u32,
    /// The form of the outputs
    #[arg(value_name = "FORM", value_enum)]
    pub form: Backend,
    /// Where to compute; the CPU unless given here or by -gpu
    #[arg(value_name = "MODE", value_enum)]
    pub mode: Option<ModeWord>,
    /// The GPU's number, 0 unless given
    #[arg(value_name = "DEVICE_ID")]
    pub device_id: Option<u32>,
    /// The device.
    #[command(flatten)]
    pub device: DeviceFlags,
    /// The net's state.
    #[command(flatten)]
    pub state: StateFlags,
}

/// Flags of `convert-mnist`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  lgm-caffe convert-mnist train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz mnist_train_lmdb")]
pub struct ConvertMnistArgs {
    /// The images' idx file, gzipped or not
    pub images: PathBuf,
    /// The labels' idx file, gzipped or not
    pub labels: PathBuf,
    /// The LMDB or LevelDB folder or HDF5 file to make
    pub output: PathBuf,
    /// The form of the output
    #[arg(long = "backend", value_name = "FORM", value_enum, default_value_t = Backend::Lmdb)]
    pub backend: Backend,
}

/// Flags of `convert-cifar`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example, with the padding of the L-GM paper:
  lgm-caffe convert-cifar cifar-100-binary data/cifar100 -pad 4")]
pub struct ConvertCifarArgs {
    /// The folder of CIFAR's binary or Python files, or one with folders train and test of a folder of images per class
    pub input: PathBuf,
    /// The folder to write train.h5, test.h5 and the lists train.txt and test.txt to
    pub output: PathBuf,
    /// Zero pixels to add around the training images
    #[arg(long = "pad", value_name = "N", default_value_t = 0)]
    pub pad: usize,
    /// CIFAR-100: label with the 20 coarse classes
    #[arg(long = "coarse")]
    pub coarse: bool,
}

/// Flags of `convert_cifar_data`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples, of which the first makes data/cifar10_train_lmdb and data/cifar10_test_lmdb:
  lgm-caffe convert_cifar_data cifar-10-batches-bin data lmdb
  lgm-caffe convert_cifar_data -coarse cifar-100-binary data leveldb
  lgm-caffe compute_image_mean -backend lmdb data/cifar10_train_lmdb data/mean.binaryproto")]
pub struct ConvertCifarDataArgs {
    /// The folder of CIFAR-10's or CIFAR-100's binary or Python files
    #[arg(value_name = "INPUT_FOLDER")]
    pub input: PathBuf,
    /// The folder to make the two databases in
    #[arg(value_name = "OUTPUT_FOLDER")]
    pub output: PathBuf,
    /// The kind of database
    #[arg(value_name = "DB_TYPE", value_enum)]
    pub kind: DatabaseForm,
    /// CIFAR-100: label with the 20 coarse classes
    #[arg(long = "coarse")]
    pub coarse: bool,
}

/// Flags of `convert_mnist_siamese_data`.
#[derive(Args, Debug)]
#[command(after_help = "\
A record has the two images of a pair as its two channels, and the label 1 where they are of one class, else 0. The same
files and the same -seed give the same pairs; Caffe's tool draws others each time. Example:
  lgm-caffe convert_mnist_siamese_data train-images-idx3-ubyte train-labels-idx1-ubyte mnist_siamese_train_leveldb")]
pub struct ConvertMnistSiameseArgs {
    /// The images' idx file, gzipped or not
    pub images: PathBuf,
    /// The labels' idx file, gzipped or not
    pub labels: PathBuf,
    /// The folder of the database to make, which does not exist
    #[arg(value_name = "DB_NAME")]
    pub database: PathBuf,
    /// The kind of database
    #[arg(long = "backend", value_name = "KIND", value_enum, default_value_t = DatabaseForm::Leveldb)]
    pub backend: DatabaseForm,
    /// Another seed draws other pairs
    #[arg(long = "seed", value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// Flags of `make-glyphs`.
#[derive(Args, Debug)]
pub struct MakeGlyphsArgs {
    /// The folder to write train.h5, test.h5 and their lists train.txt and test.txt to; made if absent
    #[arg(long = "out", value_name = "DIR")]
    pub out: PathBuf,
    /// Number of training images
    #[arg(long = "train", value_name = "N", default_value_t = 10_000)]
    pub train: usize,
    /// Number of test images
    #[arg(long = "test", value_name = "N", default_value_t = 2_000)]
    pub test: usize,
    /// Another seed draws other images
    #[arg(long = "seed", value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Draw capital letters that resemble no digit, labelled from 0, in place of digits: what a net trained on digits has
    /// never seen
    #[arg(long = "letters")]
    pub letters: bool,
    /// Also draw samples of every class to this PNG file
    #[arg(long = "sheet", value_name = "FILE")]
    pub sheet: Option<PathBuf>,
}

/// The form of a converted data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// An LMDB folder of Datum messages, for Data layers.
    Lmdb,
    /// A LevelDB folder of the same.
    Leveldb,
    /// An HDF5 file, for HDF5Data layers.
    Hdf5,
}

/// The form of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatabaseForm {
    /// An LMDB folder.
    Lmdb,
    /// A LevelDB folder.
    Leveldb,
}

/// Where to compute, by Caffe's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeWord {
    /// On the CPU.
    #[value(name = "CPU")]
    Cpu,
    /// On a GPU.
    #[value(name = "GPU")]
    Gpu,
}

impl From<Backend> for convert::Format {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Lmdb => convert::Format::Lmdb,
            Backend::Leveldb => convert::Format::Leveldb,
            Backend::Hdf5 => convert::Format::Hdf5,
        }
    }
}

impl From<DatabaseForm> for db::Backend {
    fn from(form: DatabaseForm) -> Self {
        match form {
            DatabaseForm::Lmdb => db::Backend::Lmdb,
            DatabaseForm::Leveldb => db::Backend::Leveldb,
        }
    }
}
