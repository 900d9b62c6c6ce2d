//! `classify`: what a net makes of images: for each its classes of the highest scores, as Caffe's `cpp_classification`
//! prints them.

mod images;
mod report;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use lgm_core::{Phase, Step};
use lgm_data::{Crops, ImageInput, InputMean};
use lgm_net::{Keep, Net, Placement, included};
use tracing::error;

use crate::args::ClassifyArgs;
use crate::progress::Progress;
use crate::{gpu, models};
use report::{Prediction, Report};

/// What a command line asks for, flags or Caffe's five words.
struct Job<'a> {
    model: &'a Path,
    weights: &'a [PathBuf],
    mean: InputMean,
    labels: Option<&'a Path>,
    images: &'a [PathBuf],
}

/// Runs the command. Images that cannot be read are logged and the others classified; the exit code is then 1.
///
/// # Errors
/// When the net, the weights, the mean or the labels do not fit each other, or no image is found.
pub fn run(args: &ClassifyArgs) -> Result<ExitCode> {
    let job = job(args)?;
    let images = images::find(job.images)?;
    let gpu = gpu::choose_device(&args.device, None)?;
    let crops = if args.oversample { Crops::Ten(args.images_dim[0], args.images_dim[1]) } else { Crops::Whole };

    let (mut parsed, mut options) = models::read(job.model, Phase::Test, &args.state, false)?;
    let (input, shape) = input(&mut parsed, &options.state, job.model)?;
    // No more inputs at once than there are, nor than the prototxt gives memory for.
    let wanted = images.len().saturating_mul(if args.oversample { lgm_data::TEN_CROPS } else { 1 });
    let batch = shape[0].min(wanted).max(1);
    let reader = ImageInput::new([shape[1], shape[2], shape[3]], crops, job.mean, args.scale)?;
    set_batch(&mut parsed, &input, batch);
    options.keep = args.blob.clone().map_or(Keep::Outputs, |blob| Keep::Named(vec![blob]));
    options.device = gpu.map(|gpu| Placement { gpu, histories: 0 });
    let mut net = Net::new(&parsed.message, &parsed.positions, &models::registry(), &options)?;
    models::load_weights(&mut net, job.weights)?;

    let output = output(&net, args.blob.as_deref())?;
    let (scores, _) = net.blob(&output)?;
    ensure!(
        !scores.is_empty() && scores[0] == batch && scores.count_from(1) > 0,
        "blob '{output}' of shape {scores} has no scores for each of the {batch} images of a batch"
    );
    let classes = scores.count_from(1);
    let labels = job.labels.map(|path| labels(path, classes, &output)).transpose()?;

    let mut runner =
        Runner { net, input, output, batch, classes, pending: Vec::new(), owners: VecDeque::new(), pass: 0 };
    let mut report = Report::new(args.format, labels, args.top as usize);
    let progress = Progress::items("images", images.len() as u64);
    let mut failed = false;
    for (done, path) in images.iter().enumerate() {
        match reader.read(path) {
            Ok(values) => runner.add(path, values, reader.count()),
            Err(e) => {
                error!("lgm-caffe: error: {e}");
                failed = true;
                report.fails(path, &e.to_string());
            }
        }
        for found in runner.run(done + 1 == images.len())? {
            match found.scores.iter().all(|score| score.is_finite()) {
                true => report.add(&found)?,
                false => {
                    let what = "the net's output is not finite: its weights, or the image scaled, are too large";
                    error!("lgm-caffe: error: {}: {what}", found.image.display());
                    failed = true;
                    report.fails(&found.image, what);
                }
            }
        }
        progress.at(done as u64 + 1);
    }
    progress.finish();
    report.finish()?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn job(args: &ClassifyArgs) -> Result<Job<'_>> {
    let mean = match (&args.mean, args.mean_image) {
        (None, _) if args.mean_value.is_empty() => InputMean::None,
        (None, _) => InputMean::Values(args.mean_value.clone()),
        (Some(path), false) => InputMean::Channels(path.clone()),
        (Some(path), true) => InputMean::Pixels(path.clone()),
    };
    let labels = args.labels.as_deref();
    match (&args.model, &args.images[..]) {
        (Some(model), images) => Ok(Job { model, weights: &args.weights, mean, labels, images }),
        (None, [model, weights, mean, labels, images @ ..]) if !images.is_empty() => {
            ensure!(
                args.mean.is_none() && args.mean_value.is_empty() && args.labels.is_none(),
                "-mean, -mean_value and -labels go with -model; without it, {} and {} are the mean and the labels",
                mean.display(),
                labels.display()
            );
            let mean =
                if args.mean_image { InputMean::Pixels(mean.clone()) } else { InputMean::Channels(mean.clone()) };
            Ok(Job { model, weights: std::slice::from_ref(weights), mean, labels: Some(labels), images })
        }
        _ => bail!(
            "expected -model and -weights with one image or more, or the five words of Caffe's program: \
             deploy.prototxt net.caffemodel mean.binaryproto labels.txt image.jpg"
        ),
    }
}

