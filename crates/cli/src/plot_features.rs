//! `plot-features`: what a trained net makes of its test data, as a picture: the features of each item coloured by
//! class, with the class centers, as in the figures of the L-GM paper.

mod figure;
mod projection;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use lgm_core::{Phase, Shape, Step};
use lgm_net::{Keep, Net, six_digits};

use crate::args::PlotFeaturesArgs;
use crate::progress::Progress;
use crate::{gpu, models, output};
use figure::Figure;
use projection::Projection;

/// What the net made of its data.
struct Collected {
    dim: usize,
    features: Vec<f64>,
    labels: Vec<usize>,
    /// Outputs of one value, the accuracy and the loss mostly: the mean over batches.
    measures: BTreeMap<String, f64>,
}

/// Runs the command.
///
/// # Errors
/// When the net cannot be built or run, or the figure cannot be drawn.
pub fn run(args: &PlotFeaturesArgs) -> Result<ExitCode> {
    let keep = Keep::Named(vec![args.blob.clone(), args.label.clone()]);
    let gpu = gpu::choose_device(&args.device, None)?;
    let mut net = models::net(&args.model, Phase::Test, &args.state, false, keep, gpu)?;
    models::load_weights(&mut net, &args.weights)?;

    let classifier = classifier(args, &net)?;
    let (shape, centers) = centers(&net, &classifier)?;
    let collected = collect(args, &mut net)?;
    ensure!(
        shape[1] == collected.dim,
        "the centers of layer '{classifier}' have {} values, the features of blob '{}' have {}; \
         -blob must be the classifier's first bottom",
        shape[1],
        args.blob,
        collected.dim
    );

    let projection = Projection::fit(&collected.features, collected.dim)?;
    let axes = match projection.shares {
        None => ["feature 1".to_string(), "feature 2".to_string()],
        Some(shares) => {
            let name = |i: usize| format!("principal component {} ({:.0}% of the variance)", i + 1, 100.0 * shares[i]);
            [name(0), name(1)]
        }
    };
    let title = format!("{} of {}: {} items", args.blob, net.name(), collected.labels.len());
    let figure = Figure {
        title: &title,
        axes: [&axes[0], &axes[1]],
        points: &projection.apply(&collected.features),
        labels: &collected.labels,
        centers: &projection.apply(&centers),
    };
    figure::draw(&args.out, &figure)?;
    let mut text = format!("{} items of {} classes: {}\n", collected.labels.len(), shape[0], args.out.display());
    for (name, mean) in &collected.measures {
        text += &format!("{name} = {}\n", six_digits(*mean));
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The layer with the centers.
fn classifier(args: &PlotFeaturesArgs, net: &Net) -> Result<String> {
    if let Some(name) = &args.classifier {
        return Ok(name.clone());
    }
    let heads: Vec<&str> =
        net.layers().filter(|(_, kind)| matches!(*kind, "ClassDistance" | "LGMLoss")).map(|(name, _)| name).collect();
    match heads[..] {
        [only] => Ok(only.to_string()),
        [] => bail!("the net has no ClassDistance or LGMLoss layer; name the layer with the centers with -classifier"),
        _ => bail!("the net has several layers with centers ({}); choose one with -classifier", heads.join(", ")),
    }
}

/// A layer's centers: classes by features.
fn centers(net: &Net, layer: &str) -> Result<(Shape, Vec<f64>)> {
    let first = net.layer_params(layer)?.into_iter().next();
    let (shape, values) = first.with_context(|| format!("layer '{layer}' has no parameters, so no centers"))?;
    ensure!(shape.len() == 2, "layer '{layer}': centers have the shape classes × features, found {shape}");
    Ok((shape, values))
}

fn collect(args: &PlotFeaturesArgs, net: &mut Net) -> Result<Collected> {
    let single = |name: &&str| net.blob(name).is_ok_and(|(shape, _)| shape.count() == 1);
    let measures: Vec<String> = net.outputs().into_iter().filter(single).map(String::from).collect();
    let mut out = Collected { dim: 0, features: Vec::new(), labels: Vec::new(), measures: BTreeMap::new() };
    let progress = Progress::items("batches", u64::from(args.iterations));
    for batch in 0..u64::from(args.iterations) {
        net.forward(&Step { seed: 0, iter: 0, batch })?;
        let (shape, features) = blob(net, &args.blob)?;
        let (_, labels) = blob(net, &args.label)?;
        ensure!(
            !shape.is_empty() && shape[0] == labels.len(),
            "blob '{}' of shape {shape} needs one label an item; blob '{}' holds {}",
            args.blob,
            args.label,
            labels.len()
        );
        out.dim = shape.count_from(1);
        out.features.extend(features);
        for label in labels {
            ensure!(label >= 0.0 && label.fract() == 0.0, "{label} in blob '{}' is not a class number", args.label);
            out.labels.push(label as usize);
        }
        for name in &measures {
            let (_, value) = blob(net, name)?;
            *out.measures.entry(name.clone()).or_default() += value[0];
        }
        progress.at(batch + 1);
    }
    out.measures.values_mut().for_each(|sum| *sum /= f64::from(args.iterations));
    Ok(out)
}

fn blob(net: &Net, name: &str) -> Result<(Shape, Vec<f64>)> {
    Ok(net.blob(name)?)
}
