//! Flags of `classify`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{DeviceFlags, StateFlags, at_least_one, file, name};

/// Flags of `classify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  lgm-caffe classify -model deploy.prototxt -weights net.caffemodel -labels names.txt -mean_value 104,117,123 cat.jpg
  lgm-caffe classify deploy.prototxt net.caffemodel mean.binaryproto names.txt cat.jpg
An image that cannot be read is logged and the others are classified; the exit code is then 1.")]
pub struct ClassifyArgs {
    /// Images, folders of images, or patterns in quotes; without -model, Caffe's five words: the net's prototxt, the
    /// weights, the mean file, the labels and the image
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<PathBuf>,
    /// The net's prototxt, with one Input layer
    #[arg(long = "model", value_name = "FILE", requires = "weights")]
    pub model: Option<PathBuf>,
    /// Trained weights, several files separated by commas
    #[arg(long = "weights", value_name = "FILES", value_delimiter = ',', value_parser = file(), requires = "model")]
    pub weights: Vec<PathBuf>,
    /// A mean file (binaryproto); the mean of each of its channels is taken off
    #[arg(long = "mean", value_name = "FILE", conflicts_with = "mean_value")]
    pub mean: Option<PathBuf>,
    /// Take the mean file off pixel by pixel, which must then have the size that images are resized to
    #[arg(long = "mean_image")]
    pub mean_image: bool,
    /// Values to take off: one, or one for each channel in the order blue, green, red
    #[arg(long = "mean_value", value_name = "VALUES", value_delimiter = ',', allow_negative_numbers = true)]
    pub mean_value: Vec<f32>,
    /// What values are multiplied with, the mean taken off
    #[arg(long = "scale", value_name = "S", default_value_t = 1.0, allow_negative_numbers = true)]
    pub scale: f32,
    /// The names of classes, a line each, such as synset_words.txt
    #[arg(long = "labels", value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Classes to print of each image
    #[arg(long = "top", value_name = "N", default_value_t = 5, value_parser = at_least_one())]
    pub top: u32,
    /// How to print
    #[arg(long = "format", value_name = "FORMAT", value_enum, default_value_t = ScoresFormat::Text)]
    pub format: ScoresFormat,
    /// Average the scores of ten crops: the corners and the middle of the image, and their mirror images
    #[arg(long = "oversample")]
    pub oversample: bool,
    /// With -oversample: the height and width that images are resized to before they are cropped
    #[arg(long = "images_dim", value_name = "H,W", value_parser = size, default_value = "256,256")]
    pub images_dim: [usize; 2],
    /// The blob with the scores; the net's only output unless given
    #[arg(long = "blob", value_name = "NAME", value_parser = name())]
    pub blob: Option<String>,
    /// The device.
    #[command(flatten)]
    pub device: DeviceFlags,
    /// The net's state.
    #[command(flatten)]
    pub state: StateFlags,
}

/// How scores are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScoresFormat {
    /// Lines as those of Caffe's program.
    Text,
    /// A line of comma-separated values for each class.
    Csv,
    /// One array of images.
    Json,
}

/// A height and a width.
fn size(text: &str) -> Result<[usize; 2], String> {
    let extent = |text: &str| text.trim().parse().ok().filter(|extent| *extent > 0);
    let both = text.split_once(',').and_then(|(height, width)| Some([extent(height)?, extent(width)?]));
    both.ok_or_else(|| "expected a height and a width with a comma between, such as 256,256".to_string())
}
