//! `likelihood`: how likely each input of a data set is under the mixture that an L-GM net has learned, and whether that is
//! less than nearly all clean data are.

mod threshold;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use lgm_core::Shape;
use lgm_core::fs::write_bytes;
use lgm_net::six_digits;

use crate::args::{LikelihoodArgs, UsageError};
use crate::detect::classifier::{Among, Classifier};
use crate::detect::roc::threshold as lowest;
use crate::detect::run::{Scored, Trained};
use crate::{gpu, output, progress};
use threshold::Threshold;

/// Runs the command.
///
/// # Errors
/// When the net models no likelihood, cannot be run, or a file cannot be read or written.
pub fn run(args: &LikelihoodArgs) -> Result<ExitCode> {
    let form = args.out.as_deref().map(Form::of).transpose()?;
    let flags = &args.net;
    let gpu = gpu::choose_device(&args.device, None)?;
    let classifier = Classifier::read(&flags.model, &flags.state, flags.classifier.as_deref(), Among::Mixtures)?;
    let message = classifier.scoring(args.source.as_deref())?;
    let mut trained = Trained::new(&classifier, &message, &flags.weights, false, gpu)?;
    let (classes, features) = trained.mixture().map_or((0, 0), |mixture| (mixture.classes(), mixture.width()));
    let read = match (&args.threshold_file, args.calibrate) {
        (Some(path), None) => Some(Threshold::read(path, classes, features)?),
        _ => None,
    };

    let mut scored = Scored::default();
    for batch in progress::each("batches", args.iterations.into()) {
        trained.forward(batch, false, &mut scored)?;
    }
    let items = scored.classes.len();
    let threshold = match (&args.threshold_file, args.calibrate) {
        (Some(path), Some(rate)) => {
            let value = lowest(&scored.mixture, rate)?;
            let threshold = Threshold { value, rate, items, classes, features };
            threshold.write(path)?;
            Some(threshold)
        }
        _ => read,
    };
    if let (Some(path), Some(form)) = (&args.out, form) {
        match form {
            Form::Csv => write_bytes(path, csv(&scored, threshold.as_ref()).as_bytes())?,
            Form::Hdf5 => hdf5(path, &scored, threshold.as_ref())?,
        }
    }
    output::print(&said(args, &scored, threshold.as_ref()))?;
    Ok(ExitCode::SUCCESS)
}

/// How results are written.
#[derive(Clone, Copy)]
enum Form {
    Csv,
    Hdf5,
}

impl Form {
    fn of(path: &Path) -> Result<Form, UsageError> {
        match path.extension().and_then(|end| end.to_str()) {
            Some("csv") => Ok(Form::Csv),
            Some("h5" | "hdf5") => Ok(Form::Hdf5),
            _ => Err(UsageError(format!("-out {}: expected a name that ends in .csv or .h5", path.display()))),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn said(args: &LikelihoodArgs, scored: &Scored, threshold: Option<&Threshold>) -> String {
    let items = scored.classes.len();
    let mut said = format!("{items} items\n");
    if let Some(accuracy) = scored.accuracy() {
        said += &format!("accuracy = {}\n", six_digits(accuracy as f32));
    }
    said += &format!("mean log-likelihood under the predicted class = {}\n", six_digits(mean(&scored.own) as f32));
    said += &format!("mean log-likelihood under the mixture = {}\n", six_digits(mean(&scored.mixture) as f32));
    if let Some(threshold) = threshold {
        let abnormal = scored.mixture.iter().filter(|&&score| threshold.is_abnormal(score)).count();
        said += &format!(
            "threshold = {} (of {} clean items, {} lie below)\n",
            threshold.value, threshold.items, threshold.rate
        );
        said += &format!("{abnormal} abnormal items, {} of all\n", six_digits(abnormal as f32 / items as f32));
    }
    for path in
        [args.threshold_file.as_ref().filter(|_| args.calibrate.is_some()), args.out.as_ref()].into_iter().flatten()
    {
        said += &format!("{}\n", path.display());
    }
    said
}

fn csv(scored: &Scored, threshold: Option<&Threshold>) -> String {
    let labelled = !scored.labels.is_empty();
    let mut text = "item,".to_string();
    text += if labelled { "label," } else { "" };
    text += "class,probability,log_likelihood_class,log_likelihood_mixture";
    text += if threshold.is_some() { ",abnormal\n" } else { "\n" };
    for (i, class) in scored.classes.iter().enumerate() {
        let label = if labelled { format!("{},", scored.labels[i]) } else { String::new() };
        let (probability, own, mixture) = (scored.probability[i], scored.own[i], scored.mixture[i]);
        let verdict = threshold.map_or(String::new(), |t| format!(",{}", u8::from(t.is_abnormal(mixture))));
        let _ = writeln!(text, "{i},{label}{class},{probability},{own},{mixture}{verdict}");
    }
    text
}

fn hdf5(path: &Path, scored: &Scored, threshold: Option<&Threshold>) -> Result<()> {
    let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
    let classes = scored.classes.iter().map(|&class| class as f32).collect();
    let verdict = |t: &Threshold| scored.mixture.iter().map(|&m| f32::from(u8::from(t.is_abnormal(m)))).collect();
    let columns = [
        ("label", (!scored.labels.is_empty()).then(|| narrow(&scored.labels))),
        ("class", Some(classes)),
        ("probability", Some(narrow(&scored.probability))),
        ("log_likelihood_class", Some(narrow(&scored.own))),
        ("log_likelihood_mixture", Some(narrow(&scored.mixture))),
        ("abnormal", threshold.map(verdict)),
    ];
    let shape = Shape::from([scored.classes.len()]);
    let all: Vec<(&str, &Shape, &[f32])> =
        columns.iter().filter_map(|(name, values)| Some((*name, &shape, values.as_deref()?))).collect();
    Ok(lgm_data::hdf5::write_f32(path, &all)?)
}
