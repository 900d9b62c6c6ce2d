//! `lgm-caffe convert_annoset`: images and their annotations to a database for AnnotatedData.

use std::process::ExitCode;

use anyhow::Result;
use lgm_data::convert::{AnnosetOptions, Annotations, ClassNames, convert_annoset};
use tracing::info;

use crate::args::{AnnoType, ConvertAnnosetArgs, LabelType, UsageError};
use crate::{output, progress};

/// Converts the images.
///
/// # Errors
/// When the list or an annotation is missing or damaged, or the database cannot be written.
pub fn run(args: &ConvertAnnosetArgs) -> Result<ExitCode> {
    let annotations = match (args.anno_type, args.label_type, &args.label_map_file) {
        (AnnoType::Classification, ..) => Annotations::Labels,
        (_, _, Some(map)) => Annotations::Objects(args.label_type.into(), ClassNames::read(map, args.check_label)?),
        (_, LabelType::Txt, None) => Annotations::Objects(args.label_type.into(), ClassNames::default()),
        (_, _, None) => {
            let text = "annotations name their objects' classes: give -label_map_file, a LabelMap with the numbers of the names";
            return Err(UsageError(text.into()).into());
        }
    };
    let options = AnnosetOptions {
        annotations,
        backend: args.backend.into(),
        gray: args.gray,
        shuffle: args.shuffle.then_some(args.seed),
        dims: [args.min_dim, args.max_dim],
        size: [args.resize_height, args.resize_width],
        check_size: args.check_size,
        encoded: args.encoded,
        encode_type: args.encode_type.clone(),
    };
    info!("Converting the images that {} names", args.list.display());
    let mut shown = progress::counter("images");
    let (written, failed) = convert_annoset(&args.root, &args.list, &args.output, &options, &mut shown)?;
    drop(shown);
    let failed = if failed > 0 { format!("; {failed} could not be read") } else { String::new() };
    output::print(&format!("Wrote {written} images to {}{failed}\n", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}
