//! `lgm-caffe get_image_size`: the sizes of a list's images, as SSD's tool.

use std::process::ExitCode;

use anyhow::Result;
use lgm_data::convert::get_image_size;
use tracing::info;

use crate::args::GetImageSizeArgs;
use crate::progress;

/// Lists the sizes.
///
/// # Errors
/// When a file or an image cannot be read, or the list of sizes cannot be written.
pub fn run(args: &GetImageSizeArgs) -> Result<ExitCode> {
    let mut shown = progress::counter("images");
    let count = get_image_size(&args.root, &args.list, &args.output, args.name_id_file.as_deref(), &mut shown)?;
    drop(shown);
    info!("Wrote the sizes of {count} images to {}", args.output.display());
    Ok(ExitCode::SUCCESS)
}
