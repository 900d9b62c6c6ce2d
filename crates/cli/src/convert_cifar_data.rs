//! `lgm-caffe convert_cifar_data`: CIFAR-10 or CIFAR-100 to LMDB or LevelDB, as Caffe's tool.

use std::process::ExitCode;

use anyhow::Result;
use lgm_data::convert::convert_cifar_data;
use tracing::info;

use crate::args::ConvertCifarDataArgs;
use crate::progress;

/// Converts the training and the test images.
///
/// # Errors
/// When an input is missing or damaged, or a database exists or cannot be written.
pub fn run(args: &ConvertCifarDataArgs) -> Result<ExitCode> {
    let mut shown = progress::counter("images");
    let databases = convert_cifar_data(&args.input, &args.output, args.kind.into(), args.coarse, &mut shown)?;
    drop(shown);
    for database in &databases {
        info!("Wrote {} images to {}", database.images, database.folder.display());
    }
    Ok(ExitCode::SUCCESS)
}
