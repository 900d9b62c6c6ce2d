//! The flags of `fold`, `likelihood` and `adversarial`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::{DeviceFlags, StateFlags, at_least_one, file, name};

/// A trained net and its classifier.
#[derive(Args, Debug)]
pub struct TrainedFlags {
    /// The net's prototxt
    #[arg(long = "model", value_name = "FILE")]
    pub model: PathBuf,
    /// Trained weights, several files separated by commas
    #[arg(long = "weights", value_name = "FILES", value_delimiter = ',', value_parser = file(), required = true)]
    pub weights: Vec<PathBuf>,
    /// The layer that makes the logits; the net's only LGMLoss or ClassDistance layer unless given, or for 'adversarial' the
    /// layer before its only SoftmaxWithLoss
    #[arg(long = "classifier", value_name = "LAYER", value_parser = name())]
    pub classifier: Option<String>,
    /// The net's state.
    #[command(flatten)]
    pub state: StateFlags,
}

/// Flags of `fold`.
#[derive(Args, Debug)]
#[command(after_help = "\
The logits of the InnerProduct are those of the L-GM layer without margin, up to a constant for each item, which softmax
and argmax do not see. That takes one variance, or one row of variances, for all classes.
Example:
  lgm-caffe fold -model net.prototxt -weights net_iter_1000.caffemodel -out deploy
writes deploy.prototxt and deploy.caffemodel.")]
pub struct FoldArgs {
    /// The net.
    #[command(flatten)]
    pub net: TrainedFlags,
    /// The files to write, without their endings .prototxt and .caffemodel
    #[arg(long = "out", value_name = "STEM")]
    pub out: PathBuf,
}

/// Flags of `likelihood`.
#[derive(Args, Debug)]
#[command(after_help = "\
Likelihoods are natural logarithms of densities of the features: of the Gaussian of the predicted class, and of the mixture of
all classes with equal priors, normalising constants included. An input is abnormal when its mixture's lies below the
threshold. Example: a threshold below which 1% of the test data lie, then used on other data:
  lgm-caffe likelihood -model net.prototxt -weights net.caffemodel -calibrate 0.01 -threshold_file net.threshold
  lgm-caffe likelihood -model net.prototxt -weights net.caffemodel -threshold_file net.threshold \\
      -source other.txt -out scores.csv")]
pub struct LikelihoodArgs {
    /// The net.
    #[command(flatten)]
    pub net: TrainedFlags,
    /// Data to read in place of those of the net's TEST data layer: what its 'source' may say
    #[arg(long = "source", value_name = "SOURCE", value_parser = name())]
    pub source: Option<String>,
    /// Batches to run
    #[arg(long = "iterations", value_name = "N", default_value_t = 50, value_parser = at_least_one())]
    pub iterations: u32,
    /// Take the data as clean, find the threshold with this rate of false alarms, and write it to -threshold_file
    #[arg(long = "calibrate", value_name = "RATE", value_parser = rate, requires = "threshold_file")]
    pub calibrate: Option<f64>,
    /// The file of the threshold: written with -calibrate, otherwise read
    #[arg(long = "threshold_file", value_name = "FILE")]
    pub threshold_file: Option<PathBuf>,
    /// The file of results, an item a row: .csv, or .h5 for HDF5
    #[arg(long = "out", value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The device.
    #[command(flatten)]
    pub device: DeviceFlags,
}

/// Flags of `adversarial`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("abnormal").args(["epsilon", "against"]).required(true).multiple(true))]
#[command(after_help = "\
Attacks the TEST data by FGSM (-steps 1) or iterated FGSM, PGD without a random start (-steps 2 and more), along the signs of
the input's own gradient of the cross-entropy without margin. Then measures how well scores separate abnormal inputs from
clean ones: the area under the ROC curve (0.5 is chance, 1 perfect) of the likelihood (of nets with an L-GM layer), of the
largest softmax probability, and of the kernel density of the features around those of clean items of the same class.
Examples:
  lgm-caffe adversarial -model net.prototxt -weights net.caffemodel -epsilon 0.05,0.1 -out attacked
  lgm-caffe adversarial -model net.prototxt -weights net.caffemodel -against letters/test.txt")]
pub struct AdversarialArgs {
    /// The net.
    #[command(flatten)]
    pub net: TrainedFlags,
    /// Greatest changes of an input's element, as fractions of the input range, separated by commas
    #[arg(long = "epsilon", value_name = "FRACTIONS", value_delimiter = ',', value_parser = fraction)]
    pub epsilon: Vec<f64>,
    /// Steps of each attack
    #[arg(long = "steps", value_name = "N", default_value_t = 1, value_parser = at_least_one())]
    pub steps: u32,
    /// The length of a step, as a fraction of epsilon; 1 for one step, otherwise 2.5 divided by their number, unless given
    #[arg(long = "step_size", value_name = "FRACTION", value_parser = fraction)]
    pub step_size: Option<f64>,
    /// The least and greatest value of an input's element; those found in the data unless given
    #[arg(long = "range", value_name = "LEAST,GREATEST", value_parser = range)]
    pub range: Option<(f64, f64)>,
    /// The blob to perturb; the only blob of data that the logits depend on unless given
    #[arg(long = "input", value_name = "BLOB", value_parser = name())]
    pub input: Option<String>,
    /// Other data, to be separated from the TEST data: what the 'source' of the data layer may say
    #[arg(long = "against", value_name = "SOURCE", value_parser = name())]
    pub against: Option<String>,
    /// Batches to run
    #[arg(long = "iterations", value_name = "N", default_value_t = 50, value_parser = at_least_one())]
    pub iterations: u32,
    /// The folder to write the perturbed inputs (HDF5 files and their lists, for HDF5Data), roc.csv and roc.png to; made if
    /// absent
    #[arg(long = "out", value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The device.
    #[command(flatten)]
    pub device: DeviceFlags,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => Err("expected a rate between 0 and 1, such as 0.01".into()),
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("expected a fraction above 0 and up to 1, such as 0.1".into()),
    }
}

fn range(text: &str) -> Result<(f64, f64), String> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|v| v.is_finite());
    match text.split_once(',').map(|(least, greatest)| (number(least), number(greatest))) {
        Some((Some(least), Some(greatest))) if least < greatest => Ok((least, greatest)),
        _ => Err("expected two numbers, the lesser first, such as 0,1".into()),
    }
}
