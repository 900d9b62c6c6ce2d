//! `adversarial`: what becomes of a trained net's accuracy when its inputs are perturbed against it, and how well scores tell
//! perturbed inputs, or other data, from clean ones.

mod attack;
mod figure;
mod report;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lgm_core::{Error, Shape, memory};
use lgm_data::hdf5::write_f32;
use lgm_net::six_digits;

use crate::args::AdversarialArgs;
use crate::detect::classifier::{Among, Classifier};
use crate::detect::kernel_density::KernelDensity;
use crate::detect::roc::{Roc, roc};
use crate::detect::run::{Scored, Trained};
use crate::{gpu, output, progress};
use attack::Attack;

/// A score of items, high for normal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// ln p(x) under the mixture.
    Likelihood,
    /// ln p(x | predicted class) under the mixture.
    Own,
    /// The largest softmax probability.
    Probability,
    /// The kernel density of the features around those of clean items of the predicted class.
    KernelDensity,
}

impl Score {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Score::Likelihood => "likelihood",
            Score::Own => "likelihood of the class",
            Score::Probability => "largest probability",
            Score::KernelDensity => "kernel density",
        }
    }
}

/// How well a score tells some items.
#[derive(Clone, Debug)]
pub struct Detection {
    /// Which abnormal items.
    pub of: String,
    /// Told by what.
    pub score: Score,
    /// How well.
    pub roc: Roc,
}

/// A batch of clean data.
type Data = Vec<(Shape, Vec<f64>)>;

/// Runs the command.
///
/// # Errors
/// When the net cannot be built or run, has no labels or no gradient, or files cannot be written.
pub fn run(args: &AdversarialArgs) -> Result<ExitCode> {
    let flags = &args.net;
    let gpu = gpu::choose_device(&args.device, None)?;
    let classifier = Classifier::read(&flags.model, &flags.state, flags.classifier.as_deref(), Among::All)?;
    let over = |source: Option<&str>, keep: bool| -> Result<(Scored, Vec<Data>)> {
        let message = classifier.scoring(source)?;
        let mut trained = Trained::new(&classifier, &message, &flags.weights, false, gpu.clone())?;
        let (mut scored, mut data) = (Scored::default(), Vec::new());
        for batch in progress::each("batches", args.iterations.into()) {
            trained.forward(batch, true, &mut scored)?;
            if keep {
                let read = trained.data()?;
                let bytes = read.iter().map(|(_, values)| 8 * values.len()).sum();
                memory::check(bytes, format!("keeping batch {batch} of the clean data"))?;
                data.push(read);
            }
        }
        Ok((scored, data))
    };

    let (clean, data) = over(None, !args.epsilon.is_empty())?;
    let kernels = Kernels::of(&clean);
    if let Err(error) = &kernels {
        tracing::warn!("no kernel density: {error}");
    }
    let kernels = kernels.ok();
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    }
    let mut said = format!("clean: {}\n", accuracy(&clean));
    let mut detections = Vec::new();

    if !args.epsilon.is_empty() {
        let input = input_of(args, &classifier)?;
        let range = args.range.map_or_else(|| found(&data, input), Ok)?;
        said += &format!("input range: {} to {}\n", six_digits(range.0 as f32), six_digits(range.1 as f32));
        let shapes: Vec<Shape> = data[0].iter().map(|(shape, _)| shape.clone()).collect();
        let message = classifier.attacked(&shapes)?;
        let mut trained = Trained::new(&classifier, &message, &flags.weights, true, gpu.clone())?;
        for &epsilon in &args.epsilon {
            let steps = args.steps;
            let of_reach = args.step_size.unwrap_or(if steps == 1 { 1.0 } else { 2.5 / f64::from(steps) });
            let reach = epsilon * (range.1 - range.0);
            let attack = Attack { reach, step: reach * of_reach, steps, range };
            let (mut scored, mut perturbed, mut zeros) = (Scored::default(), Vec::new(), 0);
            for (batch, _) in data.iter().zip(progress::each("batches attacked", data.len() as u64)) {
                let (x, zero) = attack.run(&mut trained, &classifier, batch, input, &mut scored)?;
                memory::reserve(&mut perturbed, x.len(), "the perturbed inputs")?;
                perturbed.extend(x.into_iter().map(|x| x as f32));
                zeros += zero;
            }
            let name = if steps == 1 { format!("fgsm_{epsilon}") } else { format!("pgd{steps}_{epsilon}") };
            said += &format!("{name}: {}", accuracy(&scored));
            if zeros > 0 {
                said += &format!("; {zeros} items have a gradient of zero and stay as they are");
            }
            said += "\n";
            if let Some(folder) = &args.out {
                said += &write_perturbed(folder, &name, &classifier, &shapes[input], input, &perturbed, &scored)?;
            }
            detections.extend(detect(&name, &clean, &scored, kernels.as_ref(), true)?);
        }
    }
    if let Some(source) = &args.against {
        let (scored, _) = over(Some(source), false).with_context(|| format!("running over -against {source}"))?;
        said += &format!("{source}: {} items\n", scored.classes.len());
        detections.extend(detect(source, &clean, &scored, kernels.as_ref(), false)?);
    }
    for detection in &detections {
        said += &format!("{}: AUC by {} = {:.4}\n", detection.of, detection.score.name(), detection.roc.area);
    }
    if let Some(folder) = &args.out {
        said += &report::write(folder, classifier.name(), &detections)?;
    }
    output::print(&said)?;
    Ok(ExitCode::SUCCESS)
}

