//! `draw_net`: a net's layers and blobs as a graph, as Caffe's script of this name draws them: as Graphviz's text, or as
//! PNG or SVG, for which Graphviz is not needed.

mod dot;
mod graph;
mod layout;
mod picture;

use std::process::ExitCode;

use lgm_core::fs::write_bytes;
use lgm_core::{Error, Phase, Result};
use lgm_net::included;

use crate::args::{DrawNetArgs, Layers};
use crate::plot::{self, Format};
use crate::{models, output};
use graph::Graph;
use picture::Picture;

/// Runs the command.
///
/// # Errors
/// When the prototxt cannot be read, the name of the output is of no known kind, or the output cannot be written.
pub fn run(args: &DrawNetArgs) -> anyhow::Result<ExitCode> {
    let dot = is_dot(args)?;
    let phase = if args.phase == Layers::Test { Phase::Test } else { Phase::Train };
    let (parsed, options) = models::read(&args.input, phase, &args.state, false)?;
    let net = &parsed.message;
    let layers = match args.phase {
        Layers::All => (0..net.layer.len()).collect(),
        Layers::Train | Layers::Test => included(net, &parsed.positions, &options.state)?,
    };
    let chosen: Vec<_> = layers.into_iter().map(|i| &net.layer[i]).collect();
    if chosen.is_empty() {
        return Err(Error::data(&args.input, "has no layers to draw, in the phase and state asked for").into());
    }
    let graph = Graph::of(net.name(), &chosen, args.rankdir, args.display_lrm);
    match dot {
        true => write_bytes(&args.output, dot::text(&graph, args.rankdir).as_bytes())?,
        false => plot::write(&args.output, &Picture::of(&graph, args.rankdir)?)?,
    }
    let blobs = graph.nodes.len() - graph.layers();
    output::print(&format!("{} layers and {blobs} blobs: {}\n", graph.layers(), args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the output is text for Graphviz.
fn is_dot(args: &DrawNetArgs) -> Result<bool> {
    let end = args.output.extension().map(|end| end.to_string_lossy().to_ascii_lowercase());
    if matches!(end.as_deref(), Some("dot" | "gv")) {
        return Ok(true);
    }
    Format::of(&args.output).map(|_| false).map_err(|_| {
        Error::config(format!(
            "{}: expected a name that ends in .svg, .png, .dot or .gv; Graphviz makes other formats from a .dot file, \
             as by `dot -Tpdf`",
            args.output.display()
        ))
    })
}
