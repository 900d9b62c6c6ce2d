//! `lgm-caffe convert_mnist_siamese_data`: idx files to a database of random pairs, as Caffe's tool.

use std::process::ExitCode;

use anyhow::Result;
use lgm_data::convert::convert_mnist_siamese;
use tracing::info;

use crate::args::ConvertMnistSiameseArgs;
use crate::progress;

/// Draws and writes the pairs.
///
/// # Errors
/// When an input is missing or damaged, or the database exists or cannot be written.
pub fn run(args: &ConvertMnistSiameseArgs) -> Result<ExitCode> {
    let mut shown = progress::counter("pairs");
    let backend = args.backend.into();
    let count = convert_mnist_siamese(&args.images, &args.labels, &args.database, backend, args.seed, &mut shown)?;
    drop(shown);
    info!("Wrote {count} pairs to {}", args.database.display());
    Ok(ExitCode::SUCCESS)
}
