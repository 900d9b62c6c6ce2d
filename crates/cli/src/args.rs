//! The commands and their flags. One definition serves the parsing, the help and [`crate::argv`]'s rewriting.

mod annoset;
mod classify;
mod convert_imageset;
mod data;
mod detect;
mod device;
mod figures;
mod shell;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, RangedI64ValueParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use lgm_core::Error;
use lgm_proto::strings;

pub use self::annoset::{AnnoType, ConvertAnnosetArgs, GetImageSizeArgs, LabelType};
pub use self::classify::{ClassifyArgs, ScoresFormat};
pub use self::convert_imageset::ConvertImagesetArgs;
pub use self::data::{
    Backend, ComputeImageMeanArgs, ConvertCifarArgs, ConvertCifarDataArgs, ConvertMnistArgs, ConvertMnistSiameseArgs,
    ExtractFeaturesArgs, MakeGlyphsArgs, ModeWord,
};
pub use self::detect::{AdversarialArgs, FoldArgs, LikelihoodArgs};
pub use self::device::{DeviceFlags, GpuFlag, Gpus};
pub use self::figures::{ChartType, DrawNetArgs, Layers, ParseLogArgs, PlotTrainingLogArgs, Rankdir};
pub use self::shell::{CompletionsArgs, ManArgs, ShellFlag};
use crate::signals::Action;

const EXAMPLES: &str = "\
Flags take one dash or two, '=' or a space, and may stand before the command, as Caffe's do:
  lgm-caffe train -solver solver.prototxt
  lgm-caffe train --solver=solver.prototxt --weights=a.caffemodel,b.caffemodel
  lgm-caffe test -model net.prototxt -weights net.caffemodel -iterations 100
'lgm-caffe COMMAND --help' lists a command's flags.";

/// Caffe in Rust, with the large-margin Gaussian Mixture loss.
#[derive(Debug, Parser)]
#[command(name = "lgm-caffe", bin_name = "lgm-caffe", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Files of flags, one a line with '=' before its value, separated by commas; '#' begins a comment
    // Read before clap, which sees the flags in its place.
    #[arg(long = "flagfile", value_name = "FILES", global = true)]
    pub flagfile: Option<OsString>,
    /// How to log.
    #[command(flatten)]
    pub log: LogFlags,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train or fine-tune a model
    Train(TrainArgs),
    /// Score a model
    Test(TestArgs),
    /// Measure a model's execution time, layer by layer
    Time(TimeArgs),
    /// Print a net's layers, shapes, parameters, operations and memory
    Summary(SummaryArgs),
    /// Show the GPUs and NVIDIA's libraries, or where they were looked for
    #[command(name = "device_query")]
    DeviceQuery(DeviceQueryArgs),
    /// Take the mean of a database's images
    #[command(name = "compute_image_mean")]
    ComputeImageMean(ComputeImageMeanArgs),
    /// Write what a net makes of its data, blob by blob, to databases or an HDF5 file
    #[command(name = "extract_features")]
    ExtractFeatures(ExtractFeaturesArgs),
    /// Convert a list of image files to LMDB or LevelDB
    #[command(name = "convert_imageset")]
    ConvertImageset(ConvertImagesetArgs),
    /// Convert MNIST's idx files to LMDB, LevelDB or HDF5
    #[command(alias = "convert_mnist_data")]
    ConvertMnist(ConvertMnistArgs),
    /// Convert CIFAR-10/100 or folders of images to HDF5
    ConvertCifar(ConvertCifarArgs),
    /// Convert CIFAR-10 or CIFAR-100 to LMDB or LevelDB
    #[command(name = "convert_cifar_data")]
    ConvertCifarData(ConvertCifarDataArgs),
    /// Convert MNIST's idx files to LevelDB or LMDB of random pairs, for siamese networks
    #[command(name = "convert_mnist_siamese_data")]
    ConvertMnistSiamese(ConvertMnistSiameseArgs),
    /// Convert images and the boxes of their objects to LMDB or LevelDB
    #[command(name = "convert_annoset")]
    ConvertAnnoset(ConvertAnnosetArgs),
    /// List the names, heights and widths of images, for the name_size_file of SSD's evaluation
    #[command(name = "get_image_size")]
    GetImageSize(GetImageSizeArgs),
    /// Upgrade a net's prototxt to today's format
    #[command(name = "upgrade_net_proto_text")]
    UpgradeNetProtoText(UpgradeArgs),
    /// Upgrade a binary net, such as weights, to today's format
    #[command(name = "upgrade_net_proto_binary")]
    UpgradeNetProtoBinary(UpgradeArgs),
    /// Upgrade a solver's prototxt to today's format
    #[command(name = "upgrade_solver_proto_text")]
    UpgradeSolverProtoText(UpgradeArgs),
    /// Make tables of a training's log: losses and outputs, iterations, seconds and learning rates
    #[command(name = "parse_log")]
    ParseLog(ParseLogArgs),
    /// Classify images
    Classify(ClassifyArgs),
    /// Draw a dataset of digits, or of letters, into HDF5 files
    MakeGlyphs(MakeGlyphsArgs),
    /// Draw the features a net gives its data, coloured by class, with the class centers and equal likelihoods
    PlotFeatures(PlotFeaturesArgs),
    /// Turn a trained L-GM layer into an InnerProduct, for programs that know no L-GM
    Fold(FoldArgs),
    /// Print each input's likelihood under a trained L-GM mixture, and which inputs are abnormal
    Likelihood(LikelihoodArgs),
    /// Attack a trained net along its input gradient, and measure how well scores separate abnormal inputs from clean ones
    Adversarial(AdversarialArgs),
    /// Draw a net's layers and blobs as a graph
    #[command(name = "draw_net")]
    DrawNet(DrawNetArgs),
    /// Draw what trainings logged: accuracy, loss or learning rate by iterations or seconds
    #[command(name = "plot_training_log")]
    PlotTrainingLog(PlotTrainingLogArgs),
    /// Print a script with which a shell completes commands and flags
    Completions(CompletionsArgs),
    /// Print a manual page
    Man(ManArgs),
}

