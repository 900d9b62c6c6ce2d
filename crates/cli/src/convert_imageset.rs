//! `lgm-caffe convert_imageset`: a list of image files to LMDB or LevelDB, with Caffe's flags and log lines.

use std::process::ExitCode;

use anyhow::Result;
use lgm_data::convert::{Encoding, ImageFile, ImageSetOptions, convert_imageset};
use tracing::{info, warn};

use crate::args::{ConvertImagesetArgs, UsageError};
use crate::progress;

/// Converts the images.
///
/// # Errors
/// When flags contradict each other, the list or none of its images can be read, or the database cannot be written.
pub fn run(args: &ConvertImagesetArgs) -> Result<ExitCode> {
    let encoding = match (&args.encode_type[..], args.encoded) {
        ("", false) => Encoding::None,
        ("", true) => Encoding::AsNamed,
        (kind, encoded) => {
            let what = || UsageError(format!("encode_type must be jpg, png or bmp, found '{kind}'"));
            if !encoded {
                info!("encode_type specified, assuming encoded=true.");
            }
            Encoding::As(ImageFile::of(kind).ok_or_else(what)?)
        }
    };
    let size = match (args.resize_height.max(0) as usize, args.resize_width.max(0) as usize) {
        (0, 0) => None,
        (0, _) | (_, 0) => {
            let what = "resize_height and resize_width are given both or neither";
            return Err(UsageError(format!("{what}; found {} and {}", args.resize_height, args.resize_width)).into());
        }
        both => Some(both),
    };
    let options = ImageSetOptions {
        gray: args.gray,
        shuffle: args.shuffle.then_some(args.seed),
        backend: args.backend.into(),
        size,
        check_size: args.check_size,
        encoding,
    };
    let mut shown = progress::counter("images");
    let set = convert_imageset(&args.root, &args.list, &args.database, &options, &mut shown)?;
    drop(shown);
    if set.left_out > 0 {
        let all = set.written + set.left_out;
        warn!("{} of {all} images could not be read and are not in the database.", set.left_out);
    }
    Ok(ExitCode::SUCCESS)
}
