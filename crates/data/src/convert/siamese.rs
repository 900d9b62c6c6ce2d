//! Pairs of MNIST's images: the data of siamese networks.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::path::Path;

use lgm_core::rng::{Philox, stream_id};
use lgm_core::{Result, memory};

use super::Progress;
use super::datums::Datums;
use super::mnist::{self, Mnist};
use crate::db::Backend;
use crate::pixels::Extent;

/// Draws as many pairs as there are images from idx files of images and labels, compressed with gzip or not, and writes
/// them to a new database `out`. Returns the number of pairs.
///
/// Records lie under the keys `00000000`, `00000001`, …, each with the two images as two channels, and the label 1 where
/// they are of one class and otherwise 0, as Caffe's `convert_mnist_siamese_data` writes them. Both images of a pair are
/// drawn from all, independently, and may be the same one; where Caffe's draws differ each time, the same `seed` draws the
/// same pairs.
///
/// # Errors
/// As [`super::convert_mnist`].
pub fn convert_mnist_siamese(
    images: impl AsRef<Path>,
    labels: impl AsRef<Path>,
    out: impl AsRef<Path>,
    backend: Backend,
    seed: u64,
    progress: Progress<'_>,
) -> Result<usize> {
    let Mnist { extent, pixels, labels } = mnist::read(images.as_ref(), labels.as_ref())?;
    let count = labels.len();
    tracing::info!("A total of {count} items.");
    tracing::info!("Rows: {} Cols: {}", extent.height, extent.width);
    let of_pair = Extent { channels: 2, ..extent };
    memory::check(of_pair.count(), format!("a pair of images of {} x {} pixels", extent.height, extent.width))?;
    let mut draws = Philox::new(seed, stream_id("convert_mnist_siamese_data", "pairs")).from(0);
    let pairs = (0..count).map(|_| {
        let [first, second] = [draws.below(count), draws.below(count)];
        let image = |i: usize| pixels.chunks_exact(extent.count()).nth(i).unwrap_or_default();
        ([image(first), image(second)].concat(), usize::from(labels[first] == labels[second]))
    });
    let mut database = Datums::create(out.as_ref(), backend, of_pair, 8)?;
    database.fill(pairs, progress)?;
    database.finish()?;
    Ok(count)
}