/// Where the log goes and what is in it: glog's flags. Each can also be set by an environment variable, GLOG_log_dir
/// and so on.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Log")]
pub struct LogFlags {
    /// Also write the log to a file in this folder
    #[arg(long = "log_dir", value_name = "DIR", global = true)]
    pub log_dir: Option<PathBuf>,
    /// Leave out messages below this severity: 0 info, 1 warning, 2 error, 3 fatal
    #[arg(long = "minloglevel", value_name = "N", global = true)]
    pub minloglevel: Option<i32>,
    /// Also log details: 1 some, 2 all
    #[arg(long = "v", value_name = "N", global = true)]
    pub v: Option<i32>,
    /// Log to stderr only, even if log_dir is set
    #[arg(long = "logtostderr", global = true)]
    pub logtostderr: bool,
}

/// Flags that choose the layers of a net.
#[derive(Args, Debug)]
pub struct StateFlags {
    /// Level of the net's state, for include and exclude rules
    #[arg(long = "level", value_name = "N")]
    pub level: Option<i32>,
    /// Stages of the net's state, for include and exclude rules, separated by commas
    #[arg(long = "stage", value_name = "NAMES", value_delimiter = ',', value_parser = name())]
    pub stages: Vec<String>,
}

/// Flags of `train`.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// The solver's prototxt
    #[arg(long = "solver", value_name = "FILE")]
    pub solver: PathBuf,
    /// Solver state to resume from
    #[arg(long = "snapshot", value_name = "FILE", conflicts_with = "weights")]
    pub snapshot: Option<PathBuf>,
    /// Trained weights to start from, several files separated by commas
    #[arg(long = "weights", value_name = "FILES", value_delimiter = ',', value_parser = file())]
    pub weights: Vec<PathBuf>,
    /// The device.
    #[command(flatten)]
    pub device: DeviceFlags,
    /// The net's state.
    #[command(flatten)]
    pub state: StateFlags,
    /// What Ctrl-C (SIGINT) does: snapshot and stop, snapshot and go on, or nothing; a second Ctrl-C during a stop
    /// ends the process at once
    #[arg(long = "sigint_effect", value_name = "EFFECT", value_enum, default_value_t = Action::Stop)]
    pub sigint_effect: Action,
    /// Go on, with a warning, when a loss, a gradient or a parameter becomes NaN or infinite; unless given, the run ends.
    /// Snapshots of what is not finite are never written
    #[arg(long = "keep_going")]
    pub keep_going: bool,
    /// What SIGHUP does
    #[arg(long = "sighup_effect", value_name = "EFFECT", value_enum, default_value_t = Action::Snapshot)]
    pub sighup_effect: Action,
}

/// Flags of `test`.
#[derive(Args, Debug)]
pub struct TestArgs {
    /// The net's prototxt
    #[arg(long = "model", value_name = "FILE")]
    pub model: PathBuf,
    /// Trained weights, several files separated by commas
    #[arg(long = "weights", value_name = "FILES", value_delimiter = ',', value_parser = file(), required = true)]
    pub weights: Vec<PathBuf>,
    /// Batches to score
    #[arg(long = "iterations", value_name = "N", default_value_t = 50, value_parser = at_least_one())]
    pub iterations: u32,
    /// The device.
    #[command(flatten)]
    pub device: DeviceFlags,
    /// The net's state.
    #[command(flatten)]
    pub state: StateFlags,
}

/// Flags of `time`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("timed").args(["model", "solver"]).required(true))]
pub struct TimeArgs {
    /// The net's prototxt
    #[arg(long = "model", value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// A solver's prototxt: whole iterations are timed, update included
    #[arg(long = "solver", value_name = "FILE")]
    pub solver: Option<PathBuf>,
    /// Passes to time
    #[arg(long = "iterations", value_name = "N", default_value_t = 50, value_parser = at_least_one())]
    pub iterations: u32,
    /// With -solver: seconds of warming up, and as many iterations as take no less
    #[arg(long = "seconds", value_name = "S", default_value_t = 0.0, value_parser = seconds, requires = "solver")]
    pub seconds: f64,
    /// The net's phase; TRAIN unless given
    #[arg(long = "phase", value_name = "PHASE", value_enum)]
    pub phase: Option<PhaseFlag>,
    /// The device.
    #[command(flatten)]
    pub device: DeviceFlags,
    /// The net's state.
    #[command(flatten)]
    pub state: StateFlags,
}

