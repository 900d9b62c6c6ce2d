//! `plot-features`: what a trained net makes of its data, as a picture: the features of each item coloured by class, with
//! the class centers and the ellipses of equal likelihood around them, as in the figures of the L-GM paper.

mod collect;
mod figure;
mod movie;
mod projection;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use lgm_net::six_digits;

use crate::args::{PlotFeaturesArgs, UsageError};
use crate::detect::mixture::Mixture;
use crate::plot::Format;
use crate::{gpu, output};
use collect::{Collected, Source};
use figure::{Figure, Gaussian, Point, View};
use projection::Projection;

/// The features that one file of weights gives, in the plane.
struct Frame {
    title: String,
    labels: Vec<usize>,
    rounds: Option<u64>,
    points: Vec<Point>,
    centers: Vec<Point>,
    gaussians: Vec<Gaussian>,
    mixture: Option<Mixture>,
    /// Outputs of one value, with their names.
    text: String,
}

/// Runs the command.
///
/// # Errors
/// When the net cannot be built or run, or the figure cannot be drawn.
pub fn run(args: &PlotFeaturesArgs) -> Result<ExitCode> {
    let format = Format::of(&args.out)?;
    if args.movie && format != Format::Png {
        return Err(UsageError(format!(
            "-out {}: a movie is an animated PNG; expected a name that ends in .png",
            args.out.display()
        ))
        .into());
    }
    let source = Source::read(args, gpu::choose_device(&args.device, None)?)?;
    let snapshots: Vec<&[PathBuf]> = if args.movie { args.weights.chunks(1).collect() } else { vec![&args.weights] };
    // From the last to the first: the plane is that of the last one's features.
    let mut projection = None;
    let mut frames = Vec::new();
    for files in snapshots.iter().rev() {
        let collected = source.collect(files)?;
        check(args, &collected)?;
        let fitted = match projection.take() {
            Some(fitted) => fitted,
            None => Projection::fit(&collected.features, collected.dim)?,
        };
        frames.push(frame(args, files, collected, &fitted));
        projection = Some(fitted);
    }
    frames.reverse();
    let axes = match projection.and_then(|projection| projection.shares) {
        None => ["feature 1".to_string(), "feature 2".to_string()],
        Some(shares) => {
            let name = |i: usize| format!("principal component {} ({:.0}% of the variance)", i + 1, 100.0 * shares[i]);
            [name(0), name(1)]
        }
    };
    let mut view = View::default();
    for frame in &frames {
        view.hold(frame.points.iter().chain(&frame.centers).copied());
        view.hold(frame.gaussians.iter().flat_map(Gaussian::outline));
    }
    let figures: Vec<Figure<'_>> = frames
        .iter()
        .map(|frame| Figure {
            title: &frame.title,
            axes: [&axes[0], &axes[1]],
            points: &frame.points,
            labels: &frame.labels,
            centers: &frame.centers,
            gaussians: &frame.gaussians,
            map: frame.mixture.as_ref().filter(|_| args.map),
            view,
        })
        .collect();
    figures.iter().try_for_each(figure::check)?;
    let out = args.out.display();
    let mut text = match &figures[..] {
        [only] => {
            crate::plot::write(&args.out, only)?;
            let again = frames[0].rounds.filter(|&rounds| rounds > 1);
            let again = again.map(|rounds| format!(", the data {rounds} times")).unwrap_or_default();
            format!("{} items of {} classes{again}: {out}\n", only.labels.len(), only.centers.len())
        }
        _ => {
            movie::write(&args.out, &figures)?;
            format!("{} snapshots: {out}\n", figures.len())
        }
    };
    frames.iter().for_each(|frame| text += &frame.text);
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether what was collected can be drawn as asked.
fn check(args: &PlotFeaturesArgs, collected: &Collected) -> Result<()> {
    let (dim, blob, classifier) = (collected.dim, &args.blob, &collected.classifier);
    ensure!(
        collected.width == dim,
        "the centers of layer '{classifier}' have {} values, the features of blob '{blob}' have {dim}; \
         -blob must be the classifier's first bottom",
        collected.width
    );
    if args.map {
        ensure!(dim == 2, "-map shows the likelihood of features of 2 values; those of blob '{blob}' have {dim}");
        ensure!(
            collected.mixture.is_some(),
            "-map: layer '{classifier}' does not model classes as Gaussians; expected LGMLoss, or ClassDistance of metric L2"
        );
    }
    Ok(())
}

fn frame(args: &PlotFeaturesArgs, files: &[PathBuf], collected: Collected, projection: &Projection) -> Frame {
    let centers = projection.apply(&collected.centers);
    let gaussians = match &collected.mixture {
        Some(mixture) => centers
            .iter()
            .zip(mixture.variances())
            .map(|(&center, variances)| Gaussian::new(center, projection.covariance(variances)))
            .collect(),
        None => Vec::new(),
    };
    let file = files.first().filter(|_| args.movie).and_then(|file| Path::new(file).file_name());
    let file = file.map(|name| name.to_string_lossy().into_owned());
    let mut title = format!("{} of {}: {} items", args.blob, collected.net, collected.labels.len());
    file.iter().for_each(|file| title += &format!(", {file}"));
    let of = file.map_or(String::new(), |file| format!("{file}: "));
    let text = collected.measures.iter().map(|(name, mean)| format!("{of}{name} = {}\n", six_digits(*mean))).collect();
    let points = projection.apply(&collected.features);
    let Collected { labels, rounds, mixture, .. } = collected;
    Frame { title, labels, rounds, points, centers, gaussians, mixture, text }
}
