//! `lgm-caffe compute_image_mean`: the mean of a database's images, as Caffe's command of this name.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lgm_core::fs::{folder_of, write_bytes};
use lgm_data::ImageMean;
use lgm_data::db::Database;
use lgm_net::six_digits;
use lgm_proto::prost::Message;
use tracing::info;

use crate::args::ComputeImageMeanArgs;
use crate::progress::Progress;

/// Images between two lines of the log.
const LOGGED: u64 = 10_000;

/// Takes the mean, logs that of each channel and writes it.
///
/// # Errors
/// When the database cannot be read, its images differ in size, or the mean cannot be written.
pub fn run(args: &ComputeImageMeanArgs) -> Result<ExitCode> {
    if let Some(output) = &args.output {
        // Before the work, not after it.
        let folder = folder_of(output);
        ensure!(folder.is_dir(), "{}: its folder {} does not exist", output.display(), folder.display());
    }
    let database = Database::open(&args.input)?;
    info!("Starting iteration");
    let bar = database.count().map(|count| Progress::items("images", count));
    let mean = ImageMean::of(&database, |done| {
        if done.is_multiple_of(LOGGED) {
            info!("Processed {done} files.");
        }
        if let Some(bar) = &bar {
            bar.at(done);
        }
    })?;
    drop(bar);
    if !mean.images().is_multiple_of(LOGGED) {
        info!("Processed {} files.", mean.images());
    }
    if let Some(output) = &args.output {
        info!("Write to {}", output.display());
        write_bytes(output, &mean.to_blob().encode_to_vec()).context("the mean is lost")?;
    }
    let channels = mean.channels();
    info!("Number of channels: {}", channels.len());
    for (i, value) in channels.iter().enumerate() {
        info!("mean_value channel [{i}]: {}", six_digits(*value));
    }
    Ok(ExitCode::SUCCESS)
}