/// A time that is not negative, and no longer than a day.
fn seconds(text: &str) -> Result<f64, Error> {
    match text.parse() {
        Ok(value) if (0.0..=86400.0).contains(&value) => Ok(value),
        _ => Err(Error::config("expected seconds, from 0 to 86400")),
    }
}

/// Flags of `summary`.
#[derive(Args, Debug)]
pub struct SummaryArgs {
    /// The net's prototxt
    #[arg(long = "model", value_name = "FILE")]
    pub model: PathBuf,
    /// The net's phase; TRAIN unless given
    #[arg(long = "phase", value_name = "PHASE", value_enum)]
    pub phase: Option<PhaseFlag>,
    /// The device, whose memory is reported too.
    #[command(flatten)]
    pub device: DeviceFlags,
    /// The net's state.
    #[command(flatten)]
    pub state: StateFlags,
}

/// Flags of `device_query`.
#[derive(Args, Debug)]
pub struct DeviceQueryArgs {
    /// The GPUs.
    #[command(flatten)]
    pub gpus: GpuFlag,
}

/// Files of the upgrades.
#[derive(Args, Debug)]
pub struct UpgradeArgs {
    /// The file in an older format
    pub input: PathBuf,
    /// The file to write
    pub output: PathBuf,
}

/// Flags of `plot-features`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  lgm-caffe plot-features -model net.prototxt -weights net_iter_1000.caffemodel -blob ip1 -out features.png
  lgm-caffe plot-features -model net.prototxt -weights net_iter_1000.caffemodel -blob ip1 -map -out likelihood.svg
  lgm-caffe plot-features -model net.prototxt -weights net_iter_200.caffemodel,net_iter_400.caffemodel -movie \\
      -blob ip1 -out training.png
Ellipses lie at the distances 1 and 2 of an L-GM layer's Gaussians, of which components of more features show the projection.")]
pub struct PlotFeaturesArgs {
    /// The net's prototxt
    #[arg(long = "model", value_name = "FILE")]
    pub model: PathBuf,
    /// Trained weights, several files separated by commas
    #[arg(long = "weights", value_name = "FILES", value_delimiter = ',', value_parser = file(), required = true)]
    pub weights: Vec<PathBuf>,
    /// The blob with the features; of more than two, the first two principal components are drawn
    #[arg(long = "blob", value_name = "NAME", value_parser = name())]
    pub blob: String,
    /// The blob with the labels
    #[arg(long = "label", value_name = "NAME", value_parser = name(), default_value = "label")]
    pub label: String,
    /// The layer whose first parameter holds the centers; the net's only ClassDistance or LGMLoss layer unless given
    #[arg(long = "classifier", value_name = "LAYER", value_parser = name())]
    pub classifier: Option<String>,
    /// The PNG or SVG file to draw, by the end of its name
    #[arg(long = "out", value_name = "FILE")]
    pub out: PathBuf,
    /// Draw the likelihood under the L-GM layer's mixture behind the features, which must be two
    #[arg(long = "map")]
    pub map: bool,
    /// Draw an animated PNG, with a figure for each file of -weights, in the plane of the last one's features
    #[arg(long = "movie")]
    pub movie: bool,
    /// Whose data: with TRAIN the training data, by the net of the TEST phase all the same; TEST unless given
    #[arg(long = "phase", value_name = "PHASE", value_enum)]
    pub phase: Option<PhaseFlag>,
    /// Batches to run
    #[arg(long = "iterations", value_name = "N", default_value_t = 50, value_parser = at_least_one())]
    pub iterations: u32,
    /// The device.
    #[command(flatten)]
    pub device: DeviceFlags,
    /// The net's state.
    #[command(flatten)]
    pub state: StateFlags,
}

/// One file of several; blanks around it are not its name's.
fn file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|name| match OsStr::from_bytes(name.as_bytes().trim_ascii()) {
        name if name.is_empty() => Err("expected file names separated by commas, found an empty one"),
        name => Ok(PathBuf::from(name)),
    })
}

/// A name of a layer, a blob or a file, in any bytes.
fn name() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(strings::from_path)
}

/// A number of passes.
fn at_least_one() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

/// A phase by Caffe's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PhaseFlag {
    /// The phase of training.
    #[value(name = "TRAIN")]
    Train,
    /// The phase of testing.
    #[value(name = "TEST")]
    Test,
}

impl From<PhaseFlag> for lgm_core::Phase {
    fn from(flag: PhaseFlag) -> Self {
        match flag {
            PhaseFlag::Train => lgm_core::Phase::Train,
            PhaseFlag::Test => lgm_core::Phase::Test,
        }
    }
}

/// A command line that makes no sense; ends the process with code 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

impl From<clap::Error> for UsageError {
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        let lines = text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n");
        UsageError(lines.strip_prefix("error: ").unwrap_or(&lines).to_string())
    }
}