fn accuracy(scored: &Scored) -> String {
    let items = scored.classes.len();
    match scored.accuracy() {
        Some(accuracy) => format!("accuracy = {} of {items} items", six_digits(accuracy as f32)),
        None => format!("{items} items"),
    }
}

/// The number of the blob to perturb, among the classifier's sources.
fn input_of(args: &AdversarialArgs, classifier: &Classifier) -> Result<usize> {
    let inputs = classifier.inputs();
    let chosen = match (&args.input, &inputs[..]) {
        (Some(name), _) => {
            let known = || inputs.iter().map(|s| s.top.as_str());
            let unknown = || Error::unknown("the logits depend on no blob of data", name, known());
            inputs.iter().find(|s| s.top == *name).ok_or_else(unknown)?
        }
        (None, [only]) => only,
        (None, []) => bail!("the logits depend on no blob of data, so there is nothing to perturb"),
        (None, several) => {
            let names: Vec<&str> = several.iter().map(|s| s.top.as_str()).collect();
            bail!("the logits depend on several blobs of data ({}); choose one with -input", names.join(", "))
        }
    };
    classifier.sources.iter().position(|s| s == *chosen).context("an input that is no source")
}

/// The least and the greatest value of the data's blob `input`.
fn found(data: &[Data], input: usize) -> Result<(f64, f64)> {
    let values = data.iter().flat_map(|batch| batch[input].1.iter().copied());
    let range = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), v| (least.min(v), most.max(v)));
    if range.0 < range.1 && range.0.is_finite() && range.1.is_finite() {
        return Ok(range);
    }
    bail!(
        "the data range from {} to {}, which gives epsilon no scale; say what the range is with -range",
        range.0,
        range.1
    )
}

/// Writes perturbed inputs with their labels as HDF5Data reads them; what to tell of it.
fn write_perturbed(
    folder: &Path,
    name: &str,
    classifier: &Classifier,
    shape: &Shape,
    input: usize,
    values: &[f32],
    scored: &Scored,
) -> Result<String> {
    let items = scored.classes.len();
    let path = folder.join(format!("{name}.h5"));
    let shape = shape.splice(0..1, [items]);
    let labels: Vec<f32> = scored.labels.iter().map(|&label| label as f32).collect();
    let of_labels = Shape::from([items]);
    let label = classifier.label.as_deref().unwrap_or("label");
    write_f32(&path, &[(&classifier.sources[input].top, &shape, values), (label, &of_labels, &labels)])?;
    let list = folder.join(format!("{name}.txt"));
    lgm_core::fs::write_bytes(&list, &lgm_data::list_of(&path))?;
    Ok(format!("{} (as the data layer gives inputs: to be read with no scale or mean)\n", list.display()))
}

/// Kernel densities of every second clean item; the others are what they are tried on.
struct Kernels {
    density: KernelDensity,
    /// Of clean items at odd places.
    clean: Vec<f64>,
}

impl Kernels {
    fn of(clean: &Scored) -> lgm_core::Result<Kernels> {
        let (mut features, mut classes) = (Vec::new(), Vec::new());
        for (x, &class) in clean.features.chunks(clean.width.max(1)).zip(&clean.classes).step_by(2) {
            features.extend_from_slice(x);
            classes.push(class);
        }
        let density = KernelDensity::fit(&features, clean.width.max(1), &classes)?;
        let mut kernels = Kernels { density, clean: Vec::new() };
        kernels.clean = kernels.scores(clean, true);
        Ok(kernels)
    }

    fn scores(&self, of: &Scored, odd: bool) -> Vec<f64> {
        let (skip, by) = if odd { (1, 2) } else { (0, 1) };
        let items = of.features.chunks(of.width.max(1)).zip(&of.classes).skip(skip).step_by(by);
        items.map(|(x, &class)| self.density.log_density(x, class)).collect()
    }
}

/// How well every score tells items from the clean ones; `paired` where they are clean items perturbed.
fn detect(
    of: &str,
    clean: &Scored,
    abnormal: &Scored,
    kernels: Option<&Kernels>,
    paired: bool,
) -> lgm_core::Result<Vec<Detection>> {
    let mut found = Vec::new();
    let mut add = |score, clean: &[f64], abnormal: &[f64]| -> lgm_core::Result<()> {
        found.push(Detection { of: of.into(), score, roc: roc(clean, abnormal)? });
        Ok(())
    };
    if !clean.mixture.is_empty() {
        add(Score::Likelihood, &clean.mixture, &abnormal.mixture)?;
        add(Score::Own, &clean.own, &abnormal.own)?;
    }
    add(Score::Probability, &clean.probability, &abnormal.probability)?;
    if let Some(kernels) = kernels {
        // Perturbed items whose origins the densities are made of would be near them for that reason alone.
        add(Score::KernelDensity, &kernels.clean, &kernels.scores(abnormal, paired))?;
    }
    Ok(found)
}