/// The name and shape of the net's only input.
fn input(
    parsed: &mut lgm_proto::Parsed<lgm_proto::NetParameter>,
    state: &lgm_proto::NetState,
    model: &Path,
) -> Result<(String, [usize; 4])> {
    let net = &parsed.message;
    let layers = included(net, &parsed.positions, state)?;
    let inputs: Vec<_> = layers.iter().map(|&i| &net.layer[i]).filter(|layer| layer.r#type() == "Input").collect();
    let names: Vec<&str> = inputs.iter().flat_map(|layer| &layer.top).map(String::as_str).collect();
    let found = if names.is_empty() { "none".into() } else { format!("{} ({})", names.len(), names.join(", ")) };
    let ([layer], 1) = (&inputs[..], names.len()) else {
        bail!(
            "{}: expected one Input layer with one top, found {found}; images go to the input of a net to deploy, not to one \
             that reads its own data",
            model.display()
        )
    };
    let dims = layer.input_param.as_ref().and_then(|p| p.shape.first()).map_or(&[][..], |shape| &shape.dim);
    let extents: Option<Vec<usize>> = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let shape = extents.and_then(|extents| <[usize; 4]>::try_from(extents).ok()).with_context(|| {
        format!(
            "{}: input '{}' has shape {dims:?}, expected images × channels × height × width",
            model.display(),
            layer.top[0]
        )
    })?;
    Ok((layer.top[0].clone(), shape))
}

fn set_batch(parsed: &mut lgm_proto::Parsed<lgm_proto::NetParameter>, input: &str, batch: usize) {
    let layers = parsed.message.layer.iter_mut().filter(|layer| layer.r#type() == "Input");
    for layer in layers.filter(|layer| layer.top.iter().any(|top| top == input)) {
        let shapes = layer.input_param.iter_mut().flat_map(|p| &mut p.shape);
        shapes.filter_map(|shape| shape.dim.first_mut()).for_each(|dim| *dim = batch as i64);
    }
}

/// The blob with the scores: the one named, or the net's only output.
fn output(net: &Net, named: Option<&str>) -> Result<String> {
    match (named, &net.outputs()[..]) {
        (Some(name), _) => Ok(name.to_string()),
        (None, [only]) => Ok(only.to_string()),
        (None, several) => {
            bail!("the net has {} outputs ({}); choose one with -blob", several.len(), several.join(", "))
        }
    }
}

/// The names of classes, a line each.
fn labels(path: &Path, classes: usize, output: &str) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(lgm_core::Error::io(path, "read the labels"))?;
    let names: Vec<String> = String::from_utf8_lossy(&bytes).lines().map(str::to_string).collect();
    ensure!(
        names.len() == classes,
        "{}: has {} labels, a line each, but blob '{output}' has scores of {classes} classes",
        path.display(),
        names.len()
    );
    Ok(names)
}

/// The net, and images on their way through it, several in a batch.
struct Runner {
    net: Net,
    input: String,
    output: String,
    batch: usize,
    classes: usize,
    /// Inputs that wait.
    pending: Vec<f32>,
    /// The images of inputs that wait, oldest first.
    owners: VecDeque<Owner>,
    pass: u64,
}

struct Owner {
    image: PathBuf,
    /// Inputs of the image that the net has not seen.
    left: usize,
    count: usize,
    sums: Vec<f64>,
}

impl Runner {
    fn add(&mut self, image: &Path, values: Vec<f32>, count: usize) {
        self.pending.extend(values);
        let sums = vec![0.0; self.classes];
        self.owners.push_back(Owner { image: image.to_path_buf(), left: count, count, sums });
    }

    /// Runs the batches that are full, or all that waits. Gives the images that are done.
    fn run(&mut self, all: bool) -> Result<Vec<Prediction>> {
        let mut done = Vec::new();
        let waits = |owners: &VecDeque<Owner>| owners.iter().map(|owner| owner.left).sum::<usize>();
        while waits(&self.owners) >= self.batch || (all && !self.owners.is_empty()) {
            let taken = waits(&self.owners).min(self.batch);
            let one = self.pending.len() / waits(&self.owners);
            let mut values: Vec<f64> = self.pending.drain(..taken * one).map(f64::from).collect();
            // A batch that is not full runs with black images behind.
            values.resize(self.batch * one, 0.0);
            self.net.set_blob(&self.input, &values)?;
            self.net.forward(&Step { seed: 0, iter: 0, batch: self.pass })?;
            self.pass += 1;
            let (_, scores) = self.net.blob(&self.output)?;
            for scores in scores.chunks_exact(self.classes).take(taken) {
                let Some(owner) = self.owners.front_mut() else { break };
                owner.sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
                owner.left -= 1;
                if owner.left == 0 {
                    let count = owner.count as f64;
                    done.extend(self.owners.pop_front().map(|owner| Prediction {
                        image: owner.image,
                        scores: owner.sums.iter().map(|sum| (sum / count) as f32).collect(),
                    }));
                }
            }
        }
        Ok(done)
    }
}
