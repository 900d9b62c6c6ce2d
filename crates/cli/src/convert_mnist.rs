//! `lgm-caffe convert-mnist`: idx files to LMDB or HDF5.

use std::process::ExitCode;

use anyhow::Result;
use lgm_data::convert::convert_mnist;
use tracing::info;

use crate::args::ConvertMnistArgs;
use crate::{output, progress};

/// Converts the files.
///
/// # Errors
/// When an input is missing or damaged, or the output cannot be written.
pub fn run(args: &ConvertMnistArgs) -> Result<ExitCode> {
    info!("Converting {} and {}", args.images.display(), args.labels.display());
    let mut shown = progress::counter("images");
    let count = convert_mnist(&args.images, &args.labels, &args.output, args.backend.into(), &mut shown)?;
    drop(shown);
    output::print(&format!("Wrote {count} images to {}\n", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}
