//! `lgm-caffe convert-cifar`: CIFAR-10, CIFAR-100 or folders of images to HDF5.

use std::process::ExitCode;

use anyhow::Result;
use lgm_data::convert::{CifarOptions, convert_cifar};
use tracing::info;

use crate::args::ConvertCifarArgs;
use crate::{output, progress};

/// Converts the training and the test images.
///
/// # Errors
/// When an input is missing or damaged, or the output cannot be written.
pub fn run(args: &ConvertCifarArgs) -> Result<ExitCode> {
    info!("Converting {}", args.input.display());
    let options = CifarOptions { pad: args.pad, coarse: args.coarse };
    let mut shown = progress::counter("images");
    let splits = convert_cifar(&args.input, &args.output, options, &mut shown)?;
    drop(shown);
    let mut text = String::new();
    for split in &splits {
        let (file, list) = (split.file.display(), split.list.display());
        text += &format!("Wrote {} images of {} classes to {file}, listed in {list}\n", split.images, split.classes);
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
